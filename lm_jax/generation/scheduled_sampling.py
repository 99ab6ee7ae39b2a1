"""Scheduled sampling: a batch with some input tokens replaced by samples of the model.

Each input token of a chunk, except the first, is replaced with probability ε by a draw from
p(x_t | x̂_1 … x̂_{t-1}), where x̂ are the inputs after replacement. The targets do not change. ε = 0
is teacher forcing, ε = 1 is free running, and a value between is scheduled sampling (Bengio et al.,
2015, section 2.4; the paper's ε is 1 - ε here).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.data.batches import Batch
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError


def sample_inputs(
    model: LanguageModel,
    params: Params,
    carry: Carry,
    batch: Batch,
    key: Array,
    rate: Float[Array, ""],
    greedy: bool = False,
) -> Batch:
    """The batch with each input after the first replaced with probability `rate`.

    No gradient flows through the replaced tokens.

    Args:
      model, params: the model to sample from.
      carry: the carry before the batch; reset for each sequence with `batch.start`.
      batch: T tokens of B sequences.
      key: key of the draws.
      rate: ε, from 0 (no change) to 1.
      greedy: if True, replace by the model's likeliest token instead of a sample.

    Raises:
      UserError: the inputs are real numbers, not tokens.
    """
    if not jnp.issubdtype(batch.x.dtype, jnp.integer):
        raise UserError(f"the batch's inputs are {batch.x.dtype}, and a model says tokens alone")
    params, carry = jax.lax.stop_gradient((params, carry))

    def step(state: tuple[Carry, Array], given: tuple) -> tuple[tuple, Array]:
        (carry, x), (key, true) = state, given
        own_key, choice_key = jax.random.split(key)
        carry, h = model.hidden(params, carry, x[None])
        logits = model.logits(params, h)[0]
        own = jnp.argmax(logits, -1) if greedy else jax.random.categorical(own_key, logits)
        replaced = jax.random.bernoulli(choice_key, rate, true.shape)
        x = jnp.where(replaced, own.astype(true.dtype), true)
        return (carry, x), x

    first, rest = batch.x[:1], batch.x[1:]
    state = (restart(model, carry, batch.start), first[0])
    keys = jax.random.split(key, rest.shape[0])
    _, own = jax.lax.scan(step, state, (keys, rest))
    return batch._replace(x=jnp.concatenate([first, own]))
