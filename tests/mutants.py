"""Do the tests bite? Plant one bug at a time, and see the named test fail.

    python tests/mutants.py [WORD ...]    only the bugs whose path or description holds a word

The program works on a copy of the repository. Each bug runs without an error, and makes results
wrong. The test of a bug is the fastest that must fail under it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BROKEN = ("ImportError", "SyntaxError", "NameError", "AttributeError", "TypeError", "jaxtyping")
"""Errors of a program that does not run: such a bug shows itself."""


class Mutant(NamedTuple):
    """A bug to plant."""

    path: str
    """A file below lm_jax/."""
    old: str
    """A text that occurs exactly once in the file."""
    new: str
    """The text in its place."""
    test: str
    """Node id of a test, below tests/."""
    bug: str


MUTANTS = (
    Mutant(
        "exchange/torch_weights.py",
        'b_h[2 * H :], extra = b_ih[2 * H :], {"b_hn": b_hh[2 * H :]}',
        'extra = {"b_hn": 0 * b_hh[2 * H :]}',
        "exchange/test_torch_weights.py",
        "all of a GRU's second bias stands outside the product with r",
    ),
    Mutant(
        "exchange/torch_weights.py",
        'bias_hh = np.zeros_like(own["b_h"])',
        'bias_hh = own["b_h"].copy()',
        "exchange/test_torch_weights.py",
        "an export writes the bias of a layer twice",
    ),
    Mutant(
        "exchange/exported.py",
        "model.hidden(whole, carries.unflatten(carry), x, NO_HOOK)",
        "model.hidden(whole, model.init_carry(1), x, NO_HOOK)",
        "exchange/test_exported.py",
        "an exported function forgets the carry that it is given",
    ),
    Mutant(
        "files.py",
        "        with contextlib.suppress(OSError):\n            remove(partial)\n        raise",
        "        raise",
        "exchange/test_torch_files.py",
        "a fault in the middle of an import leaves half a run behind",
    ),
    Mutant(
        "training/optimizer.py",
        "(now + 1) / jnp.maximum(schedule.warmup_steps, 1)",
        "now / jnp.maximum(schedule.warmup_steps, 1)",
        "training/test_optimizer.py::test_cosine_warms_up_in_a_line_and_comes_down_half_a_cosine",
        "warm-up a step late",
    ),
    Mutant(
        "training/optimizer.py",
        "epoch - schedule.constant_epochs + 1",
        "epoch - schedule.constant_epochs",
        "training/test_optimizer.py::test_epochs_follow_zaremba",
        "the rate falls an epoch late",
    ),
    Mutant(
        "training/step.py",
        "tired = plateau_steps >= schedule.patience",
        "tired = plateau_steps > schedule.patience",
        "training/test_training.py::test_patience_ends_a_run_and_plateaus_cut_the_learning_rate",
        "plateau cut a validation late",
    ),
    Mutant(
        "training/trainer.py",
        "int(self.summary.early_stopping.since_best) >= train.patience",
        "int(self.summary.early_stopping.since_best) > train.patience",
        "training/test_training.py::test_patience_ends_a_run_and_plateaus_cut_the_learning_rate",
        "early stopping a validation late",
    ),
    Mutant(
        "gradients/bptt.py",
        "constant = (remembered + 1) * k1 - k2",
        "constant = (remembered + 1) * k1 - k2 + 1",
        "gradients/test_bptt.py::"
        "test_truncated_bptt_is_its_definition_across_the_chunk_s_edge[3-7]",
        "truncated backpropagation goes back k2 - 1 steps",
    ),
    Mutant(
        "gradients/bptt.py",
        "before = restart(model, carry, batch.start)\n            after, nats",
        "before = carry\n            after, nats",
        "gradients/test_bptt.py::test_a_lane_that_starts_again_forgets_its_carry",
        "the carry is not reset at the start of a text",
    ),
    Mutant(
        "models/cells.py",
        'return z + jnp.broadcast_to(params["b_h"], z.shape)',
        "return z",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[elman]",
        "b_h forgotten",
    ),
    Mutant(
        "generation/drawing.py",
        "scaled = z / divisor",
        "scaled = z * divisor",
        "generation/test_generation.py::"
        "test_tokens_are_drawn_with_the_probabilities_that_are_left[None]",
        "the temperature multiplies",
    ),
    Mutant(
        "sweeps/halving.py",
        "best = sorted(come)[: -(-len(come) // factor)]",
        "best = sorted(come)[: len(come) // factor]",
        "sweeps/test_halving.py::test_of_one_slice_the_best_in_so_many_go_on",
        "halving rounds down",
    ),
    Mutant(
        "data/batches.py",
        "source.starts.size, jax.random.fold_in(key, epoch)",
        "source.starts.size, key",
        "data/test_batches.py::"
        "test_the_order_of_sentences_is_another_one_in_each_epoch_and_for_each_key",
        "sentences in the same order in each epoch",
    ),
    Mutant(
        "training/step.py",
        "model.for_training(_key(config, Draw.NOISE, state.step))",
        "model.for_training(_key(config, Draw.NOISE))",
        "training/test_step.py::test_each_update_draws_anew[dropout]",
        "one dropout key for all updates",
    ),
    Mutant(
        "training/step.py",
        "_key(config, Draw.FEEDING, state.step)",
        "_key(config, Draw.FEEDING)",
        "training/test_step.py::test_each_update_draws_anew[feeding]",
        "one key for the model's own tokens in all updates",
    ),
    Mutant(
        "training/step.py",
        "    updates, opt_state = rule.update(clipped, state.opt_state, state.params, "
        "value=loss)\n",
        "    updates, opt_state = rule.update(grads, state.opt_state, state.params, "
        "value=loss)\n"
        "    updates, _, _ = clip(train, updates, norm(updates))\n",
        "training/test_step.py::test_the_gradient_is_clipped_before_decay_and_rate",
        "clipping after the optimizer",
    ),
    Mutant(
        "training/step.py",
        "clipped, changed, clipped_norm = clip(train, grads, grad_norm)",
        "decay = 0 if train.weight_decay is None else train.weight_decay\n"
        "    grads = jax.tree.map(lambda g, w: g + decay * w, grads, state.params)\n"
        "    clipped, changed, clipped_norm = clip(train, grads, norm(grads))\n"
        "    clipped = jax.tree.map(lambda g, w: g - decay * w, clipped, state.params)",
        "training/test_step.py::test_the_gradient_is_clipped_before_decay_and_rate",
        "weight decay before clipping",
    ),
    Mutant(
        "training/step.py",
        "rate = learning_rate(train, state.step, epoch,",
        "rate = learning_rate(train, state.step + 1, epoch,",
        "training/test_step.py::test_an_update_has_the_rate_of_its_own_step[cosine]",
        "the learning rate of the next step",
    ),
    Mutant(
        "training/step.py",
        "epoch = state.step // steps_per_epoch(",
        "epoch = (state.step + 1) // steps_per_epoch(",
        "training/test_step.py::test_an_update_has_the_rate_of_its_own_step[epochs]",
        "the epoch's rate an update early",
    ),
    Mutant(
        "training/step.py",
        "better = nats < early_stopping.best_nats",
        "better = nats <= early_stopping.best_nats",
        "training/test_step.py::test_of_two_equal_validations_the_first_is_the_best",
        "the best parameters taken on a tie",
    ),
    Mutant(
        "training/step.py",
        "jnp.where(better, new, old), state.eval_params, best)",
        "jnp.where(better, new, old), state.params, best)",
        "training/test_step.py::test_where_there_is_an_average_it_is_the_best",
        "the last parameters kept in place of their average",
    ),
    Mutant(
        "training/step.py",
        "best = jax.tree.map(lambda new, old: jnp.where(better, new, old), "
        "state.eval_params, best)",
        "best = state.eval_params",
        "training/test_training.py::test_the_best_on_validation_is_kept",
        "the last parameters kept in place of the best",
    ),
    Mutant(
        "training/step.py",
        "lr_scale = jnp.where(tired, lr_scale * schedule.factor, lr_scale)",
        "lr_scale = jnp.where(tired, schedule.factor, lr_scale)",
        "training/test_training.py::test_patience_ends_a_run_and_plateaus_cut_the_learning_rate",
        "a second cut of the rate has no effect",
    ),
    Mutant(
        "training/step.py",
        "return ~(jnp.isfinite(state.record.nats) & jnp.isfinite(state.record.grad_norm))",
        "return ~jnp.isfinite(state.record.nats)",
        "training/test_step.py::"
        "test_a_run_has_diverged_if_the_loss_or_the_gradient_is_not_finite[grad_norm]",
        "an infinite gradient is no divergence",
    ),
    Mutant(
        "training/step.py",
        "return ~diverged(config, state) & jnp.all(jnp.array([jnp.isfinite(x).all() for x "
        "in leaves]))",
        "return ~diverged(config, state) & jnp.any(jnp.array([jnp.isfinite(x).all() for x "
        "in leaves]))",
        "training/test_step.py::test_one_number_that_is_not_finite_spoils_the_parameters",
        "parameters that are not finite go unnoticed",
    ),
    Mutant(
        "training/step.py",
        "return state.skipped.in_a_row >= rule.limit",
        "return state.skipped.total >= rule.limit",
        "training/test_divergence.py::test_a_batch_whose_gradient_is_not_finite_is_left_out",
        "all batches left out counted, not those in a row",
    ),
    Mutant(
        "training/step.py",
        "old = state.params, state.opt_state, state.carry, state.record",
        "old = state.params, opt_state, state.carry, state.record",
        "training/test_divergence.py::test_a_batch_whose_gradient_is_not_finite_is_left_out",
        "a batch left out stays in the optimizer",
    ),
    Mutant(
        "training/step.py",
        "last = state.step % train.accumulate == train.accumulate - 1",
        "last = state.step % train.accumulate == 0",
        "training/test_chains.py::test_accumulated_gradients_make_one_change_of_their_mean",
        "accumulated gradients applied after the first batch",
    ),
    Mutant(
        "training/state.py",
        "new, so_far + (new - so_far) / (before + 1))",
        "new, so_far + new)",
        "training/test_chains.py::test_accumulated_gradients_are_a_mean_and_begin_anew",
        "accumulated gradients are a sum",
    ),
    Mutant(
        "training/state.py",
        "count = (1 - decay ** (state.step + 1)) / (1 - decay)",
        "count = 1 / (1 - decay)",
        "training/test_chains.py::"
        "test_the_moving_average_weighs_past_parameters_by_powers_of_its_decay",
        "moving average without bias correction",
    ),
    Mutant(
        "training/state.py",
        "state.step + 2 - average.begun",
        "state.step + 1 - average.begun",
        "training/test_averaging.py::test_the_average_is_the_mean_of_the_parameters_since_it_began",
        "the average counts a step too few",
    ),
    Mutant(
        "training/state.py",
        "nats=record.nats + (loss - record.nats) * (tokens / jnp.maximum(total, 1))",
        "nats=mean(record.nats, loss)",
        "training/test_record.py::test_the_loss_of_a_record_is_the_mean_over_its_tokens",
        "the loss of a record is a mean over updates",
    ),
    Mutant(
        "training/state.py",
        "return Skipped(jnp.where(finite, 0, self.in_a_row + 1)",
        "return Skipped(self.in_a_row + ~finite",
        "training/test_divergence.py::test_a_batch_whose_gradient_is_not_finite_is_left_out",
        "a sound batch does not end a row of bad ones",
    ),
    Mutant(
        "training/optimizer.py",
        "optax.chain(optax.add_decayed_weights(decay), rule)",
        "optax.chain(rule, optax.add_decayed_weights(decay))",
        "training/test_averaging.py::test_weight_decay_is_a_gradient_of_half_the_squared_norm",
        "weights grow by their decay",
    ),
    Mutant(
        "training/optimizer.py",
        "group_rate = rate * (group.learning_rate / train.learning_rate)",
        "group_rate = group.learning_rate",
        "training/test_chains.py::test_groups_have_a_rate_a_decay_and_a_rule_of_their_own",
        "a group's rate follows no schedule",
    ),
    Mutant(
        "training/optimizer.py",
        "feeding.start + (feeding.end - feeding.start) * way",
        "feeding.end + (feeding.start - feeding.end) * way",
        "training/test_averaging.py::"
        "test_the_share_of_own_tokens_goes_from_start_to_end_and_stays[linear]",
        "scheduled sampling runs backwards",
    ),
    Mutant(
        "models/dropout.py",
        "if self.key is None or chance is None:\n"
        "            return a\n"
        "        key = jax.random.fold_in(self.key, place)",
        "if chance is None:\n"
        "            return a\n"
        "        own = jax.random.key(0) if self.key is None else self.key\n"
        "        key = jax.random.fold_in(own, place)",
        "models/test_dropout.py::test_dropout_is_seen_in_training_and_not_in_use[rnn]",
        "dropout also outside training",
    ),
    Mutant(
        "training/trainer.py",
        'loss = yield from self._loss("test")',
        'loss = yield from self._loss("validation")',
        "training/test_training.py::test_each_split_has_the_loss_of_its_own_text",
        "the validation split reported as test",
    ),
    Mutant(
        "training/trainer.py",
        "            self.journal.sync()\n            state = self.processes",
        "            state = self.processes",
        "training/test_disk.py::test_the_rows_of_a_checkpoint_are_on_the_disk_before_it_is_saved",
        "the journal not synced before a checkpoint is saved",
    ),
    Mutant(
        "training/trainer.py",
        "step, params = kept_params(self.processes.local(self.state))",
        "step, params = int(self.state.step), self.state.params",
        "training/test_training.py::test_the_best_on_validation_is_kept",
        "the last parameters reported in place of the best",
    ),
    Mutant(
        "training/arrays.py",
        "    load_arrays(folder, {least:",
        "    dict({least:",
        "training/test_faults.py::test_a_folder_that_cannot_be_made_or_listed_fails_the_save",
        "a checkpoint without an index of its arrays counts as saved",
    ),
    Mutant(
        "training/checkpoint.py",
        "if contents.files.get(name) != found.get(name):",
        "if name not in found:",
        "training/test_files.py::test_a_byte_too_many_in_a_file_of_arrays_is_found",
        "a checkpoint read without its digests",
    ),
    Mutant(
        "training/checkpoint.py",
        "for step in sorted(steps, reverse=True):",
        "for step in sorted(steps):",
        "training/test_files.py::test_entries_of_checkpoints_that_are_no_checkpoints_are_let_be",
        "resumed from the oldest checkpoint",
    ),
    Mutant(
        "training/checkpoint.py",
        '        files.tree_to_disk(partial / "arrays")\n',
        "",
        "training/test_disk.py::test_a_checkpoint_is_on_the_disk_before_it_has_its_name",
        "arrays not synced before a checkpoint has its name",
    ),
    Mutant(
        "training/checkpoint.py",
        "put = jnp.copy(put)",
        "pass",
        "training/test_memory.py::test_what_is_restored_can_be_taken_over_wherever_numpy_put_it",
        "an update overwrites the memory of NumPy",
    ),
    Mutant(
        "training/journal.py",
        "numbers = [number for number in found.rows if number < kept.rows]",
        "numbers = [*found.rows]",
        "training/test_training.py::"
        "test_a_run_killed_before_its_first_checkpoint_begins_at_its_first_update",
        "rows later than the checkpoint stay",
    ),
    Mutant(
        "files.py",
        "        file.write(content)\n        to_disk(file)\n",
        "        file.write(content)\n",
        "training/test_disk.py::test_a_file_is_on_the_disk_before_it_has_its_name",
        "no fsync in whole writes",
    ),
    Mutant(
        "files.py",
        "    partial.replace(path)\n    names_to_disk(path.parent)\n",
        "    partial.replace(path)\n",
        "training/test_disk.py::test_a_file_is_on_the_disk_before_it_has_its_name",
        "a new name not synced",
    ),
    Mutant(
        "files.py",
        "            names_to_disk(successor.parent)\n        folder",
        "            pass\n        folder",
        "training/test_disk.py::test_a_folder_loses_its_name_after_its_successor_s_is_on_the_disk",
        "a folder without a name before its successor's is on the disk",
    ),
    Mutant(
        "files.py",
        "            to_disk(file)\n    names_to_disk(path.parent)\n    return kept\n",
        "            pass\n    names_to_disk(path.parent)\n    return kept\n",
        "training/test_disk.py::"
        "test_the_copy_of_a_damaged_file_is_on_the_disk_before_the_file_is_written_anew",
        "the copy of a damaged file not synced",
    ),
    Mutant(
        "sweeps/ray_nodes.py",
        "    files.tree_to_disk(arrived)\n",
        "",
        "training/test_disk.py::"
        "test_the_runs_from_another_node_are_on_the_disk_before_they_have_their_names",
        "a run from another node not synced",
    ),
    Mutant(
        "sweeps/halving.py",
        ' or b"\\0" in lines[-1]',
        "",
        "sweeps/test_halving.py::"
        "test_a_sweep_whose_power_was_cut_in_a_judgement_judges_again[zeros0]",
        "a judgement with zeros stops the sweep",
    ),
    Mutant(
        "files.py",
        "        folder.rename(trash)\n",
        "        remove(folder)\n",
        "training/test_disk.py::test_a_crash_leaves_no_half_removed_folder_under_its_name[None]",
        "a folder removed without being renamed first",
    ),
    Mutant(
        "files.py",
        "if sha256(content)[:16] != found[2]:",
        "if not found[2]:",
        "training/test_files.py::test_a_changed_number_breaks_the_seal",
        "seals not compared",
    ),
    Mutant(
        "gradients/bptt.py",
        "limit_norm(delta, threshold, kept=1)",
        "limit_norm(delta, threshold)",
        "gradients/test_bptt.py::test_clipping_within_bptt_is_clipping_delta_at_every_step",
        "δ clipped over all sequences together",
    ),
    Mutant(
        "gradients/bptt.py",
        "return EdgeHook(lambda carry, _: clip_cotangent(carry, threshold))",
        "act = lambda carry, _: clip_cotangent(carry, threshold)\n"
        "    return EdgeHook(act, recurrent_only=True)",
        "gradients/test_bptt.py::test_clipping_within_bptt_is_clipping_delta_at_every_step",
        "δ clipped without the loss of its own step",
    ),
    Mutant(
        "gradients/bptt.py",
        "before = restart(model, carry, batch.start)\n            after, nats",
        "before = model.init_carry(len(batch.start))\n            after, nats",
        "gradients/test_bptt.py::test_a_lane_that_starts_again_forgets_its_carry",
        "the carry is reset at every batch",
    ),
    Mutant(
        "gradients/bptt.py",
        "return jnp.maximum(jnp.sum(mask), 1).astype(float)",
        "return jnp.maximum(mask.size, 1).astype(float)",
        "gradients/test_bptt.py::test_the_loss_is_the_mean_over_real_tokens",
        "the mean over all positions, also those without a target",
    ),
    Mutant(
        "gradients/bptt.py",
        "return (history, nats + more, jax.tree.map(jnp.add, grads, more_grads)), None",
        "return (history, nats + more, more_grads), None",
        "gradients/test_bptt.py::test_truncation_as_long_as_the_chunk_is_full_bptt[2]",
        "the gradient of the last block alone",
    ),
    Mutant(
        "gradients/artbp.py",
        "kept, batch.mask.shape) / kept",
        "kept, batch.mask.shape) * 1.0",
        "gradients/test_forward.py::test_the_mean_of_randomised_truncation_is_full_bptt",
        "randomised truncation without its weights",
    ),
    Mutant(
        "gradients/rtrl.py",
        "return after, jax.tree.map(jnp.add, travelled, immediate)",
        "return after, immediate",
        "gradients/test_forward.py::test_rtrl_is_full_bptt_of_a_chunk[lstm]",
        "RTRL forgets the influence of earlier steps",
    ),
    Mutant(
        "gradients/rtrl.py",
        "memory = started(model, memory, batch.start)",
        "memory = started(model, memory, "
        "jnp.ones_like(batch.start))._replace(carry=restart(model, memory.carry, "
        "batch.start))",
        "gradients/test_forward.py::test_the_influence_goes_on_from_batch_to_batch[lstm]",
        "RTRL's influence not carried to the next batch",
    ),
    Mutant(
        "gradients/snap.py",
        "if not kept.all():",
        "if False:",
        "gradients/test_forward.py::"
        "test_snap1_is_rtrl_that_keeps_what_is_there_after_one_step[peepholes-2]",
        "SnAp-1 without its mask",
    ),
    Mutant(
        "gradients/uoro.py",
        "s_tilde = _scaled(pushed, rho_0) + _scaled(signs, rho_1)",
        "s_tilde = _scaled(pushed, rho_0) - _scaled(signs, rho_1)",
        "gradients/test_forward.py::test_the_mean_of_uoro_is_rtrl_over_two_batches",
        "UORO with a wrong sign",
    ),
    Mutant(
        "gradients/uoro.py",
        "_scaled(new, 1 / rho_1)",
        "_scaled(new, rho_1)",
        "gradients/test_forward.py::test_uoro_is_exact_where_the_influence_is_of_rank_one",
        "UORO's noise scaled twice",
    ),
    Mutant(
        "gradients/lyapunov.py",
        "return _descending(jnp.mean(_growth(",
        "return _descending(jnp.sum(_growth(",
        "gradients/test_lyapunov.py::"
        "test_the_last_running_estimate_and_the_mean_of_the_windows_are_the_spectrum",
        "Lyapunov exponents not divided by the steps",
    ),
    Mutant(
        "gradients/lyapunov.py",
        "growth = jnp.log(jnp.abs(diagonal))",
        "growth = jnp.log(jnp.maximum(diagonal, 1e-300))",
        "gradients/test_lyapunov.py::"
        "test_of_a_linear_network_the_exponents_are_the_logs_of_the_eigenvalues",
        "the sign of R in QR ignored",
    ),
    Mutant(
        "gradients/by_lag.py",
        "return jax.tree.map(earlier, a), weights",
        "return a, weights",
        "gradients/test_credit.py::test_of_a_linear_transition_every_lag_has_a_closed_form",
        "every lag at the place of the first",
    ),
    Mutant(
        "gradients/by_lag.py",
        "jnp.concatenate([leaf[width:], jnp.zeros_like(leaf[:width])])",
        "jnp.roll(leaf, -width, axis=0)",
        "gradients/test_credit.py::test_of_a_linear_transition_every_lag_has_a_closed_form",
        "lags go round from the first step to the last",
    ),
    Mutant(
        "gradients/lags.py",
        "jnp.cumsum(jnp.log(each[::-1]))",
        "jnp.cumsum(jnp.log(each))",
        "gradients/test_jacobians.py::test_bounds_are_bounds",
        "the norms of the first steps bound the last",
    ),
    Mutant(
        "models/recurrence.py",
        "product(epsilon, W.T)",
        "product(epsilon, W)",
        "models/test_recurrence.py::test_the_gradient_by_hand_is_that_of_autodiff[elman]",
        "W_hh not transposed on the way back",
    ),
    Mutant(
        "models/recurrence.py",
        "z_h = self._product(cell.output(carry), W)",
        "z_h = self._product(cell.output(carry), W.T)",
        "models/test_recurrence.py::test_h_is_the_cell_step_by_step",
        "W_hh transposed on the way forward",
    ),
    Mutant(
        "models/recurrence.py",
        "jnp.concatenate([a[None], b[:-1]])",
        "jnp.concatenate([b[:1], b[:-1]])",
        "models/test_recurrence.py::test_the_pass_of_accelerators_is_that_of_a_cpu[lstm]",
        "an accelerator forgets the carry before the first step",
    ),
    Mutant(
        "models/kernels.py",
        "tiled.product_back(epsilon, t + 1, W, j)",
        "tiled.product_back(epsilon, t, W, j)",
        "models/test_kernels.py::test_the_kernels_are_the_recurrence_and_its_gradient[lstm]",
        "a kernel reads ε of its own step",
    ),
    Mutant(
        "models/matmul.py",
        "jnp.argmax(numbers[:, None] == numbers[None], axis=0) == place",
        "place >= 0",
        "models/test_precision.py::test_rows_are_added_up_in_order[many words]",
        "an accelerator counts the row of a token twice",
    ),
    Mutant(
        "models/recurrence.py",
        "delta = jax.tree.map(jnp.add, returned, *to_carry(d_h_t))",
        "delta = returned",
        "models/test_recurrence.py::test_the_gradient_by_hand_is_that_of_autodiff[elman]",
        "δ without the loss of its own step",
    ),
    Mutant(
        "models/cells.py",
        "c = jax.nn.sigmoid(f) * carry.c",
        "c = jax.nn.sigmoid(f + self.forget_bias) * carry.c",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[lstm]",
        "the forget gate's bias added twice",
    ),
    Mutant(
        "models/cells.py",
        "o = o + scale(c, params",
        "o = o + scale(carry.c, params",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[peepholes]",
        "the output gate sees the cell of the step before",
    ),
    Mutant(
        "models/cells.py",
        "n = z_x[:, 2 * H :] + jax.nn.sigmoid(r) * (z_h[:, 2 * H :] + b_hn)",
        "n = z_x[:, 2 * H :] + jax.nn.sigmoid(r) * z_h[:, 2 * H :] + b_hn",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[gru]",
        "the reset gate leaves the bias out",
    ),
    Mutant(
        "models/cells.py",
        "seen = jax.nn.sigmoid(r) * carry\n"
        "        n = z_x[:, 2 * H :] + matmul(seen, W_hh[:, 2 * H :], self.precision)",
        "n = z_x[:, 2 * H :] + jax.nn.sigmoid(r) * matmul(carry, W_hh[:, 2 * H :], self.precision)",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[gru, reset before]",
        "the reset after the product in place of before",
    ),
    Mutant(
        "models/cells.py",
        "(1 - z) * jnp.tanh(n) + z * h",
        "z * jnp.tanh(n) + (1 - z) * h",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[gru]",
        "old and new state of a GRU exchanged",
    ),
    Mutant(
        "models/dropout.py",
        "return jax.random.bernoulli(key, keep, shape) / keep",
        "return jax.random.bernoulli(key, keep, shape).astype(float)",
        "models/test_dropout.py::test_what_is_dropped_is_zero_and_the_mean_stays",
        "dropout does not scale what is left",
    ),
    Mutant(
        "models/dropout.py",
        "Place.BETWEEN + layer",
        "Place.BETWEEN",
        "models/test_dropout.py::test_places_and_layers_draw_masks_of_their_own",
        "one dropout mask for all layers",
    ),
    Mutant(
        "models/convolution.py",
        "return jnp.concatenate([past.swapaxes(0, 1), h])",
        "return jnp.concatenate([h, past.swapaxes(0, 1)])",
        "models/test_convolution.py::"
        "test_the_receptive_field_is_the_formula_and_all_of_it_is_in_the_past[2-3-3-None]",
        "a convolution looks ahead",
    ),
    Mutant(
        "models/convolution.py",
        "tokens=jnp.full((batch_size, steps), -1, jnp.int32)",
        "tokens=jnp.full((batch_size, steps), 0, jnp.int32)",
        "models/test_convolution.py::test_a_convolution_is_the_formula_in_numpy[tanh]",
        "a convolution padded with the first token",
    ),
    Mutant(
        "models/counts.py",
        "return np.bincount(longer, minlength=len(level.token)) + level.first",
        "return level.occurrences",
        "models/test_ngram.py::test_every_probability_is_the_dictionaries[kneser-ney-stream]",
        "Kneser-Ney with plain counts in place of continuations",
    ),
    Mutant(
        "models/counts.py",
        "exact = j - (j + 1) * Y * n[j + 1] / n[j]",
        "exact = j - j * Y * n[j + 1] / n[j]",
        "models/test_ngram.py::test_discounts_are_equation_26",
        "a discount with the factor of another count",
    ),
    Mutant(
        "models/pruning.py",
        "rise = np.expm1(-contexts[level.context] * (moved + others))",
        "rise = np.expm1(-contexts[level.context] * moved)",
        "models/test_pruning.py::"
        "test_the_rise_of_the_perplexity_is_the_relative_entropy_of_the_two_models",
        "entropy pruning that forgets the tokens that back off",
    ),
    Mutant(
        "models/pruning.py",
        "+ np.bincount(level.context[~here], level.alpha[~here], len(level.gamma))",
        "+ np.bincount(level.context[here], level.alpha[here], len(level.gamma)) * 0",
        "models/test_pruning.py::"
        "test_cut_offs_leave_out_what_is_rare_and_the_rest_sums_to_one[kneser-ney]",
        "count cut-offs that lose the probability of what they leave out",
    ),
    Mutant(
        "models/backoff.py",
        'jnp.where(seen, level["alpha"][child], level["gamma"][node] + log_p)',
        'jnp.where(seen, level["alpha"][child], log_p)',
        "exchange/test_arpa.py::test_a_file_is_scored_by_its_own_numbers",
        "a back-off model without back-off weights",
    ),
    Mutant(
        "exchange/arpa_reader.py",
        "context[self.words[END]] = False",
        "context[self.words.get(START, 0)] = False",
        "exchange/test_arpa.py::test_a_file_is_scored_by_its_own_numbers",
        "a sentence's start with the back-off weight of its end",
    ),
    Mutant(
        "data/text.py",
        "yield from skipping(_blocks(file), start + first)",
        "yield from skipping(_blocks(file), first)",
        "data/test_packed.py::"
        "test_a_packed_file_is_its_text_from_any_byte_on_and_in_any_number_of_members[gzip]",
        "a packed text with its byte-order mark",
    ),
    Mutant(
        "models/smoothing.py",
        "lost = discounts(adjusted)[np.minimum(adjusted, 3)]",
        "lost = discounts(counts.levels[-1].occurrences)[np.minimum(adjusted, 3)]",
        "models/test_ngram.py::test_every_probability_is_the_dictionaries[kneser-ney-stream]",
        "Kneser-Ney with the discounts of the highest order",
    ),
    Mutant(
        "models/smoothing.py",
        "return alpha, np.where(total > 0, 1 - weight, 1.0)",
        "return alpha, np.ones(len(total))",
        "models/test_ngram.py::"
        "test_probabilities_sum_to_one_and_nats_are_minus_their_logs[2-interpolated-stream]",
        "interpolation weights that do not sum to one",
    ),
    Mutant(
        "models/mixture.py",
        "jnp.logaddexp(jnp.log(w) + log_a, jnp.log1p(-w) + log_b)",
        "jnp.logaddexp(jnp.log1p(-w) + log_a, jnp.log(w) + log_b)",
        "models/test_mixture.py::test_a_mixture_is_the_weighted_sum_of_probabilities[window-0.3]",
        "a mixture's weights exchanged",
    ),
    Mutant(
        "models/sampled.py",
        "        z -= log_count(drawn)[None]\n        z_y -= log_count(y)\n",
        "",
        "models/test_readouts.py::"
        "test_sampled_softmax_is_the_softmax_over_the_target_and_the_drawn_others[True]",
        "sampled softmax without its correction",
    ),
    Mutant(
        "models/sampled.py",
        "        z = jnp.where(drawn[None] == y[:, None], -jnp.inf, z)\n",
        "",
        "models/test_readouts.py::"
        "test_sampled_softmax_is_the_softmax_over_the_target_and_the_drawn_others[True]",
        "the target counted twice in the sampled softmax",
    ),
    Mutant(
        "models/adaptive.py",
        "here = targets - self.cutoffs[i]",
        "here = targets - self.cutoffs[0]",
        "models/test_readouts.py::test_adaptive_nats_and_their_gradient_are_those_of_the_logits[4]",
        "tokens of a tail cluster counted from the first cutoff",
    ),
    Mutant(
        "models/fused.py",
        "nats += jnp.sum(jnp.where(mask, log_sum - sharp * z_y, 0))",
        "nats += jnp.sum(log_sum - sharp * z_y)",
        "models/test_fused.py::"
        "test_without_smoothing_and_bias_it_is_the_nats_under_the_mask[13x11]",
        "padding counted in the loss",
    ),
    Mutant(
        "models/base.py",
        "return jnp.where(start.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)",
        "return jnp.where(jnp.any(start), new, old)",
        "models/test_models.py::test_restart_makes_the_carry_of_chosen_lanes_fresh[tanh]",
        "one text that starts resets all carries",
    ),
    Mutant(
        "models/blocks.py",
        'for place, w in enumerate(params["w"]):',
        'for place, w in enumerate(params["w"][::-1]):',
        "models/test_blocks.py::"
        "test_a_stack_of_blocks_is_its_formula_in_numpy_however_it_is_read[mlp]",
        "the newest step has the oldest step's weights",
    ),
    Mutant(
        "models/blocks.py",
        "carry.recurrence, u, hook, tap, kept)",
        "carry.recurrence, u, None, tap, kept)",
        "models/test_blocks.py::test_hooks_act_on_the_carry_of_the_recurrence",
        "a block drops the hook of the recurrence",
    ),
    Mutant(
        "models/mogrifier.py",
        "h = self._gate(own, x) * h",
        "h = self._gate(own, x) * jnp.ones_like(h)",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[mogrifier]",
        "a Mogrifier's round reads the gate alone, not the state that it gates",
    ),
    Mutant(
        "models/adaptive_embedding.py",
        "here = (place >= 0) & (place < size)",
        "here = place >= 0",
        "models/test_embedding.py::"
        "test_the_vectors_are_the_formula_in_numpy_however_many_are_asked_for[adaptive]",
        "a frequent token also has a vector of the rarer bands",
    ),
    Mutant(
        "models/character_embedding.py",
        "places = c.shape[-2] - w + 1",
        "places = max(1, c.shape[-2] - w)",
        "models/test_embedding.py::"
        "test_the_vectors_are_the_formula_in_numpy_however_many_are_asked_for[characters]",
        "the filters never read the last place of a word",
    ),
    Mutant(
        "data/characters.py",
        "list(word[:longest])",
        "list(word)",
        "models/test_embedding.py::test_a_vocabulary_gives_the_characters_of_its_words",
        "long words are not cut",
    ),
    Mutant(
        "models/linear_recurrences.py",
        "jnp.sqrt(rest) * jax.nn.sigmoid(i)",
        "rest * jax.nn.sigmoid(i)",
        "models/test_cells.py::test_a_cell_is_its_paper_s_formula_in_numpy[rglru]",
        "1 - a² in place of its root",
    ),
    Mutant(
        "models/xlstm.py",
        "m = jnp.maximum(kept, i)",
        "m = kept",
        "models/test_cells.py::test_the_exponential_gates_of_the_xlstm_do_not_overflow[10000.0]",
        "exponential gates without a stabiliser",
    ),
    Mutant(
        "models/rnn.py",
        "h = seen + new if self.residual and number else new",
        "h = h + new if self.residual and number else new",
        "models/test_dropout.py::test_each_place_of_a_two_layer_rnn_is_masked_once[residual]",
        "residual connections around dropout",
    ),
    Mutant(
        "scoring/score.py",
        "math.inf if nats_per_token > 700 else math.exp(nats_per_token)",
        "math.inf if nats_per_token > 700 else 2**nats_per_token",
        "training/test_training.py::test_evaluation_is_its_definition_one_token_after_another",
        "perplexity of base 2",
    ),
    Mutant(
        "scoring/score.py",
        "return _in_bits(self._nats_per(self.characters))",
        "return _in_bits(self._nats_per(self.tokens))",
        "scoring/test_unknown.py::test_bits_are_those_of_all_characters_where_every_token_is_known",
        "bits per character divided by tokens",
    ),
    Mutant(
        "scoring/score.py",
        "batch.start & (place == 0)",
        "batch.start",
        "training/test_training.py::test_sentences_are_judged_each_by_itself_and_whole",
        "a sentence longer than a chunk starts afresh",
    ),
    Mutant(
        "training/optimizer.py",
        "** (1 - way)",
        "** way",
        "training/test_optimizer.py::test_a_range_test_goes_up_by_equal_factors",
        "a range test goes down",
    ),
    Mutant(
        "data/sizes.py",
        "self._before = white[-2:]",
        "self._before = white[-1:]",
        "data/test_vocabulary.py::"
        "test_tokens_characters_and_unknowns_do_not_depend_on_where_blocks_end[char]",
        "a word at the seam of two parts is lost",
    ),
    Mutant(
        "scoring/score.py",
        "        carry, nats = read(params, carry, batch)\n        yield",
        "        _, nats = read(params, carry, batch)\n        yield",
        "training/test_training.py::test_evaluation_is_its_definition_one_token_after_another",
        "validation forgets the chunk before",
    ),
    Mutant(
        "scoring/cache.py",
        "(place < kept + time)",
        "(place <= kept + time)",
        "scoring/test_scoring.py::test_a_cache_is_its_formula_token_by_token",
        "the cache holds the token that it predicts",
    ),
    Mutant(
        "scoring/cache.py",
        "jnp.logaddexp(jnp.log1p(-state.weight) - nats, jnp.log(state.weight) + log_p)",
        "jnp.logaddexp(-nats, jnp.log(state.weight) + log_p)",
        "scoring/test_scoring.py::test_a_cache_is_its_formula_token_by_token",
        "the cache's weight added, not shared",
    ),
    Mutant(
        "scoring/dynamic.py",
        "return _DynamicState(params, carry, state.rule), nats",
        "return _DynamicState(params, carry, state.rule), mean_nats(params)[1][1]",
        "scoring/test_scoring.py::test_dynamic_evaluation_scores_a_chunk_before_it_learns_from_it",
        "dynamic evaluation learns before it scores",
    ),
    Mutant(
        "scoring/dynamic.py",
        "return now - rate * g + pull * (first - now)",
        "return now - rate * g - pull * (first - now)",
        "scoring/test_scoring.py::"
        "test_dynamic_evaluation_is_the_paper_s_rule_with_the_estimator_s_gradient[sgd]",
        "dynamic evaluation decays away from the trained weights",
    ),
    Mutant(
        "scoring/blocks.py",
        "before, start = int(piece.tokens[-1]), False",
        "before, start = int(piece.tokens[0]), False",
        "scoring/test_scoring.py::test_a_text_in_blocks_and_chunks_of_any_size_is_the_text_at_once",
        "a chunk begins with a wrong token",
    ),
    Mutant(
        "scoring/blocks.py",
        "x[0] = np.where(start, boundary, x[0])",
        "x[0] = boundary",
        "scoring/test_scoring.py::test_each_line_is_scored_as_if_nothing_had_come_before_it",
        "a long line begins anew in each batch",
    ),
    Mutant(
        "generation/drawing.py",
        "among &= (before < cuts.top_p) | (cuts.top_p >= 1)",
        "among &= (before <= cuts.top_p) | (cuts.top_p >= 1)",
        "generation/test_generation.py::test_the_token_that_reaches_top_p_exactly_is_the_last",
        "top-p keeps a token too many where the sum is exact",
    ),
    Mutant(
        "generation/drawing.py",
        "among &= p >= cuts.min_p * p[..., :1]",
        "among &= p >= cuts.min_p",
        "generation/test_generation.py::test_cuts_are_the_cuts_one_after_another",
        "min-p not relative to the likeliest token",
    ),
    Mutant(
        "generation/drawing.py",
        "return State(carry, token), (token, z)",
        "return State(carry, drawn), (token, z)",
        "generation/test_generation.py::test_temperature_zero_takes_the_likeliest_token_each_time",
        "the prompt is not read",
    ),
    Mutant(
        "generation/beam.py",
        "            more = jnp.where(over[:, None], only[None], more)\n",
        "",
        "generation/test_generation.py::"
        "test_a_beam_that_holds_all_texts_finds_the_likeliest[at once]",
        "a beam goes on after the stop token",
    ),
    Mutant(
        "generation/beam.py",
        "            carry = jax.tree.map(lambda leaf: leaf[parent], carry)\n",
        "",
        "generation/test_generation.py::test_a_beam_that_holds_all_texts_finds_the_likeliest[none]",
        "a beam's hypotheses keep the states of others",
    ),
    Mutant(
        "generation/sample.py",
        "Sample(text, drawn[:span], own[:span], stop)",
        "Sample(text, drawn, own, stop)",
        "generation/test_generation.py::test_a_stop_token_ends_a_sample_and_is_no_part_of_it",
        "tokens after the stop token are counted",
    ),
    Mutant(
        "generation/stops.py",
        "for n in range(1, len(string)) if text.endswith(string[:n])",
        "for n in range(2, len(string)) if text.endswith(string[:n])",
        "generation/test_generation.py::"
        "test_a_beginning_of_a_stop_is_held_back_until_more_is_known",
        "the first character of a stop is shown",
    ),
    Mutant(
        "generation/scheduled_sampling.py",
        "jnp.where(replaced, own.astype(true.dtype), true)",
        "jnp.where(replaced, true, own.astype(true.dtype))",
        "generation/test_exposure_bias.py::test_inputs_are_replaced_at_the_rate_that_is_asked_for",
        "scheduled sampling with the opposite share",
    ),
    Mutant(
        "sweeps/vmapped_runs.py",
        "            *configs,\n            *[configs[0]] * spare,",
        "            *[configs[0]] * self.count,",
        "sweeps/test_lanes.py::test_a_lane_is_a_run",
        "all lanes train with the numbers and the seed of the first",
    ),
    Mutant(
        "sweeps/vmapped_runs.py",
        "lambda leaf: leaf[place], states)",
        "lambda leaf: leaf[0], states)",
        "sweeps/test_lanes.py::test_a_lane_is_a_run",
        "every run takes the state of the first lane",
    ),
    Mutant(
        "sweeps/vmapped_runs.py",
        "lambda new, old: jnp.where(asked, new, old), new, state)",
        "lambda new, old: new, new, state)",
        "sweeps/test_lanes.py::test_a_change_of_some_lanes_changes_no_other",
        "a record or a validation of some lanes changes all",
    ),
    Mutant(
        "sweeps/evaluation.py",
        "loss.plus(nats[runs.place(run)][mask])",
        "loss.plus(nats[0][mask])",
        "sweeps/test_lanes.py::test_the_loss_of_a_lane_is_that_of_its_parameters_alone[3]",
        "every run takes the loss of the first lane",
    ),
    Mutant(
        "sweeps/halving.py",
        "return {name for loss, name in best if name and math.isfinite(loss)}",
        "return {name for loss, name in best if name}",
        "sweeps/test_halving.py::test_a_trial_without_a_finite_loss_never_goes_on",
        "a trial that diverged goes on",
    ),
    Mutant(
        "sweeps/halving.py",
        "best = survivors(new, self.factor, list(come.values()))",
        "best = survivors(new, self.factor)",
        "sweeps/test_halving.py::test_trials_that_come_later_are_compared_with_those_before",
        "late trials not compared with those before",
    ),
    Mutant(
        "sweeps/halving.py",
        "                files.to_disk(file)\n",
        "",
        "sweeps/test_halving.py::test_a_judgement_is_on_the_disk_before_it_is_told",
        "a judgement told before it is on the disk",
    ),
    Mutant(
        "sweeps/results.py",
        'return out, math.inf if best is None else best, row["number"]',
        'return False, math.inf if best is None else best, row["number"]',
        "sweeps/test_sweep.py::test_what_went_wrong_comes_last_however_low_its_loss",
        "a diverged trial may be the best",
    ),
    Mutant(
        "sweeps/results.py",
        'over = [row for row in rows if row["status"] == "finished"]',
        'over = [row for row in rows if row["status"]]',
        "sweeps/test_sweep.py::test_seeds_are_folded_into_their_mean_and_standard_error",
        "results of failed trials counted in the mean",
    ),
    Mutant(
        "sweeps/results.py",
        "np.std(values, ddof=1) / math.sqrt(len(values))",
        "np.std(values) / math.sqrt(len(values))",
        "sweeps/test_sweep.py::test_seeds_are_folded_into_their_mean_and_standard_error",
        "a standard error of n in place of n - 1",
    ),
    Mutant(
        "sweeps/group.py",
        "for run, trial in enumerate(works)}",
        "for run, trial in enumerate(reversed(works))}",
        "sweeps/test_lanes.py::test_a_group_is_its_runs",
        "trials take the states of others",
    ),
    Mutant(
        "sweeps/summaries.py",
        "sum(value * made for value, made in zip(values, updates, strict=True)) / ends[-1]",
        "sum(values) / len(values)",
        "report/test_map.py::test_a_trials_records_come_to_means_over_all_of_its_updates",
        "the mean of records of unequal length",
    ),
    Mutant(
        "data/batches.py",
        "columns[0, column] = tokens[first - 1] if column else boundary",
        "columns[0, column] = boundary",
        "data/test_batches.py::"
        "test_every_token_of_a_stream_is_a_target_once_an_epoch_after_the_one_before_it[23-3-4]",
        "every stream begins at a boundary",
    ),
    Mutant(
        "data/batches.py",
        "start = jnp.broadcast_to(in_epoch == 0, source.lengths.shape)",
        "start = jnp.broadcast_to(step == 0, source.lengths.shape)",
        "data/test_batches.py::"
        "test_the_carry_is_kept_between_chunks_and_reset_where_the_stream_starts_again[23-3"
        "-4]",
        "the carry kept from the end of an epoch",
    ),
    Mutant(
        "data/batches.py",
        "mask = jnp.arange(length)[:, None] < lengths[None, :]",
        "mask = jnp.arange(length)[:, None] <= lengths[None, :]",
        "data/test_batches.py::"
        "test_every_token_of_the_sentences_is_a_target_once_an_epoch[False-2-4-ended]",
        "a target after the end of a sentence",
    ),
    Mutant(
        "data/batches.py",
        "pieces = -(-spans // length)",
        "pieces = np.minimum(spans, 1)",
        "data/test_batches.py::"
        "test_a_row_is_a_line_cut_every_t_tokens_in_the_order_of_the_text[2-4-ended]",
        "the rest of a long sentence lost",
    ),
    Mutant(
        "data/windows.py",
        "start = number * self._each + low - 1  #",
        "start = number * self._each + low  #",
        "data/test_windows.py::"
        "test_a_window_gives_the_batches_that_the_whole_streams_give[30-2-4-9]",
        "a window begins a token late",
    ),
    Mutant(
        "data/vocabulary.py",
        '    if ended and text and not text.endswith("\\n"):\n',
        "    if False:\n",
        "data/test_vocabulary.py::test_lines_end_in_eos_blank_ones_and_an_unfinished_last_one_too",
        "no end of the last line without a newline",
    ),
    Mutant(
        "data/text.py",
        "        held.append(part[cut:])\n",
        "        if part[cut:]:\n            yield part[cut:]\n",
        "data/test_vocabulary.py::"
        "test_tokens_characters_and_unknowns_do_not_depend_on_where_blocks_end[word]",
        "a word cut in two at the end of a block",
    ),
    Mutant(
        "data/encoding.py",
        "count >= min_count and",
        "count > min_count and",
        "data/test_vocabulary.py::"
        "test_the_vocabulary_is_the_count_of_tokens_cut_where_the_limits_say[word]",
        "a token of the least count unknown",
    ),
    Mutant(
        "data/text.py",
        "return position + found.end()",
        "return position + found.start()",
        "data/test_text.py::"
        "test_a_text_is_cut_at_the_first_whole_character_or_line_or_word_past_each_mark[wor"
        "d-ways2]",
        "a split ends before the last character of a line",
    ),
    Mutant(
        "data/corpus.py",
        'return all(digests[split] == sizes[split]["sha256"] for split in SPLITS)',
        "return all(digests[split] for split in SPLITS)",
        "data/test_corpus.py::test_a_damaged_cache_is_named_and_built_anew[damage1]",
        "damaged tokens of the cache used",
    ),
    Mutant(
        "scoring/parallel.py",
        "nats = nats.at[place].set(",
        "nats = nats.at[place].add(",
        "house/test_lowering.py::test_a_program_lowers_for_a_gpu_and_a_tpu"
        "[score in segments, char lstm 512]",
        "scores added up in an order of the device's own",
    ),
    Mutant(
        "training/step.py",
        "grad_norm = norm(grads)",
        "grad_norm = jax.pure_callback(lambda x: x, jax.typeof(loss), norm(grads))",
        "house/test_lowering.py::test_a_program_lowers_for_a_gpu_and_a_tpu[update, char lstm 512]",
        "every update calls back into Python",
    ),
    Mutant(
        "training/step.py",
        "scaled = rate * jnp.max(",
        "scaled = rate + 0 * jnp.max(",
        "training/test_step.py::test_a_chunk_of_a_random_length_has_its_share_of_the_rate",
        "chunks of random lengths with the same rate",
    ),
    Mutant(
        "models/held.py",
        "share * old + (1 - share) * new",
        "(share + old) * 0 + new",
        "models/test_recurrence.py::"
        "test_steps_without_a_token_leave_the_carry_and_the_gradient_as_they_are",
        "a carry that moves after the end of its chunk",
    ),
    Mutant(
        "models/dropout.py",
        "return jnp.broadcast_to(rate, (steps, *shape))",
        "return jnp.zeros((steps, *shape))",
        "models/test_dropout.py::test_zoneout_keeps_units_in_training_and_their_share_in_use",
        "no zoneout in use",
    ),
    Mutant(
        "models/neural.py",
        "(jnp.sum(mask) / jnp.maximum(jnp.sum(pairs), 1))",
        "1",
        "models/test_dropout.py::"
        "test_penalties_are_the_mean_squares_of_what_the_readout_sees_and_of_its_changes",
        "the penalty on changes divided by the tokens",
    ),
    Mutant(
        "training/step.py",
        "params = replaced(params, state.params, config.model.freeze)",
        "params = replaced(params, state.params, ())",
        "training/test_averaging.py::test_frozen_vectors_stay_and_others_move",
        "frozen parameters that decay",
    ),
)


def main(words: list[str]) -> int:
    """Plant the chosen bugs one by one; return the exit status."""
    for word in words:
        if not chosen([word]):
            print(f"no path or description of a bug holds {word!r}", file=sys.stderr)
            return 2
    mutants = chosen(words)
    wrong = [line for mutant in mutants for line in misfits(mutant)]
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    import conftest  # noqa: F401  finds the flags of XLA once for all processes

    with tempfile.TemporaryDirectory(prefix="lm_jax-mutants-") as folder:
        copy(Path(folder))
        began = time.monotonic()
        status, output = run(folder, *sorted({mutant.test for mutant in mutants}))
        if status:
            print(f"{output}\nwithout a bug the tests must pass", file=sys.stderr)
            return 1
        print(f"without a bug the tests pass ({time.monotonic() - began:.0f} s)", flush=True)
        found = [planted(mutant, Path(folder)) for mutant in mutants]
    print(f"{found.count('caught')} of {len(found)} caught ({time.monotonic() - began:.0f} s)")
    return int(set(found) != {"caught"})


def chosen(words: list[str]) -> list[Mutant]:
    """The mutants whose path or bug holds one of the words; all without words."""
    known = [(mutant, f"{mutant.path} {mutant.bug}".lower()) for mutant in MUTANTS]
    return [m for m, text in known if not words or any(word.lower() in text for word in words)]


def misfits(mutant: Mutant) -> list[str]:
    """A line if the old text is not in the file exactly once."""
    count = (ROOT / "lm_jax" / mutant.path).read_text().count(mutant.old)
    return [] if count == 1 else [f"lm_jax/{mutant.path} holds {count} times: {mutant.old!r}"]


def copy(folder: Path) -> None:
    """Copy the files of the repository, also those not yet committed."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())


def planted(mutant: Mutant, folder: Path) -> str:
    """Run the test of a mutant under its bug; print and return what came of it."""
    path, began = folder / "lm_jax" / mutant.path, time.monotonic()
    sound = path.read_text()
    path.write_text(sound.replace(mutant.old, mutant.new))
    status, output = run(str(folder), mutant.test)
    path.write_text(sound)
    failed = f"FAILED tests/{mutant.test}"
    line = next((line for line in output.splitlines() if line.startswith(failed)), "")
    reason = line[len(failed) :].lstrip(" -")
    if status == 1 and line and not reason.startswith(BROKEN):
        result = "caught"
    else:
        result = "SURVIVED" if status == 0 else "ERROR"
    seconds = time.monotonic() - began
    print(f"{result:8} {seconds:3.0f} s  {mutant.path}: {mutant.bug}", flush=True)
    if result == "ERROR":
        told = [line for line in output.splitlines() if line.startswith(("E ", "ERROR"))]
        print(reason or "\n".join(told[-3:]) or output[-500:], flush=True)
    return result


def run(folder: str, *tests: str) -> tuple[int, str]:
    """The exit status and the output of pytest for some tests."""
    options = ["-n", "0", "-m", "", "-x", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
    # pytest leaves the reason out of a short line; the sources of the copy are compiled once.
    environment = {**os.environ, "COLUMNS": "300", "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
