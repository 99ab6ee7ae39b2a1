"""Text from a model: each token drawn from its softmax, and read back as the next input.

The whole text is one compiled scan; nothing is read back from the device before it is done.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lm_jax.data.vocabulary import Vocabulary
from lm_jax.models import LanguageModel
from lm_jax.models.base import Params
from lm_jax.settings import UserError

LONGEST = 10**8  # tokens drawn by one call


def sample(
    model: LanguageModel,
    params: Params,
    vocabulary: Vocabulary,
    *,
    length: int,
    prompt: str = "",
    temperature: float = 1.0,
    seed: int = 0,
) -> str:
    """A prompt and how the model goes on from it; the same seed gives the same text.

    Args:
      model, params: a trained model, `run.model` and `run.params`.
      vocabulary: its vocabulary, `run.vocabulary`.
      length: tokens to draw.
      prompt: what the model reads first; without one it starts as a text does.
      temperature: the logits are divided by it; 0 takes the most likely token each time.
      seed: of the draws.

    Raises:
      UserError: a length, seed or temperature out of range, a prompt with characters or words that
        the model has never seen.
    """
    if not 1 <= length <= LONGEST:
        raise UserError(f"length={length} must be from 1 to {LONGEST:,}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be from 0 to {2**32 - 1}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be 0 or more")
    try:
        read = vocabulary.encode(prompt, ended=False)
    except UnicodeEncodeError:
        raise UserError(f"the prompt {prompt!r} is not UTF-8") from None
    if vocabulary.unknown in read:
        raise UserError(f"the model has never seen {_first_unknown(prompt, vocabulary)!r}")
    tokens = np.concatenate([[vocabulary.boundary], read]).astype(np.int32)
    drawn = draw(model, length, len(tokens))(
        params, jnp.asarray(tokens), jax.random.key(seed), jnp.asarray(temperature, float)
    )
    return vocabulary.decode(np.concatenate([read, np.asarray(drawn)]))


def _first_unknown(prompt: str, vocabulary: Vocabulary) -> str:
    pieces = prompt.split() if vocabulary.tokenizer == "word" else list(prompt)
    return next(piece for piece in pieces if piece not in vocabulary.numbers)


@functools.lru_cache(maxsize=16)
def draw(model: LanguageModel, length: int, prompt_length: int) -> Callable[..., Array]:
    """The compiled program (params, tokens[prompt_length], key, temperature) -> drawn[length].

    Args:
      model: the language model.
      length: tokens to draw.
      prompt_length: tokens to read first, at least one.
    """

    def program(
        params: Params, tokens: Int[Array, " P"], key: Array, temperature: Float[Array, ""]
    ) -> Int[Array, " N"]:
        carry, h = model.hidden(params, model.init_carry(1), tokens[:, None])

        def step(state: tuple, key: Array) -> tuple[tuple, Array]:
            carry, h = state
            logits = model.logits(params, h)
            # At temperature 0 the division has no meaning and its result is not taken.
            warm = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1))
            token = jnp.where(temperature > 0, warm, jnp.argmax(logits, -1)).astype(jnp.int32)
            carry, h = model.hidden(params, carry, token[None])
            return (carry, h[0]), token[0]

        return jax.lax.scan(step, (carry, h[-1]), jax.random.split(key, length))[1]

    return jax.jit(program)
