"""The fused cross-entropy: the plain one in value and in every derivative, whatever the tiles."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import models
from lm_jax.config import Softmax
from lm_jax.models import base, fused
from lm_jax.models.cells import RecurrentInit
from lm_jax.settings import UserError

N, H, V = 13, 4, 11

# (TILE, FEWEST, MOST) -> (targets, tokens) of a tile: all at once; some targets; some of both, the
# blocks of tokens overlapping; and, of all targets, one token at a time.
CUTS = {
    (1 << 21, 64, 1024): (13, 11),
    (33, 2, 64): (4, 11),
    (28, 64, 7): (7, 4),
    (20, 64, 99): (13, 1),
}


@pytest.fixture(params=CUTS, ids=lambda cut: "x".join(map(str, CUTS[cut])))
def cut(request, monkeypatch):
    for name, value in zip(("TILE", "FEWEST", "MOST"), request.param, strict=True):
        monkeypatch.setattr(fused, name, value)
    assert fused.tiles(N, V, fused.TILE) == CUTS[request.param]


def given(seed=0):
    draws = np.random.default_rng(seed)
    W, b, h = (jnp.asarray(draws.normal(size=s)) for s in ((H, V), (V,), (N, H)))
    y = jnp.asarray(draws.integers(0, V, N), jnp.int32)
    return (W, b, h, jnp.asarray(0.2)), y, jnp.asarray(draws.random(N) < 0.7)


def plain(W, b, h, s, y, mask):
    log_p = jax.nn.log_softmax(h @ W + b[None])
    target = (1 - s) * jax.nn.one_hot(y, V) + s / V
    return jnp.sum(jnp.where(mask, -jnp.sum(target * log_p, axis=1), 0))


def ours(W, b, h, s, y, mask):
    return fused.fused_cross_entropy(W, b, h, y, mask, s)


def of_table(W, b, h, s, y, mask):
    return fused.fused_cross_entropy(W.T, b, h, y, mask, s, table=True)


def derivatives(loss, args, y, mask):
    """Value; forward; reverse; reverse twice; forward over reverse; with respect to every input."""
    scalar = lambda *a: loss(*a, y, mask) ** 2  # noqa: E731  so that no cotangent is 1
    along = jax.tree.map(lambda a: jnp.sin(jnp.arange(a.size) + 1.0).reshape(a.shape), args)
    grad = jax.grad(scalar, (0, 1, 2, 3))

    def slope(*a):
        return sum(jnp.vdot(g, d) for g, d in zip(grad(*a), along, strict=True))

    return (
        scalar(*args),
        jax.jvp(scalar, args, along)[1],
        grad(*args),
        jax.grad(slope, (0, 1, 2, 3))(*args),
        jax.jvp(grad, args, along)[1],
    )


@pytest.mark.quick("13x1-of_table")
@pytest.mark.parametrize("loss", [ours, of_table])
def test_every_derivative_is_the_plain_loss_s(cut, loss):
    args, y, mask = given()
    found, wanted = (
        jax.jit(lambda a, f=f: derivatives(f, a, y, mask))(args) for f in (loss, plain)
    )
    tiny.assert_trees_close(found, wanted, 1e-11)
    tiny.assert_trees_close(found[3], found[4], 1e-11)


@pytest.mark.quick("7x4", "13x11")
def test_lanes_of_a_vmap_are_each_its_own(cut):
    each = [given(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *each)

    def of(loss):
        return jax.value_and_grad(lambda args, y, mask: loss(*args, y, mask))

    found = jax.jit(jax.vmap(of(ours)))(*stacked)
    tiny.assert_trees_close(found, jax.jit(jax.vmap(of(plain)))(*stacked))


@pytest.mark.quick("7x4", "13x11")
def test_without_smoothing_and_bias_it_is_the_nats_under_the_mask(cut):
    (W, _, h, _), y, mask = given()
    own = {"W_hy": W}
    readout = models.SoftmaxReadout(V, bias=False)
    total = readout.total_nats
    both = (
        lambda own, h: total(own, h, y, mask),
        lambda own, h: jnp.sum(jnp.where(mask, readout.nats(own, h, y), 0)),
    )
    found, wanted = (jax.jit(jax.value_and_grad(f, (0, 1)))(own, h) for f in both)
    tiny.assert_trees_close(found, wanted)
    # Where W is a constant, the gradient of h is the same.
    alone = jax.jit(jax.grad(lambda h: total(own, h, y, mask)))(h)
    tiny.assert_trees_close(alone, wanted[1][1])


def test_large_logits_and_tokens_ruled_out_do_no_harm(cut):
    """ln Σ e^z is taken from the maximum on; a bias of -∞ is a token of probability zero."""
    (W, b, h, _), y, mask = given()
    b, y = b.at[:5].set(-jnp.inf), 5 + y % (V - 5)

    def of_the_others(W):
        log_p = jax.nn.log_softmax(h @ W[:, 5:] + b[None, 5:])
        nats = -jnp.take_along_axis(log_p, y[:, None] - 5, 1)[:, 0]
        return jnp.sum(jnp.where(mask, nats, 0))

    both = (lambda W: fused.fused_cross_entropy(W, b, h, y, mask), of_the_others)
    found, wanted = (jax.jit(jax.value_and_grad(f))(1000 * W) for f in both)
    tiny.assert_trees_close(found, wanted)


def test_a_target_that_is_no_token_is_nan_and_nothing_where_it_is_masked(cut):
    (W, b, h, _), y, mask = given()
    nats = jax.jit(lambda y, mask: fused.fused_cross_entropy(W, b, h, y, mask))
    for wrong in (-1, V):
        assert np.isnan(nats(y.at[3].set(wrong), mask.at[3].set(True)))
        off = mask.at[3].set(False)
        assert nats(y.at[3].set(wrong), off) == nats(y, off)


def test_bfloat16_is_accumulated_in_float32():
    (W, b, h, _), y, mask = given()
    low = tuple(a.astype(jnp.bfloat16) for a in (W, b, h))
    wide = [a.astype(float) for a in low]
    total = lambda W, b, h: fused.fused_cross_entropy(W, b, h, y, mask)  # noqa: E731
    value, grads = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*low)
    exact, exact_grads = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*wide)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for grad, wanted in zip(grads, exact_grads, strict=True):
        assert grad.dtype == jnp.bfloat16
        np.testing.assert_allclose(grad.astype(float), wanted, rtol=0.02, atol=0.02)


def test_a_loop_over_tiles_reads_no_constant_of_a_tile_s_size(cut):
    (W, b, h, s), y, mask = given()
    both = jax.value_and_grad(ours, (0, 1, 2, 3))
    # Of another width than any tile, so that W and h are not taken for one.
    inner = scans(jax.make_jaxpr(both)(W[:3], b, h[:, :3], s, y, mask).jaxpr)
    n, v = fused.tiles(N, V, fused.TILE)
    for each in inner:
        assert v == 1 or (n, v) not in [read.aval.shape for read in each.invars]


def scans(jaxpr):
    """Every loop of a program, those within others, too."""
    found = []
    for equation in jaxpr.eqns:
        found += [equation] if equation.primitive.name == "scan" else []
        for within in jax.extend.core.jaxprs_in_params(equation.params):
            found += scans(within)
    return found


def test_no_array_of_the_compiled_gradient_is_as_large_as_the_logits(monkeypatch):
    monkeypatch.setattr(fused, "TILE", 4096)
    shapes = ((8, 2000), (2000,), (500, 8), (500,), (500,))
    kinds = (float, float, float, jnp.int32, bool)
    args = [jax.ShapeDtypeStruct(s, k) for s, k in zip(shapes, kinds, strict=True)]
    grad = jax.jit(jax.grad(fused.fused_cross_entropy, (0, 1, 2)))
    analysis = grad.lower(*args).compile().memory_analysis()
    assert analysis is not None
    held = analysis.temp_size_in_bytes
    assert held < 500 * 2000 * 8 / 4


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_s_loss_is_its_readout_s_and_its_penalties(key, tied):
    readout = Softmax(tied=tied, label_smoothing=0.1)
    model = tiny.rnn(embedding_size=5, readout=readout, activation_penalty=0.2, change_penalty=0.3)
    params, batch = tiny.moved(model.init(key)), tiny.batch()
    mask = batch.mask.at[2, 1].set(False)
    s = 0.1

    def by_hand(params):
        _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
        log_p = jax.nn.log_softmax(model.logits(params, h))
        nats = -jnp.take_along_axis(log_p, batch.y[..., None], -1)[..., 0]
        change, pairs = jnp.mean((h[1:] - h[:-1]) ** 2, -1), mask[1:]
        changes = jnp.sum(jnp.where(pairs, change, 0)) * mask.sum() / pairs.sum()
        each = (1 - s) * nats - s * jnp.mean(log_p, -1)
        each += 0.2 * jnp.mean(h**2, -1)
        return jnp.sum(jnp.where(mask, each, 0)) + 0.3 * changes, jnp.sum(jnp.where(mask, nats, 0))

    def loss(model):
        def of(params):
            _, h = model.hidden(params, model.init_carry(tiny.B), batch.x)
            return model.loss(params, h, batch.y, mask)

        return of

    both = jax.jit(
        lambda p: [jax.value_and_grad(loss(m))(p) for m in (model.for_training(key), model)]
    )
    wanted = jax.jit(
        lambda p: [jax.value_and_grad(lambda p, i=i: by_hand(p)[i])(p) for i in (0, 1)]
    )
    tiny.assert_trees_close(both(params), wanted(params))


def test_a_matrix_drawn_piece_by_piece_is_whole_and_no_piece_stands_twice(key, monkeypatch):
    monkeypatch.setattr(base, "DRAWN_AT_ONCE", 64)
    drawn = np.asarray(base.normal(key, (30, 11)))
    assert np.unique(drawn).size == drawn.size
    assert abs(drawn.mean()) < 0.3
    assert 0.8 < drawn.std() < 1.2


@pytest.mark.parametrize("init", ["orthogonal", "normal"])
def test_a_matrix_that_32_bits_cannot_count_is_refused(init, key):
    with pytest.raises(UserError, match=r"65,536 x 32,768 has 2\^31 numbers"):
        base.normal(key, (2**16, 2**15))
    with pytest.raises(UserError, match=r"65,536 x 65,536 has 2\^31 numbers"):
        RecurrentInit(init, 1.0)(key, 2**16)
