"""Dynamic evaluation: the model continues to learn from the text during scoring.

Each chunk is first scored with the present parameters and then used for an update (Krause et al.,
2018, section 5). Let θ_g be the trained parameters, θ the present parameters, and g the gradient of
the chunk's mean nats per token, backpropagated to the beginning of the chunk. The rules are

    SGD    θ ← θ - η g + λ (θ_g - θ)
    RMS    θ ← θ - η g / (√MS + ε) + min(λ R, 1) (θ_g - θ),   R = √MS / avg(√MS)

with MS the mean of each weight's squared gradient over batches of the training text. As in the
authors' program (github.com/benkrause/dynamic-evaluation, dynamiceval.py), a gradient in MS is that
of the mean loss over 100 sequences; ε is added to the root; avg takes the mean of each parameter
array and then the mean over the arrays; and no weight is pulled beyond the trained value. The
program stores only √MS, because MS overflows if gradients explode.

λ = 0 and η = 0 is the unchanged model.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from lm_jax.data.batches import Batch, Streams, batch_at, steps_per_epoch, streams
from lm_jax.gradients import full_bptt
from lm_jax.gradients.validation import check_floating
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params
from lm_jax.scoring.scorer import Scorer
from lm_jax.settings import UserError

BATCH_SIZE = 100  # sequences in a batch of the training text, for the mean squared gradient
BATCHES = 500
LONGEST = 100_000  # tokens of a chunk


class Rule(NamedTuple):
    """Update rule; each field has the structure of the parameters, with full or scalar leaves."""

    rate: Params
    """Factor of the gradient, in weight² per nat."""
    pull: Params
    """Factor of the difference to the trained value, from 0 to 1."""


class _DynamicState(NamedTuple):
    params: Params
    carry: Carry
    rule: Rule


def sgd(params: Params, *, learning_rate: float, decay: float = 0.0) -> Rule:
    """The rule of plain gradient descent, with decay towards the trained parameters.

    Args:
      params: the trained parameters.
      learning_rate: η >= 0.
      decay: λ, from 0 to 1.

    Raises:
      UserError: a number is out of range.
    """
    _check(learning_rate, decay)
    return Rule(
        jax.tree.map(lambda _: jnp.asarray(learning_rate, float), params),
        jax.tree.map(lambda _: jnp.asarray(decay, float), params),
    )


def rms(
    root_mean_square: Params, *, learning_rate: float, decay: float = 0.0, epsilon: float = 2e-5
) -> Rule:
    """The RMS rule, which divides the gradient by the root of the mean squared gradient.

    Args:
      root_mean_square: √MS, shaped as the parameters (`root_mean_square_gradient`).
      learning_rate: η >= 0.
      decay: λ, from 0 to 1.
      epsilon: ε > 0, in nats per unit of weight.

    Raises:
      UserError: a number is out of range, or √MS has a number that is not finite.
    """
    _check(learning_rate, decay)
    if not 0 < epsilon < float("inf"):
        raise UserError(f"dynamic-epsilon={epsilon} must be above 0, and finite")
    leaves = [leaf for leaf in jax.tree.leaves(root_mean_square) if leaf.size]
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise UserError(
            "the gradient on the training text is beyond the largest float: --dynamic=rms has "
            "nothing to divide by"
        )
    largest = functools.reduce(jnp.maximum, map(jnp.max, leaves))
    largest = jnp.where(largest > 0, largest, 1)  # without scaling, the means might overflow
    average = sum(jnp.mean(leaf / largest) for leaf in leaves) / len(leaves)

    def pull(leaf: ArrayLike) -> Array:
        return jnp.minimum(decay * (leaf / largest) / jnp.where(average > 0, average, 1), 1)

    return Rule(
        jax.tree.map(lambda leaf: learning_rate / (leaf + epsilon), root_mean_square),
        jax.tree.map(pull, root_mean_square),
    )


def dynamic(model: LanguageModel, rule: Rule, length: int) -> Scorer:
    """A scorer with an update of the parameters after each scored chunk.

    Args:
      model: the language model.
      rule: from `sgd` or `rms`.
      length: T, tokens of a chunk, at most 100,000.

    Raises:
      UserError: the length is out of range; or, at the start of scoring, the parameters are not all
        floating-point numbers.
    """
    if not 1 <= length <= LONGEST:
        raise UserError(f"dynamic-length={length} must be from 1 to {LONGEST:,}")

    def init(params: Params, batch_size: int) -> _DynamicState:
        check_floating(params)
        # Copied, because the state is consumed.
        params, rule_now = jax.tree.map(jnp.copy, (params, rule))
        return _DynamicState(params, model.init_carry(batch_size), rule_now)

    return Scorer(init, _learner(model), length)


@functools.lru_cache(maxsize=16)
def _learner(
    model: LanguageModel,
) -> Callable[[Params, _DynamicState, Batch], tuple[_DynamicState, Array]]:
    def read(trained: Params, state: _DynamicState, batch: Batch) -> tuple[_DynamicState, Array]:
        def mean_nats(params: Params) -> tuple[Array, tuple[Carry, Array]]:
            carry, h = model.hidden(params, restart(model, state.carry, batch.start), batch.x)
            nats = model.nats(params, h, batch.y)
            mean = jnp.sum(jnp.where(batch.mask, nats, 0)) / jnp.maximum(jnp.sum(batch.mask), 1)
            return mean, (carry, nats)

        grads, (carry, nats) = jax.grad(mean_nats, has_aux=True)(state.params)

        def learned(now: Array, g: Array, first: Array, rate: Array, pull: Array) -> Array:
            return now - rate * g + pull * (first - now)

        params = jax.tree.map(learned, state.params, grads, trained, *state.rule)
        return _DynamicState(params, carry, state.rule), nats

    return jax.jit(read, donate_argnums=1)


def root_mean_square_gradient(
    model: LanguageModel,
    params: Params,
    tokens: np.ndarray,
    boundary: int,
    *,
    length: int,
    batch_size: int = BATCH_SIZE,
) -> Params:
    """√MS, the root mean square over batches of each weight's gradient, shaped as the parameters.

    Args:
      model, params: a trained model.
      tokens: [N], the tokens of the training text.
      boundary: the token before the text.
      length: T, tokens of each sequence in a batch, as in the text to be scored.
      batch_size: number of sequences in a batch; fewer for a short text.
    """
    check_floating(params)
    batch_size = max(1, min(batch_size, len(tokens) // length))
    source = streams(np.asarray(tokens[: BATCHES * batch_size * length]), boundary, batch_size)
    return _roots(model, length)(params, source, steps_per_epoch(source, length))


@functools.lru_cache(maxsize=16)
def _roots(model: LanguageModel, length: int) -> Callable[..., Params]:
    estimator = full_bptt(model)

    def program(params: Params, source: Streams, steps: Int[Array, ""]) -> Params:
        def add(step: Array, state: tuple) -> tuple:
            carry, roots = state
            _, carry, grads, _ = estimator(params, carry, batch_at(source, step, length))
            return carry, jax.tree.map(jnp.hypot, roots, grads)

        carry = estimator.init_carry(source.lengths.shape[0])
        zero = optax.tree.zeros_like(params)
        _, roots = jax.lax.fori_loop(0, steps, add, (carry, zero))
        return jax.tree.map(lambda root: root / jnp.sqrt(steps), roots)

    return jax.jit(program)


def _check(learning_rate: float, decay: float) -> None:
    if not 0 <= learning_rate < float("inf"):
        raise UserError(f"dynamic-rate={learning_rate} must be 0 or more, and finite")
    if not 0 <= decay <= 1:
        raise UserError(f"dynamic-decay={decay} must be from 0 to 1")
