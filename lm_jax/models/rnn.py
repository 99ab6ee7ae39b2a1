"""The recurrent language model: an embedding, a stack of recurrent layers, a readout.

    h^1 = layer(x),  h^l = layer(h^{l-1}) (+ h^{l-1}),  p(x_{t+1} | x_1 … x_t) = readout(h^L_t)

Each layer runs over the whole chunk before the next layer starts (Mikolov et al., 2010, for a
single Elman layer).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm_jax.models.base import TOKEN, Between, Carry, LanguageModel, Params
from lm_jax.models.dropout import SILENT, Noise
from lm_jax.models.embedding import Embedding
from lm_jax.models.readout import Output, Readout
from lm_jax.models.recurrence import Layer, Stack

WORDS = "words"  # key in params for C W_xh, a row for each word


def rnn(
    embedding: Embedding,
    layers: Sequence[Layer],
    readout: Readout,
    *,
    hidden_size: int,
    residual: bool = False,
    real: bool = False,
    noise: Noise = SILENT,
    activation_penalty: float | Array | None = None,
    change_penalty: float | Array | None = None,
) -> LanguageModel:
    """A recurrent language model.

    Args:
      embedding: from tokens to vectors.
      layers: from the bottom up, each with `hidden_size` outputs.
      readout: from hidden states to tokens.
      hidden_size: H.
      residual: if True, each layer from the second on adds its input to its output.
      real: if True, the input of each step is V real numbers, not a token.
      noise: dropout of training; without a key.
      activation_penalty, change_penalty: see `lm_jax.models.readout.Output`.
    """

    def init(key: Array) -> Params:
        tokens, out, *keys = jax.random.split(key, 2 + len(layers))
        return {
            "embedding": embedding.init(tokens),
            "layers": [layer.init(k) for layer, k in zip(layers, keys, strict=True)],
            "readout": readout.init(out, hidden_size),
        }

    reads = TOKEN
    if real:
        reads = jax.ShapeDtypeStruct((embedding.vocab_size,), jnp.result_type(float))

    def output(carry: Carry) -> Float[Array, "B H"]:
        seen = [layer.output(own) for layer, own in zip(layers, carry, strict=True)]
        return sum(seen[1:], seen[0]) if residual else seen[-1]

    def model(noise: Noise) -> LanguageModel:
        def read(params: Params, x: Array) -> tuple[Array, Params]:
            """The first layer's inputs and its parameters for these inputs."""
            first = params["layers"][0]
            if WORDS in params:
                return x, {**first, "W_xh": params[WORDS]}
            if layers[0].cell is None:
                return embedding.vectors(params["embedding"], x, noise), first
            vectors, W_xh = embedding.before(params["embedding"], x, noise, first["W_xh"])
            return vectors, {**first, "W_xh": W_xh}

        def ready(params: Params, tokens: int) -> Params:
            if layers[0].cell is None or tokens < embedding.vocab_size:
                return params
            every = jnp.arange(embedding.vocab_size)[:, None]
            x, first = read(params, every)
            return {**params, WORDS: first["W_xh"]} if x is every else params

        def hidden(
            params: Params,
            carry: Carry,
            x: Int[Array, "T B"] | Float[Array, "T B V"],
            between: Between | None = None,
            tap: Array | None = None,
        ) -> tuple[Carry, Float[Array, "T B H"]]:
            carries = []
            h, first = read(params, x)
            above = params["layers"][1:]
            for place, (layer, own) in enumerate(zip(layers, [first, *above], strict=True)):
                seen = noise.on_layer(h, place - 1) if place else h
                if noise.recurrent is not None:
                    own = {**own, "W_hh": noise.on_recurrent(own["W_hh"], place)}
                tap_here = None if tap is None else tap[..., place]
                layer_carry, new = layer.run(own, carry[place], seen, between, tap_here)
                h = seen + new if residual and place else new
                carries.append(layer_carry)
            return tuple(carries), h

        out = Output(readout, noise, activation_penalty, change_penalty)
        return LanguageModel(
            init=init,
            # A separate array for each layer: JAX cannot donate an array that appears twice.
            init_carry=lambda batch_size: tuple(layer.init_carry(batch_size) for layer in layers),
            hidden=hidden,
            logits=out.logits,
            nats=out.nats,
            loss=out.loss,
            noisy=lambda key: model(noise.drawn(key)),
            output=output,
            ready=ready,
            placed=lambda first: model(noise.placed(first)),
            stack=Stack(
                lambda params, x: embedding.vectors(params["embedding"], x, noise),
                tuple(layers),
                residual,
            ),
            reads=reads,
            noise=noise,
        )

    return model(noise)
