"""The cross-entropy of a softmax and the gradient, computed together in tiles of the logits.

The loss of N targets under a mask, with z_t = h_t W + b, and the gradient, as in the lecture:

    J = Σ_t J_t,   J_t = ln Σ_k e^{z_tk} - z_{t, y_t}
    ∂J_t/∂z_t = p_t - onehot(y_t),   p_t = softmax(z_t)
    ∂J/∂h_t = (p_t - onehot(y_t)) Wᵀ,   ∂J/∂W = Σ_t h_tᵀ (p_t - onehot(y_t)),
    ∂J/∂b = Σ_t (p_t - onehot(y_t))

and zero for the targets outside the mask. With label smoothing s the target is (1 - s) onehot(y_t)
+ s / V (`lm_jax.models.readout.SoftmaxReadout`), and the last term of J_t is
(1 - s) z_{t, y_t} + s z̄_t, with the mean z̄_t = h_t W̄ + b̄ over the columns of W and b.

In a sum all targets have the same cotangent. The gradient can therefore be computed together with
the logits: compute a tile of logits, turn the tile into p - onehot(y), multiply, and discard. The
derivative of J in a direction (dW, db, dh) is then the inner product with this gradient. Reverse
mode transposes the inner product and only scales the gradient; forward mode and second derivatives
follow from the same rule. Sums and products are accumulated in float32, or in float64 for float64
inputs.

Two kinds of tiles:

- *some targets, all tokens*, if a tile's logits cover at least `FEWEST` targets: three products, as
  in the plain loss. Each tile adds to all of ∂J/∂W; to add less often, tiles are up to half as
  large again;
- *all targets (`MOST` at a time), some tokens*: ln Σ e^z is accumulated block by block over the
  vocabulary (Milakov & Gimelshein, 2018, algorithm 3), and the logits are computed a second time
  for p. This costs a fourth product, but each pass reads W once, and the gradient is written once.

The switch between the two kinds, and the size of a tile on a CPU, were chosen by timing on two CPU
cores; `benchmarks/loss.py` measures the result against the plain loss. An accelerator, without such
a cache, takes larger tiles, and so starts fewer kernels.

If the sequences of a batch are spread over several devices, each device sweeps over the targets of
its own sequences, and the sums are added once, at the end. Flattening all sequences to a single
axis would make every device fetch all tokens and do all of the work.

Letters: N targets, n of a tile; V tokens, v of a tile; m and e, running maximum and Σ e^{z - m}.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from lm_jax.models.matmul import Precision, round_weights, xla_precision

TILE = 1 << 21  # logits, 8 MiB in float32, for the cache of a CPU
ACCELERATOR_TILE = 1 << 27  # logits, 512 MiB in float32: few launches
FEWEST, MOST = 64, 1024  # targets of a tile


def fused_cross_entropy(
    W: Float[Array, "..."],
    b: Float[Array, " V"] | None,
    h: Float[Array, "*shape H"],
    y: Int[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    smoothing: float | Float[Array, ""] | None = None,
    *,
    table: bool = False,
    precision: Precision = "float32",
) -> Float[Array, ""]:
    """The total cross-entropy Σ -ln softmax(h W + b)_y of the targets under the mask, in nats.

    Args:
      W: [H, V].
      b: bias of the logits; None: no bias.
      h: input of the readout; [T, B, H] if the sequences are spread over several devices.
      y: targets; a number that is not a token's makes the sum NaN.
      mask: True for each target in the sum.
      smoothing: s; None: the target is the next token alone.
      table: if True, W is the transpose [V, H], a table of tokens' vectors.
      precision: of the factors of the products, see `lm_jax.models.matmul`.
    """
    V = W.shape[0 if table else 1]
    offset = jnp.zeros(V, W.dtype) if b is None else b
    share = None if smoothing is None else jnp.asarray(smoothing, _wide(h))
    return _summed(table, precision)(W, offset, h, y, mask, share)


def tiles(N: int, V: int, tile: int) -> tuple[int, int]:
    """Size (targets, tokens) of a tile of about `tile` logits, for N targets and V tokens."""
    n = tile // V
    if n >= min(N, FEWEST):
        return min(N, 3 * n // 2), V
    n = min(N, MOST)
    return n, min(V, tile // n)


@functools.cache
def _summed(table: bool, precision: Precision):
    """The loss (W, b, h[*shape, H], y[*shape], mask[*shape], s) -> [] with a custom derivative."""

    @jax.custom_jvp
    def loss(*given):
        return _everywhere(*given, table=table, precision=precision, gradient=False)[0]

    def rule(given, directions):
        value, grads = _everywhere(*given, table=table, precision=precision, gradient=True)
        assert grads is not None
        pairs = zip(grads, (*directions[:3], directions[5]), strict=True)
        parts = []
        for grad, direction in pairs:
            if direction is not None and not isinstance(direction, SymbolicZero):
                parts.append(jnp.sum(grad * direction.astype(value.dtype)))
        return value, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(value)

    loss.defjvp(rule, symbolic_zeros=True)
    return loss


def _everywhere(W, b, h, y, mask, s, table, precision, *, gradient):
    """The result of `_sweep` for targets of any shape, summed over all devices with sequences."""

    def sweep(tile):
        cut = {"table": table, "precision": precision, "tile": tile, "gradient": gradient}
        return lambda *given: _sweep(*given, **cut)

    def swept(W, b, h, y, mask, s):
        given, sizes = (W, b, h, y, mask, s), (len(y), len(b))
        if tiles(*sizes, TILE) == tiles(*sizes, ACCELERATOR_TILE):
            return sweep(TILE)(*given)
        both = {"cpu": sweep(TILE), "default": sweep(ACCELERATOR_TILE)}
        return jax.lax.platform_dependent(*given, **both)

    def here(W, b, h, y, mask, s):
        rows = h.reshape(-1, h.shape[-1]), y.reshape(-1), mask.reshape(-1)
        value, grads = swept(W, b, *rows, s)
        if grads is None:
            return value, None
        dW, db, dh, ds = grads
        return value, (dW, db, dh.reshape(h.shape), ds)

    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Auto not in mesh.axis_types:
        return here(W, b, h, y, mask, s)

    def part(*given):
        value, grads = here(*given)
        added = functools.partial(jax.lax.psum, axis_name=mesh.axis_names)
        if grads is None:
            return added(value), None
        dW, db, dh, ds = grads
        return added(value), (added(dW), added(db), dh, added(ds))

    whole, split = PartitionSpec(), PartitionSpec(None, mesh.axis_names)
    of_grads = (whole, whole, split, whole) if gradient else None
    # check_vma would require marking each array in the sweep's loops that differs between devices.
    return jax.shard_map(
        part,
        in_specs=(whole, whole, split, split, split, whole),
        out_specs=(whole, of_grads),
        check_vma=False,
    )(W, b, h, y, mask, s)


def _sweep(W, b, h, y, mask, s, *, table, precision, tile, gradient):
    """The loss, and the gradient with respect to (W, b, h, s), or None without `gradient`."""
    (N, H), V, wide = h.shape, b.shape[0], _wide(h)
    n, v = tiles(N, V, tile)
    chunks, blocks = -(-N // n), -(-V // v)
    # As even as possible. The last block of tokens is shifted back to end with the vocabulary.
    n, v = -(-N // chunks), -(-V // blocks)
    axis = 0 if table else 1
    even = 0.0 if s is None else s / V
    sharp = 1.0 if s is None else 1 - s

    def matmul(a, c, sides):
        a, c = round_weights(a, precision), round_weights(c, precision)
        return jax.lax.dot_general(
            a, c, (sides, ((), ())), xla_precision(precision), preferred_element_type=wide
        )

    def cut(a, start, axis=0):
        return jax.lax.dynamic_slice_in_dim(a, start, v, axis) if blocks > 1 else a

    def put(a, more, start, axis=0):
        if blocks == 1:
            return a + more
        return jax.lax.dynamic_update_slice_in_dim(a, cut(a, start, axis) + more, start, axis)

    def fresh(block, start):
        """Mask [1, v] of the tokens of a block that are in no earlier block."""
        return (start + jnp.arange(v) >= block * v)[None]

    # Masks apply to rows and columns, never to a whole tile: JAX would expand a constant to a tile,
    # hoist the tile out of the loop, and read the tile in every iteration.
    def logits(h, block, start):
        offset = cut(b, start).astype(wide)[None]
        if blocks * v != V:
            offset = jnp.where(fresh(block, start), offset, -jnp.inf)
        return matmul(h, cut(W, start, axis), ((1,), (1 - axis,))) + offset

    def gathered(sums, z, y, block, start):
        """Add a block to the running (m, e, z_y)."""
        m, e, z_y = sums
        top = jnp.maximum(m, jax.lax.stop_gradient(jnp.max(z, axis=1)))
        safe = jnp.where(jnp.isneginf(top), 0, top)
        e = e * jnp.exp(m - safe) + jnp.sum(jnp.exp(z - safe[:, None]), axis=1)
        place = jnp.clip(y - start, 0, v - 1)
        here = jnp.take_along_axis(z, place[:, None], axis=1)[:, 0]
        inside = (y >= block * v) & (y < start + v)
        return top, e, jnp.where(inside, here, z_y)

    def spread(grads, z, log_sum, h, y, mask, block, start):
        """Add a block to the running (dW, db, dh)."""
        dW, db, dh = grads
        p = jnp.exp(z - jnp.where(mask, log_sum, jnp.inf)[:, None])
        number = (start + jnp.arange(v))[None]
        if blocks * v != V:
            number = jnp.where(fresh(block, start), number, -1)
        target = number == jnp.where(mask, y, -2)[:, None]
        off = p - sharp * target.astype(wide)
        if s is not None:
            off -= jnp.where(mask, even, 0)[:, None] * (number >= 0).astype(wide)
        low = off.astype(h.dtype)
        pair = (low, h) if table else (h, low)
        more = matmul(*pair, ((0,), (0,))), jnp.sum(off, axis=0)
        if dW is None:
            dW, db = more
        else:
            dW, db = put(dW, more[0], start, axis), put(db, more[1], start)
        return dW, db, dh + matmul(low, cut(W, start, axis), ((1,), (axis,)))

    def chunk(carry, given):
        nats, dW, db = carry
        h, y, mask, number = given
        h = jnp.where(mask[:, None], h, 0)
        at_each = number, jnp.minimum(number * v, V - v)
        sums = jnp.full(n, -jnp.inf, wide), jnp.zeros(n, wide), jnp.full(n, jnp.nan, wide)
        kept = logits(h, 0, 0) if blocks == 1 else None
        if kept is not None:
            sums = gathered(sums, kept, y, 0, 0)
        else:
            gather = lambda sums, at: (gathered(sums, logits(h, *at), y, *at), None)  # noqa: E731
            sums, _ = jax.lax.scan(gather, sums, at_each)
        m, e, z_y = sums
        log_sum = m + jnp.log(e)
        nats += jnp.sum(jnp.where(mask, log_sum - sharp * z_y, 0))
        if not gradient:
            return (nats, dW, db), None
        grads = dW, db, jnp.zeros((n, H), wide)
        if kept is not None:
            grads = spread(grads, kept, log_sum, h, y, mask, 0, 0)
        else:

            def again(grads, at):
                return spread(grads, logits(h, *at), log_sum, h, y, mask, *at), None

            grads, _ = jax.lax.scan(again, grads, at_each)
        dW, db, dh = grads
        return (nats, dW, db), (dh, jnp.where(mask, z_y, 0))

    padding = chunks * n - N
    rows = [
        jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1)).reshape(chunks, n, *a.shape[1:])
        for a in (h, y, mask)
    ]
    # Each chunk gets the block numbers as inputs: JAX hoists out of a loop, and keeps, all results
    # that depend on constants only. With constant numbers this would be every block of W.
    rows.append(jnp.broadcast_to(jnp.arange(blocks)[None], (chunks, blocks)))
    # Second derivatives recompute a chunk's tiles, too, instead of keeping them.
    swept = jax.checkpoint(chunk)
    start, given = jnp.zeros((), wide), tuple(rows)
    if not gradient:
        (nats, dW, db), found = jax.lax.scan(swept, (start, None, None), given)
    elif blocks > 1:
        zeros = jnp.zeros(W.shape, wide), jnp.zeros(V, wide)
        (nats, dW, db), found = jax.lax.scan(swept, (start, *zeros), given)
    else:
        # The other chunks add to the first chunk's gradient, so no zeros [H, V] are needed.
        sums, found = swept((start, None, None), jax.tree.map(lambda a: a[0], given))
        found = jax.tree.map(lambda a: a[None], found)
        if chunks > 1:
            sums, more = jax.lax.scan(swept, sums, jax.tree.map(lambda a: a[1:], given))
            found = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, more)
        nats, dW, db = sums
    if s is not None:
        mean_W, mean_b = jnp.mean(W, axis=axis, dtype=wide), jnp.mean(b, dtype=wide)
        summed_h = jnp.sum(jnp.where(mask[:, None], h, 0), axis=0, dtype=wide)
        mean_z = jnp.dot(summed_h, mean_W, precision="highest") + mean_b * jnp.sum(mask)
        nats -= s * mean_z
    else:
        mean_z = jnp.zeros((), wide)
    if not gradient:
        return nats, None
    dh, z_y = found
    return nats, (dW, db, dh.reshape(-1, H)[:N], jnp.sum(z_y) - mean_z)


def _wide(a: Array):
    """The type of sums over the entries of a."""
    return jnp.promote_types(a.dtype, jnp.float32)
