"""The Flax side: `nn.RNN` of linen and of nnx, trained with Optax, a compiled call per step.

For an LSTM on a GPU, cuDNN by `jax.experimental.rnn` is a further method. The GRU of nnx has no
b_hn and differs from lm_jax's GRU after the first training step; the benchmark therefore compares
only the first loss.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from jax.experimental import rnn as cudnn

from benchmarks import sizes
from benchmarks.looped import passes
from benchmarks.side_by_side import Way
from benchmarks.sizes import Size

LINEN = {"elman": linen.SimpleCell, "gru": linen.GRUCell, "lstm": linen.OptimizedLSTMCell}
NNX = {"elman": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}


class Recurrent(NamedTuple):
    """A layer as pure functions."""

    params: Callable[[dict[str, np.ndarray]], Any]
    """Maps a layer's weights in lm_jax to params."""
    run: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]
    """Maps (params, carry, x[T, B, H]) to (carry, h[T, B, H])."""
    kernels: Callable[[Any], tuple[jax.Array, jax.Array]]
    """Maps the gradient of params to the gradients of W_xh and W_hh."""


def by_linen(size: Size) -> Recurrent:
    """Make a layer of `flax.linen.RNN`."""
    module = linen.RNN(
        LINEN[size.cell](size.hidden, dtype=size.precision), time_major=True, return_carry=True
    )
    gates = {"elman": ("",), "gru": ("r", "z", "n"), "lstm": ("i", "f", "g", "o")}[size.cell]
    biased = "h" if size.cell == "lstm" else "i"

    def params(layer: dict[str, np.ndarray]) -> Any:
        cell: dict[str, Any] = {}
        for number, gate in enumerate(gates):
            columns = slice(number * size.hidden, (number + 1) * size.hidden)
            for side, name in (("i", "W_xh"), ("h", "W_hh")):
                cell[side + gate] = {"kernel": jnp.asarray(layer[name][:, columns])}
            cell[biased + gate]["bias"] = jnp.asarray(layer["b_h"][columns])
        if size.cell == "gru":
            cell["hn"]["bias"] = jnp.asarray(layer["b_hn"])
        return {"params": {"cell": cell}}

    def kernels(params: Any) -> tuple[jax.Array, jax.Array]:
        cell = params["params"]["cell"]
        both = [[cell[side + gate]["kernel"] for gate in gates] for side in "ih"]
        return jnp.concatenate(both[0], axis=1), jnp.concatenate(both[1], axis=1)

    def run(params: Any, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        return cast(Any, module.apply(params, x, initial_carry=carry))

    return Recurrent(params, run, kernels)


def by_nnx(size: Size) -> Recurrent:
    """Make a layer of `flax.nnx.RNN`."""
    H = size.hidden
    cell = NNX[size.cell](H, H, dtype=jnp.dtype(size.precision), rngs=nnx.Rngs(0))
    graph, state, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)
    biased = "dense_h" if size.cell == "lstm" else "dense_i"

    def params(layer: dict[str, np.ndarray]) -> Any:
        own = {"dense_i": {"kernel": layer["W_xh"]}, "dense_h": {"kernel": layer["W_hh"]}}
        own[biased]["bias"] = layer["b_h"]
        filled = jax.tree.map(jnp.asarray, state)
        nnx.replace_by_pure_dict(filled, {"cell": jax.tree.map(jnp.asarray, own)})
        return filled

    def kernels(params: Any) -> tuple[jax.Array, jax.Array]:
        cell = nnx.to_pure_dict(params)["cell"]
        return cell["dense_i"]["kernel"], cell["dense_h"]["kernel"]

    def run(params: Any, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        return cast(Any, nnx.merge(graph, params, rest)(x, initial_carry=carry, return_carry=True))

    return Recurrent(params, run, kernels)


def by_cudnn(size: Size) -> Recurrent:
    """Make a layer of `jax.experimental.rnn.lstm`: cuDNN, batch first, all weights in an array."""
    H, B = size.hidden, size.batch

    def params(layer: dict[str, np.ndarray]) -> Any:
        parts = layer["W_xh"].T, layer["W_hh"].T, layer["b_h"], np.zeros_like(layer["b_h"])
        return jnp.asarray(np.concatenate([part.ravel() for part in parts]))

    def kernels(params: Any) -> tuple[jax.Array, jax.Array]:
        first, second = params[: 8 * H * H].reshape(2, 4 * H, H)
        return first, second

    def run(params: Any, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        c, h = (leaf[None].astype(x.dtype) for leaf in carry)
        lengths = jnp.full(B, size.length, jnp.int32)
        lstm: Any = cudnn.lstm  # the result of custom_vjp has no type
        y, h, c = lstm(
            x.transpose(1, 0, 2), h, c, params.astype(x.dtype), lengths, H, H, 1, 0.0, False
        )
        return (c[0], h[0]), y.transpose(1, 0, 2)

    return Recurrent(params, run, kernels)


def makers(size: Size) -> dict[str, Callable[[Size], Recurrent]]:
    """Available methods, by name."""
    import flax

    found = {
        f"Flax {flax.__version__} linen": by_linen,
        f"Flax {flax.__version__} nnx": by_nnx,
    }
    if jax.default_backend() == "gpu" and size.cell == "lstm":
        found[f"jax.experimental.rnn, jax {jax.__version__}"] = by_cudnn
    return found


def fresh(size: Size, dtype: Any) -> Any:
    """Initial carry of a layer, zeros; Flax puts c before h."""
    zeros = jnp.zeros((size.batch, size.hidden), dtype)
    return (zeros, jnp.zeros_like(zeros)) if size.cell == "lstm" else zeros


def step(backend: str, **settings: Any) -> dict[str, Callable[[], Way]]:
    """Make whole training steps, a compiled call per step."""
    del backend
    size = Size(**settings)
    descent = optax.chain(optax.clip_by_global_norm(sizes.CLIP), optax.sgd(sizes.LEARNING_RATE))
    dtype = jnp.dtype(size.precision)

    def build(make: Callable[[Size], Recurrent]) -> Way:
        recurrent, source = make(size), jnp.asarray(sizes.tokens(size))

        def nats(params: Any, carries: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
            h, after = params["embedding"]["C"][x].astype(dtype), []
            for own, carry in zip(params["layers"], carries, strict=True):
                carry, h = recurrent.run(own, carry, h)
                after.append(carry)
            top = params["readout"]
            logits = (h @ top["W_hy"].astype(dtype)).astype(jnp.float32) + top["b_y"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), after

        def update(params: Any, state: Any, carries: Any, number: Any) -> tuple:
            at = number % sizes.CHUNKS * size.length
            carries = jax.tree.map(lambda leaf: jnp.where(at == 0, 0, leaf), carries)
            chunk = jax.lax.dynamic_slice_in_dim(source, at, size.length + 1)
            grad = jax.value_and_grad(nats, has_aux=True)
            (loss, carries), grads = grad(params, carries, chunk[:-1], chunk[1:])
            updates, state = descent.update(grads, state)
            return optax.apply_updates(params, updates), state, carries, loss

        compiled = jax.jit(update, donate_argnums=(0, 1, 2))

        def begin() -> tuple:
            weights = sizes.weights(size)
            params: Any = jax.tree.map(jnp.asarray, weights)
            params["layers"] = [recurrent.params(own) for own in weights["layers"]]
            carries = [fresh(size, dtype) for _ in params["layers"]]
            return params, descent.init(params), carries

        def check() -> list[float]:
            state, losses = begin(), []
            for number in range(sizes.CHECKED):
                *state, loss = compiled(*state, number)
                losses.append(float(loss))
            return losses[:1] if make is by_nnx and size.cell == "gru" else losses

        state, done = begin(), 0

        def run(calls: int) -> None:
            nonlocal state, done
            for _ in range(calls):
                *state, _ = compiled(*state, done)
                done += 1
            jax.block_until_ready(state)

        return Way(run, check)

    return {name: lambda make=make: build(make) for name, make in makers(size).items()}


def layer(backend: str, **settings: Any) -> dict[str, Callable[[], Way]]:
    """Make forward and backward passes of a single layer over a chunk."""
    del backend
    size = Size(**settings)
    dtype = jnp.dtype(size.precision)

    def build(make: Callable[[Size], Recurrent], looped: bool) -> Way:
        recurrent, carry = make(size), fresh(size, dtype)
        x, d_h = (jnp.asarray(a, dtype) for a in sizes.sequence(size))
        own = recurrent.params(sizes.weights(size)["layers"][0])
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), own)

        @jax.jit
        def both(params: Any, x: jax.Array, d_h: jax.Array, _: Any = ()) -> Any:
            def weighted(params: Any, x: jax.Array) -> jax.Array:
                return jnp.sum(recurrent.run(params, carry, x)[1] * d_h, dtype=jnp.float32)

            return jax.value_and_grad(weighted, argnums=(0, 1))(params, x)

        def check() -> list[float]:
            h = jax.jit(recurrent.run)(params, carry, x)[1]
            d_params, d_x = both(params, x, d_h)[1]
            compared = h, d_h, d_x, *recurrent.kernels(d_params)
            return sizes.of_a_layer(*map(np.asarray, compared))

        def called(calls: int) -> None:
            for _ in range(calls):
                jax.block_until_ready(both(params, x, d_h))

        return Way(passes(both, params, x, d_h) if looped else called, check)

    return {
        name + (", passes in one loop" if looped else ""): functools.partial(build, make, looped)
        for name, make in makers(size).items()
        for looped in (False, True)
    }
