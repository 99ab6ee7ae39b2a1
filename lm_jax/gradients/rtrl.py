"""Real-time recurrent learning: the gradient is carried forward in time with the state.

    s_t = F(θ, s_{t-1}, x_t),   P_t = ∂s_t/∂θ = (∂F/∂s) P_{t-1} + ∂F/∂θ

P_t is the *influence* of the parameters on the state. P_t is known once token t has been read, and
gives the gradient of the loss at t, ∂J_t/∂θ = (∂J_t/∂s_t) P_t, without any record of earlier steps
(Williams & Zipser, 1989). Parameters of the readout alone have no influence on the state; their
gradient comes directly from the loss of each step.

The influence is carried from batch to batch. The gradient therefore reaches back to the start of
the text, further than BPTT over a chunk. The part from before the batch was computed with the
parameters of that time.

Letters: B sequences; n numbers in the state of a sequence, all layers and leaves together; P
numbers in the parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from lm_jax.data.batches import Batch
from lm_jax.gradients.bptt import Estimate, Estimator, Info, per_token
from lm_jax.gradients.example import SingleExample, check_no_dropout, single_example
from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params, restart
from lm_jax.models.rnn import RNNModel
from lm_jax.models.transition import KEY
from lm_jax.settings import UserError


class Influenced(NamedTuple):
    """State of RTRL between steps."""

    carry: Carry
    """The model's carry."""
    influence: Params
    """∂s/∂θ: leaves [B, n, *leaf], for all parameters except the readout's."""


def rtrl(model: LanguageModel) -> Estimator:
    """Exact real-time recurrent learning (Williams & Zipser, 1989).

    Memory O(B n P) for any T, and time O(B n² P) per step: for small models. The carry may also be
    the model's own carry; the influence is then zero at first, and the gradient of the batch is the
    gradient of full BPTT.

    Args:
      model: a recurrent language model, without dropout.

    Raises:
      UserError: the model has no recurrent state, has a state that is not floating-point, or has
        dropout.
    """
    example = floating_example(model)
    _, unravel = ravel_pytree(example.carry)

    def init_carry(batch_size: int) -> Influenced:
        n = optax.tree.size(example.carry)
        shapes = recurrent(jax.eval_shape(model.init, KEY))
        zeros = jax.tree.map(lambda leaf: jnp.zeros((batch_size, n, *leaf.shape)), shapes)
        return Influenced(model.init_carry(batch_size), zeros)

    def step(params: Params, memory: Influenced, x: Array, y: Array, mask: Array) -> Stepped:
        def transition(theta: Params, s: Array, x: Array) -> tuple[Array, Array]:
            after, _ = ravel_pytree(example.step({**params, **theta}, unravel(s), x))
            return after, after

        def advance(influence: Params, s: Array, x: Array) -> tuple[Array, Params]:
            jacobians = jax.jacrev(transition, argnums=(0, 1), has_aux=True)
            (immediate, J), after = jacobians(recurrent(params), s, x)
            travelled = jax.tree.map(
                lambda P: jnp.tensordot(J, P, 1, precision="highest"), influence
            )
            return after, jax.tree.map(jnp.add, travelled, immediate)

        s, influence = jax.vmap(advance)(memory.influence, raveled(memory.carry), x)
        carry = jax.vmap(unravel)(s)
        nats, grads, d_carry = at_output(model, params, carry, y, mask)
        d_s = raveled(d_carry)
        through = jax.tree.map(lambda P: jnp.tensordot(d_s, P, 2, precision="highest"), influence)
        return Influenced(carry, influence), nats, added(grads, through)

    return online(model, Influenced, init_carry, step)


Stepped = tuple[Any, Array, Params]
"""(memory after a step, nats of the step's targets, the step's part of the gradient)."""


def online(
    model: LanguageModel,
    kind: type,
    init_carry: Callable[[int], Any],
    step: Callable[[Params, Any, Array, Array, Array], Stepped],
    **more: Any,
) -> Estimator:
    """Estimator that needs the present step only.

    Args:
      model: the language model.
      kind: class of the memory. Its field `carry` is the model's carry; all other fields are zero
        before anything is read. A carry of any other class is taken as the model's own carry.
      init_carry: batch_size -> initial memory.
      step: (params, memory, x[B], y[B], mask[B]) -> `Stepped`.
      more: further fields of the `Estimator`.

    Raises:
      UserError: the model has dropout.
    """
    check_no_dropout(model)

    def estimate(params: Params, carry: Any, batch: Batch) -> Estimate:
        memory = (
            carry if isinstance(carry, kind) else init_carry(batch.x.shape[1])._replace(carry=carry)
        )
        memory = started(model, memory, batch.start)

        def add_step(sums: tuple, at_t: tuple) -> tuple[tuple, None]:
            memory, nats, grads = sums
            memory, more_nats, more_grads = step(params, memory, *at_t)
            return (memory, nats + more_nats, jax.tree.map(jnp.add, grads, more_grads)), None

        zero = jnp.zeros(()), optax.tree.zeros_like(params)
        over = batch.x, batch.y, batch.mask
        (memory, nats, grads), _ = jax.lax.scan(add_step, (memory, *zero), over)
        loss, grads = per_token(nats, grads, batch.mask)
        return loss, memory, grads, Info()

    def model_carry(params: Params, carry: Any) -> Carry:
        return carry.carry if isinstance(carry, kind) else carry

    return Estimator(init_carry, estimate, model_carry, **more)


def started(model: LanguageModel, memory: Any, start: Bool[Array, " B"]) -> Any:
    """Reset the memory of the sequences whose text starts here."""

    def forgotten(leaf: Array) -> Array:
        if not leaf.ndim:  # belongs to no sequence, such as the number of draws
            return leaf
        return jnp.where(start.reshape((-1,) + (1,) * (leaf.ndim - 1)), 0, leaf)

    kept = jax.tree.map(forgotten, memory._replace(carry=None))
    return kept._replace(carry=restart(model, memory.carry, start))


def at_output(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    y: Array,
    mask: Bool[Array, " B"],
) -> tuple[Float[Array, ""], Params, Carry]:
    """The loss of a step in nats, and its gradients with respect to parameters and carry."""
    assert isinstance(model, RNNModel)  # checked by `single_example`

    def nats(params: Params, carry: Carry) -> Array:
        return model.loss(params, model.output(carry)[None], y[None], mask[None])

    value, (grads, d_carry) = jax.value_and_grad(nats, argnums=(0, 1))(params, carry)
    return value, grads, d_carry


def recurrent(params: Params) -> Params:
    """The parameters of the transition: all except the readout's."""
    return {name: part for name, part in params.items() if name != "readout"}


def added(grads: Params, through: Params) -> Params:
    """Add the part of the gradient that came through the state."""
    return {**grads, **jax.tree.map(jnp.add, recurrent(grads), through)}


def raveled(carry: Carry) -> Float[Array, "B n"]:
    """The state of each sequence as a vector."""
    return jax.vmap(lambda own: ravel_pytree(own)[0])(carry)


def floating_example(model: LanguageModel) -> SingleExample:
    """The transition and the loss of a model whose state is floating-point.

    Raises:
      UserError: a part of the state is not floating-point; and as `single_example`.
    """
    example = single_example(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(example.carry):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jax.tree_util.keystr(path)
            raise UserError(f"carry{where} is of type {leaf.dtype}: it has no derivative")
    return example
