"""Drawing text from a model: each token from its softmax, then read back as the next input.

A token is drawn from p = softmax(z / τ), z the model's logits, cut down in this order to

1. the top-k likeliest tokens (Fan et al., 2018);
2. of these, renormalised, the nucleus: the fewest likeliest whose probabilities reach top-p
   (Holtzman et al., 2020, section 3.1);
3. of these, the tokens with at least min-p times the probability of the likeliest (Nguyen et al.,
   2024);

and renormalised. A tie goes to the token of the lower number. At τ = 0 the likeliest is taken,
and where τ is so small that no other one would be.

The draw is argmax(z / τ + g) with Gumbel noise g (Gumbel, 1954); that of lane i at place t depends
on the seed, i and t alone. So a sample is the same whichever others are drawn beside it and in
whatever chunks it comes. The noise of a whole chunk of tokens is made at once, beside the chunk
before, and asked for by another thread: what one thread asks of a CPU, JAX runs one after another.
The numbers are arguments of one compiled program, which draws a chunk of
tokens a call, a smaller one where the noise of so many would be large. It reads a prompt by the
same steps, so prompts and texts of all lengths share it.

Letters: B samples side by side, N tokens of a chunk, V tokens of the vocabulary.
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

CHUNK = 64  # tokens drawn between two looks of the host
LONG_CHUNK = 256  # the same where nobody waits for the first of them
NUMBERS_AT_ONCE = 1 << 20  # of a chunk's noise, and of its logits, 4 MiB each in float32


class Cuts(NamedTuple):
    """Which tokens may be drawn; the numbers may be tracers."""

    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]


class State(NamedTuple):
    """Between two tokens."""

    carry: Carry
    token: Int[Array, " B"]
    """The newest token, not yet read."""


def cuts(size: int, top_k: int | None, top_p: float | None, min_p: float | None) -> Cuts | None:
    """The cuts that are asked for, of V = `size` tokens; None where there are none."""
    if top_k is None and top_p is None and min_p is None:
        return None
    return Cuts(
        jnp.asarray(size if top_k is None else top_k, jnp.int32),
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
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Drawn tokens [n, B] and their nats [n, B], chunk by chunk, the prompt left out.

    Args:
      model, params: the model.
      size: V.
      boundary: the token that stands before the prompt.
      prompt: [P] numbers of tokens.
      length: tokens to draw for each sample.
      count: B.
      temperature: τ.
      limits: which tokens may be drawn; None: all.
      seed: of the draws.
      chunk: N, the most tokens of a chunk; the tokens do not depend on it.
    """
    total = len(prompt) + length
    steps = max(1, min(chunk, NUMBERS_AT_ONCE // (count * size)))
    forced = np.full(-(-total // steps) * steps, -1, np.int32)
    forced[: len(prompt)] = prompt
    keys, advance = _lane_keys(seed, count), drawing(model)
    params = model.ready(params, steps * count)
    state = State(model.init_carry(count), jnp.full(count, boundary, jnp.int32))
    warmth = divisor(temperature)

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
            # The device is at this chunk while the host looks at the last one.
            state, *found = advance(params, state, forced[first:after], noise, warmth, limits)
            if ahead is not None and first > len(prompt):
                yield trimmed(*ahead)
            ahead = (first, *found)
        if ahead is not None:
            yield trimmed(*ahead)


@functools.lru_cache(maxsize=16)
def drawing(model: LanguageModel) -> Callable[..., tuple[State, Array, Array]]:
    """The compiled program that draws N tokens for each of B samples.

    It takes (params, state, forced[N], noise[N, B, V], temperature, cuts) and gives (state,
    tokens[N, B], nats[N, B]). The params may be what `model.ready` has made of them. Where `forced`
    is not negative, it is the token, whatever the draw.
    """

    def program(
        params: Params,
        state: State,
        forced: Int[Array, " N"],
        noise: Float[Array, "N B V"],
        temperature: Float[Array, ""],
        cuts: Cuts | None,
    ) -> tuple[State, Int[Array, "N B"], Float[Array, "N B"]]:
        # At temperature 0 the division has no meaning.
        divisor = jnp.where(temperature > 0, temperature, 1)

        def step(state: State, given: tuple) -> tuple[State, tuple]:
            only, g = given
            carry, h = model.hidden(params, state.carry, state.token[None])
            z = model.logits(params, h)[0]
            scaled = z / divisor
            if cuts is not None:
                scaled = jnp.where(kept(scaled, cuts), scaled, -jnp.inf)
            drawn = jnp.argmax(scaled + g, -1).astype(jnp.int32)
            token = jnp.where(only >= 0, only, drawn)
            return State(carry, token), (token, z)

        # Four tokens in one turn of the loop: a twentieth less time at the size of the quickstart.
        unroll = min(4, forced.size)
        state, (tokens, z) = jax.lax.scan(step, state, (forced, noise), unroll=unroll)
        return state, tokens, cross_entropy(z, tokens)

    return jax.jit(program, donate_argnums=1)


def kept(logits: Float[Array, "*shape V"], cuts: Cuts) -> Bool[Array, "*shape V"]:
    """The tokens that are left after top-k, top-p and min-p, in this order (see above).

    Args:
      logits: log-probabilities but for a constant, already divided by the temperature.
      cuts: top_k >= 1; 0 < top_p <= 1; 0 <= min_p < 1.
    """
    order = jnp.argsort(logits, axis=-1, stable=True, descending=True)
    rank = jnp.argsort(order, axis=-1)
    best_first = jnp.take_along_axis(logits, order, axis=-1)
    among = jnp.arange(logits.shape[-1]) < cuts.top_k
    among = jnp.broadcast_to(among, logits.shape)
    p = jax.nn.softmax(jnp.where(among, best_first, -jnp.inf), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    # A sum that rounding brings up to 1 too early must not cut when nothing is to be cut.
    among &= (before < cuts.top_p) | (cuts.top_p >= 1)
    among &= p >= cuts.min_p * p[..., :1]
    # Each cut leaves the first few of the order; the first one, too, where top_p underflows to 0.
    return rank < jnp.maximum(jnp.sum(among, axis=-1, keepdims=True), 1)


def divisor(temperature: float) -> np.ndarray:
    """τ as the device divides by it; 0 takes the likeliest."""
    numbers = jnp.finfo(jnp.asarray(0.0).dtype)
    # Where τ is as small as that, noise is nothing beside z / τ, which may be infinite.
    if temperature < math.sqrt(numbers.tiny):
        temperature = 0.0
    return np.asarray(min(temperature, float(numbers.max)), numbers.dtype)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _noise(keys: Array, first: Array, steps: int, size: int) -> Float[Array, "N B V"]:
    """Gumbel noise of N = `steps` places from `first` on."""

    def draw(place: Array, key: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, place), (size,))

    lanes = jax.vmap(draw, (None, 0))
    return jax.vmap(lanes, (0, None))(first + jnp.arange(steps), keys)


@functools.partial(jax.jit, static_argnums=1)
def _lane_keys(seed: Array, count: int) -> Array:
    lane = functools.partial(jax.random.fold_in, jax.random.key(seed))
    return jax.vmap(lane)(jnp.arange(count))
