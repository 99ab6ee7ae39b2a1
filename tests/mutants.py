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
BROKEN = ("ImportError", "NameError", "SyntaxError", "ModuleNotFoundError", "UnboundLocalError")
"""Errors of a program that does not run."""


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
        "training/test_training.py::"
        "test_patience_ends_a_run_and_plateaus_cut_the_learning_rate",
        "plateau cut a validation late",
    ),
    Mutant(
        "training/trainer.py",
        "int(self.state.early_stopping.since_best) >= train.patience",
        "int(self.state.early_stopping.since_best) > train.patience",
        "training/test_training.py::"
        "test_patience_ends_a_run_and_plateaus_cut_the_learning_rate",
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
        "jax.random.fold_in(key, epoch)",
        "key",
        "data/test_batches.py::"
        "test_the_order_of_sentences_is_another_one_in_each_epoch_and_for_each_key",
        "sentences in the same order in each epoch",
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
        print(reason or output, flush=True)
    return result


def run(folder: str, *tests: str) -> tuple[int, str]:
    """The exit status and the output of pytest for some tests."""
    options = ["-n", "0", "-m", "", "-x", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
    environment = {**os.environ, "COLUMNS": "300"}  # of a short line pytest leaves out the reason
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
