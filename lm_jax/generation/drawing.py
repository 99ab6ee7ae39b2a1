"""Sampling text from a model: draw each token from the softmax and feed it back as the next input.

A token is drawn from p = softmax(z / τ), with logits z, restricted in this order to

1. the top-k likeliest tokens (Fan et al., 2018);
2. of these, renormalised, the nucleus: the smallest set of likeliest tokens with total probability
   at least top-p (Holtzman et al., 2020, section 3.1);
3. of these, the tokens with at least min-p times the probability of the likeliest (Nguyen et al.,
   2024);

and renormalised. One token may be barred, such as `<unk>`: its p is 0 from the start. A tie goes to
the token of the lower number. At τ = 0, or if τ is too small for any other token to win, the
likeliest token is taken.

The draw is argmax(z / τ + g) with Gumbel noise g (Gumbel, 1954). The noise of sample i at position
t depends only on the seed, i and t. A sample therefore does not depend on the other samples or on
the size of the chunks.

A compiled program draws a chunk of tokens per call; the chunk is smaller if the noise of a chunk
would be large. The sampling options are arguments of the program. The program reads a prompt by the
same steps, and prompts and texts of all lengths share the program. The noise of the next chunk is
computed in parallel with the present chunk. Another thread requests the noise, because JAX on a CPU
runs the requests of a single thread one after another.

Letters: B samples, N tokens of a chunk, V tokens of the vocabulary.
"""

import functools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lm_jax.models import LanguageModel
from lm_jax.models.base import Carry, Params
from lm_jax.models.readout import cross_entropy

CHUNK = 64  # tokens per call of the compiled program
LONG_CHUNK = 256  # tokens per call if nobody waits for the first tokens
NUMBERS_AT_ONCE = 1 << 20  # numbers in a chunk's noise and in the logits, 4 MiB each in float32


class Cuts(NamedTuple):
    """Limits on the tokens to draw from; the numbers may be tracers."""

    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]


class State(NamedTuple):
    """State of the sampler between two tokens."""

    carry: Carry
    token: Int[Array, " B"]
    """The newest token, not yet read by the model."""


def cuts(size: int, top_k: int | None, top_p: float | None, min_p: float | None) -> Cuts | None:
    """The limits for a vocabulary of V = `size` tokens, top-k at most V; None without any limit."""
    if top_k is None and top_p is None and min_p is None:
        return None
    return Cuts(
        jnp.asarray(size if top_k is None else min(top_k, size), jnp.int32),
        jnp.asarray(1 if top_p is None else top_p, float),
        jnp.asarray(0 if min_p is None else min_p, float),
    )


def draws(
    model: LanguageModel,
    params: Params,
    size: int,
    boundary: int,
    prompt: np.ndarray,
    length: int,
    count: int,
    temperature: float,
    limits: Cuts | None,
    seed: int,
    chunk: int,
    barred: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield drawn tokens [n, B] and their nats [n, B], chunk by chunk, without the prompt.

    Args:
      model, params: the model.
      size: V.
      boundary: the token before the prompt.
      prompt: [P], token numbers.
      length: number of tokens to draw for each sample.
      count: B.
      temperature: τ.
      limits: limits on the tokens to draw from; None for all tokens.
      seed: seed of the draws.
      chunk: N, the largest chunk; the tokens do not depend on N.
      barred: a token that is never drawn.
    """
    total = len(prompt) + length
    steps = max(1, min(chunk, NUMBERS_AT_ONCE // (count * size)))
    forced = np.full(-(-total // steps) * steps, -1, np.int32)
    forced[: len(prompt)] = prompt
    keys, advance = _sequence_keys(seed, count), drawing(model)
    params = model.precompute(params, steps * count)
    state = State(model.init_carry(count), jnp.full(count, boundary, jnp.int32))
    warmth, never = divisor(temperature), np.int32(-1 if barred is None else barred)

    def trimmed(first: int, tokens: Array, nats: Array) -> tuple[np.ndarray, np.ndarray]:
        kept = slice(max(len(prompt) - first, 0), total - first)
        return np.asarray(tokens)[kept], np.asarray(nats)[kept]

    def noise_from(first: int) -> Float[Array, "N B V"]:
        return _noise(keys, first, steps, size) if warmth else jnp.zeros((steps, count, size))

    ahead: tuple | None = None
    with ThreadPoolExecutor(max_workers=1) as beside:
        coming = beside.submit(noise_from, 0)
        for first in range(0, total, steps):
            noise, after = coming.result(), first + steps
            if after < total:
                coming = beside.submit(noise_from, after)
            # The device computes this chunk while the host handles the last chunk.
            state, *found = advance(
                params, state, forced[first:after], noise, warmth, limits, never
            )
            if ahead is not None and first > len(prompt):
                yield trimmed(*ahead)
            ahead = (first, *found)
        if ahead is not None:
            yield trimmed(*ahead)


@functools.lru_cache(maxsize=16)
def drawing(model: LanguageModel) -> Callable[..., tuple[State, Array, Array]]:
    """The compiled program for drawing N tokens for each of B samples.

    The program maps (params, state, forced[N], noise[N, B, V], temperature, cuts, barred) to
    (state, tokens[N, B], nats[N, B]). `params` may be the result of `model.precompute`. A token of
    `forced` that is not negative replaces the drawn token. The token `barred` is never drawn; -1
    bars none.
    """

    def program(
        params: Params,
        state: State,
        forced: Int[Array, " N"],
        noise: Float[Array, "N B V"],
        temperature: Float[Array, ""],
        cuts: Cuts | None,
        barred: Int[Array, ""],
    ) -> tuple[State, Int[Array, "N B"], Float[Array, "N B"]]:
        # At temperature 0 the logits are not divided.
        divisor = jnp.where(temperature > 0, temperature, 1)

        def step(state: State, given: tuple) -> tuple[State, tuple]:
            only, g = given
            carry, h = model.hidden(params, state.carry, state.token[None])
            z = model.logits(params, h)[0]
            scaled = z / divisor
            scaled = jnp.where(jnp.arange(z.shape[-1]) == barred, -jnp.inf, scaled)
            if cuts is not None:
                scaled = jnp.where(kept(scaled, cuts), scaled, -jnp.inf)
            drawn = jnp.argmax(scaled + g, -1).astype(jnp.int32)
            token = jnp.where(only >= 0, only, drawn)
            return State(carry, token), (token, z)

        # Unrolling four steps saves a twentieth of the time at the size of the quickstart.
        unroll = min(4, forced.size)
        state, (tokens, z) = jax.lax.scan(step, state, (forced, noise), unroll=unroll)
        return state, tokens, cross_entropy(z, tokens)

    return jax.jit(program, donate_argnums=1)


def kept(logits: Float[Array, "*shape V"], cuts: Cuts) -> Bool[Array, "*shape V"]:
    """True for the tokens left after top-k, top-p and min-p, in this order (see above).

    Args:
      logits: log-probabilities up to a constant, already divided by the temperature.
      cuts: top_k >= 1; 0 < top_p <= 1; 0 <= min_p < 1.
    """
    order = jnp.argsort(logits, axis=-1, stable=True, descending=True)
    rank = jnp.argsort(order, axis=-1)
    best_first = jnp.take_along_axis(logits, order, axis=-1)
    among = jnp.arange(logits.shape[-1]) < cuts.top_k
    among = jnp.broadcast_to(among, logits.shape)
    p = jax.nn.softmax(jnp.where(among, best_first, -jnp.inf), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    # With top-p = 1 nothing may be cut, even if rounding brings the sum to 1 too early.
    among &= (before < cuts.top_p) | (cuts.top_p >= 1)
    among &= p >= cuts.min_p * p[..., :1]
    # Each limit keeps the first few tokens of the order, and at least the first, even if top_p
    # underflows to 0.
    return rank < jnp.maximum(jnp.sum(among, axis=-1, keepdims=True), 1)


def divisor(temperature: float) -> np.ndarray:
    """The divisor τ in the device's float type; 0 means taking the likeliest token."""
    numbers = jnp.finfo(jnp.asarray(0.0).dtype)
    # With so small a τ, z / τ may be infinite and the noise has no effect.
    if temperature < math.sqrt(numbers.tiny):
        temperature = 0.0
    return np.asarray(min(temperature, float(numbers.max)), numbers.dtype)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _noise(keys: Array, first: Array, steps: int, size: int) -> Float[Array, "N B V"]:
    """Gumbel noise of N = `steps` positions, starting at position `first`."""

    def draw(place: Array, key: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, place), (size,))

    sequences = jax.vmap(draw, (None, 0))
    return jax.vmap(sequences, (0, None))(first + jnp.arange(steps), keys)


@functools.partial(jax.jit, static_argnums=1)
def _sequence_keys(seed: Array, count: int) -> Array:
    sequence_key = functools.partial(jax.random.fold_in, jax.random.key(seed))
    return jax.vmap(sequence_key)(jnp.arange(count))
