"""The likeliest continuation of a prompt, by beam search (Lowerre, 1976).

After every token, the search keeps the W likeliest hypotheses, each with its ln P. All next tokens
of all W hypotheses compete for the next W places. There is no normalisation by length: the search
looks for the largest ln P. A hypothesis with a stop token stays as it is, with the stop token's
ln P included, and continues to compete. The search is exact if W is at least the number of
hypotheses at the last step but one.

Letters: W hypotheses side by side, N steps, V tokens of the vocabulary, S stop tokens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lm_jax.data.vocabulary import Vocabulary
from lm_jax.generation.sampling_options import check_length, prompt_tokens, stop_tokens
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.settings import UserError

WIDEST = 10_000


class BeamResult(NamedTuple):
    """Result of a beam search."""

    text: str
    """The prompt and the continuation, without the stop token."""
    tokens: np.ndarray
    """[n], the token numbers of the continuation, including the stop token."""
    log_p: float
    """ln P of these tokens, after the prompt."""


def beam(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    *,
    length: int,
    width: int,
    prompt: str = "",
    stop: str | Sequence[str] | None = None,
    raw: bool = False,
) -> BeamResult:
    """Find the likeliest continuation of a prompt by beam search.

    Args:
      model, params, vocabulary: a trained model, as in `lm_jax.generation.samples`.
      length: number of tokens to add, unless a stop token comes first.
      width: W.
      prompt: text for the model to read first.
      stop: tokens that end a continuation, each written literally or as in `Vocabulary.show`; ln P
        includes the stop token, the text does not.
      raw: as in `lm_jax.generation.samples`.

    Raises:
      UserError: a number is out of range, or the prompt or `stop` has an unknown token.
    """
    check_length(length)
    if not 1 <= width <= WIDEST:
        raise UserError(f"beam={width} must be from 1 to {WIDEST:,}")
    read, ends = prompt_tokens(vocabulary, prompt), stop_tokens(vocabulary, stop)
    tokens = np.append(np.int32(vocabulary.boundary), read)
    search = _search(model, length, width)
    ended_by = jnp.asarray(ends or [-1], jnp.int32)
    never = jnp.asarray(-1 if raw or vocabulary.unknown is None else vocabulary.unknown, jnp.int32)
    log_p, parents, drawn = jax.tree.map(np.asarray, search(params, tokens, ended_by, never))
    place, backwards = int(np.argmax(log_p)), []
    best = float(log_p[place])
    for parent, token in zip(parents[::-1], drawn[::-1], strict=True):
        backwards.append(token[place])
        place = parent[place]
    found = np.array(backwards[::-1], np.int32)
    # After its first stop token a hypothesis has only further stop tokens.
    over = np.isin(found, ends)
    before = found[: int(np.argmax(over))] if over.any() else found
    text = vocabulary.decode(np.concatenate([read, before]), "replace" if raw else "ignore")
    return BeamResult(text, found[: len(before) + 1], best)


@functools.lru_cache(maxsize=16)
def _search(model: LanguageModel, length: int, width: int) -> Callable[..., tuple]:
    """(params, prompt[P], ends[S], barred) -> ln P [W], parents [N, W], tokens [N, W] by step."""

    def program(
        params: Params, prompt: Int[Array, " P"], ends: Int[Array, " S"], barred: Int[Array, ""]
    ) -> tuple:
        copies = jnp.broadcast_to(prompt[:, None], (*prompt.shape, width))
        carry, h = model.hidden(params, model.init_carry(width), copies)
        # All hypotheses are still equal: only the first may be continued.
        log_p = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)
        over = jnp.zeros(width, bool)

        def step(state: tuple, _: None) -> tuple[tuple, tuple]:
            carry, h, log_p, over = state
            more = jax.nn.log_softmax(model.logits(params, h), axis=-1)
            more = jnp.where(jnp.arange(more.shape[-1]) == barred, -jnp.inf, more)
            # A finished hypothesis has a single continuation, a stop token, with ln P = 0.
            only = jnp.where(jnp.arange(more.shape[-1]) == ends[0], 0.0, -jnp.inf)
            more = jnp.where(over[:, None], only[None], more)
            log_p, best = jax.lax.top_k((log_p[:, None] + more).ravel(), width)
            parent, token = best // more.shape[-1], (best % more.shape[-1]).astype(jnp.int32)
            carry = jax.tree.map(lambda leaf: leaf[parent], carry)
            carry, h = model.hidden(params, carry, token[None])
            return (carry, h[0], log_p, over[parent] | jnp.isin(token, ends)), (parent, token)

        state = (carry, h[-1], log_p, over)
        (_, _, log_p, _), (parents, tokens) = jax.lax.scan(step, state, None, length=length)
        return log_p, parents, tokens

    return jax.jit(program)
