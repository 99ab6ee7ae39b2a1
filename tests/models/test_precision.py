"""Rounded products: near float32, and nothing else is rounded; in float32 nothing at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from lm_jax import config as settings
from lm_jax import gradients as g
from lm_jax.analysis import prove
from lm_jax.config import GRU, LSTM, Config, Data, Elman, Memory, MinGRU, Train
from lm_jax.data.batches import Batch
from lm_jax.models import make
from lm_jax.models import matmul as matmuls
from lm_jax.models.matmul import matmul, matmul_in, rows
from lm_jax.settings import UserError
from lm_jax.training.step import eval_model, init

V, T, B = 12, 6, 4
H = E = 8

MODELS = {
    "elman": settings.RNN(cell=Elman(), hidden_size=H, embedding_size=E, layers=2),
    "lstm": settings.RNN(
        cell=LSTM(), hidden_size=H, embedding_size=E, readout=settings.Softmax(tied=True)
    ),
    "gru": settings.RNN(cell=GRU(), hidden_size=H, embedding_size=None),
    "reset before": settings.RNN(cell=GRU(reset="before"), hidden_size=H, embedding_size=E),
    "mingru": settings.RNN(cell=MinGRU(), hidden_size=H, embedding_size=E),
    "window": settings.Window(order=3, hidden_size=H, embedding_size=E, layers=2),
    "convolution": settings.Convolution(width=2, hidden_size=H, embedding_size=E, layers=2),
    "adaptive": settings.Window(
        order=3, hidden_size=H, embedding_size=E, readout=settings.AdaptiveSoftmax(cutoffs=(4,))
    ),
    "sampled": settings.Window(
        order=3, hidden_size=H, embedding_size=E, readout=settings.SampledSoftmax(samples=4)
    ),
}


def batch(key):
    tokens = jax.random.randint(key, (T + 1, B), 0, V)
    return Batch(tokens[:-1], tokens[1:], jnp.ones((T, B), bool), jnp.ones(B, bool))


@pytest.fixture
def float32():
    """As a user has it; other tests are in float64."""
    with jax.enable_x64(False):
        yield


def estimate(config, key, dtype="bfloat16", estimator=g.explicit_bptt):
    """(function of params and the carry, params, carry)."""
    model = make(dataclasses.replace(config, precision=dtype), V).for_training(key)
    grad_fn = estimator(model)
    params, carry = model.init(key), grad_fn.init_carry(B)
    read = batch(key)
    return (lambda params, carry: grad_fn(params, carry, read)), params, carry


def products(jaxpr):
    """Every dot_general of a program, those within loops and calls among them."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: isinstance(v, (list, tuple))):
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(inner, ClosedJaxpr):
                    yield from products(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from products(inner)


@pytest.mark.quick("elman")
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_near_that_of_float32_and_of_its_type(name, key, float32):
    found, exact = (
        jax.jit(f)(params, carry)
        for f, params, carry in (estimate(MODELS[name], key, p) for p in ("bfloat16", "float32"))
    )
    # A factor is off by at most 2^-9 of itself, a product of two by 2^-8, and a handful of products
    # follow one another here; their errors have both signs.
    np.testing.assert_allclose(found[0], exact[0], rtol=2**-7)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert a.dtype == b.dtype
    error, size = (
        jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(jnp.subtract, found[2], exact[2]), exact[2])
    )
    assert 0 < error < 2**-5 * size


@pytest.mark.parametrize("name", MODELS)
def test_every_product_has_narrow_factors_and_a_float32_sum(name, key, float32):
    f, params, carry = estimate(MODELS[name], key)
    found = list(products(jax.make_jaxpr(f)(params, carry).jaxpr))
    assert found
    for eqn in found:
        factors = {var.aval.dtype.name for var in eqn.invars}
        asked = str(eqn.params["precision"])
        # The product of one-hot vectors is a choice of rows, and rounds nothing.
        fine = "BF16_BF16_F32" in asked or "HIGHEST" in asked
        assert factors == {"bfloat16"} or (factors == {"float32"} and fine)
        assert eqn.outvars[0].aval.dtype == jnp.float32


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("name", MODELS)
def test_every_product_says_its_precision(name, precision, key, float32):
    """JAX's default would be float32 on a CPU, tf32 on a GPU and bfloat16 on a TPU."""
    f, params, carry = estimate(MODELS[name], key, precision)
    asked = {str(e.params["precision"]) for e in products(jax.make_jaxpr(f)(params, carry).jaxpr)}
    full, rounded = (str((p, p)) for p in (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH))
    if precision == "float32":
        assert asked == {full}
    else:  # one-hot vectors are multiplied in full
        assert rounded in asked
        assert asked <= {full, rounded}


def test_the_recurrence_rounds_its_weights_once(key, float32):
    """Within the loops of the explicit pass no array as large as W_hh is rounded."""
    f, params, carry = estimate(MODELS["lstm"], key)
    found = inner_eqns(jax.make_jaxpr(f)(params, carry).jaxpr)
    scans = [e for e in found if is_scan(e) and e.params["length"] == 6]
    assert len(scans) == 4  # forwards and backwards, on a CPU and on an accelerator
    for scan in scans:
        for eqn in inner_eqns(scan.params["jaxpr"].jaxpr):
            if eqn.primitive.name == "convert_element_type":
                assert eqn.outvars[0].aval.shape[0] == B  # no weights


def is_scan(eqn):
    return eqn.primitive.name == "scan"


def inner_eqns(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(inner, ClosedJaxpr):
                    yield from inner_eqns(inner.jaxpr)


def test_float32_casts_nothing(key, float32):
    x, W = jnp.ones((3, 2)), jnp.ones((2, 4))
    gradient = str(jax.make_jaxpr(jax.grad(lambda x, W: matmul(x, W).sum(), (0, 1)))(x, W))
    assert matmul_in(x, W, "float32").dtype == jnp.float32
    assert "convert_element_type" not in gradient
    assert "bf16" not in gradient
    f, params, carry = estimate(MODELS["lstm"], key, "float32")
    text = str(jax.make_jaxpr(f)(params, carry))
    assert "bf16" not in text.lower()


@pytest.mark.slow
def test_a_product_goes_through_every_mode(key):
    """Forward, reverse, forward over reverse and mapped, near x W of integers: there they are it.

    Numbers below 256 have eight bits, so nothing is rounded, and all of it is exact.
    """
    x = jax.random.randint(key, (3, 5), -9, 9).astype(float)
    W = jax.random.randint(key, (5, 2), -9, 9).astype(float)
    both = [lambda x, W: matmul(x, W, "bfloat16"), lambda x, W: x @ W]
    squares = [lambda x, W, f=f: jnp.sum(f(f(x, W), W.T)) for f in both]
    pairs = [[jax.jvp(f, (x, W), (x + 1, W - 1)) for f in both]]
    pairs += [[jax.vmap(f, (0, None))(x[:, None], W) for f in both]]
    pairs += [[jax.vmap(f, (None, 0))(x, jnp.stack([W, W + 1])) for f in both]]
    few = jnp.clip(x, -2, 2), jnp.clip(W, -2, 2)
    pairs += [[jax.grad(f, (0, 1))(*few) for f in squares]]
    pairs += [[jax.jvp(jax.grad(f, (0, 1)), few, few)[1] for f in squares]]
    for ours, plain in pairs:
        jax.tree.map(np.testing.assert_array_equal, ours, plain)
    assert matmul(x, W, "bfloat16").dtype == x.dtype


@pytest.mark.slow
def test_the_explicit_pass_is_differentiated_again(key, float32):
    f, params, carry = estimate(MODELS["elman"], key)
    exact, _, _ = estimate(MODELS["elman"], key, "float32")

    def squared(f):
        return lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(f(p, carry)[2]))

    ours, plain = (jax.jit(jax.grad(squared(f)))(params) for f in (f, exact))
    a, b = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (ours, plain))
    assert jnp.linalg.norm(a - b) < 2**-3 * jnp.linalg.norm(b)


def config(**model):
    return Config(
        data=Data(source=Memory(), batch_size=4, length=8),
        model=settings.RNN(cell=GRU(), hidden_size=8, embedding_size=4, **model),
        train=Train(steps=4),
    )


def test_a_state_of_training_keeps_its_type():
    chosen = config(precision="bfloat16")
    state = init.eval_shape(chosen, V)
    assert "bfloat16" not in {str(leaf.dtype) for leaf in jax.tree.leaves(state)}


def test_only_training_rounds():
    """The model that validates, scores and is probed has the products of float32."""
    chosen = config(precision="bfloat16")
    assert eval_model(chosen, V) == eval_model(config(), V)
    assert eval_model(chosen, V) != make(chosen.model, V)


ROWS = {"few words": (5, 6), "many words": (40, 6), "in parts": (40, 30)}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_added_up_in_order(name, key, monkeypatch):
    """The derivatives of accelerators are those of W[numbers], tokens that come twice included."""
    monkeypatch.setattr(matmuls, "AT_ONCE", 8)
    monkeypatch.setattr(matmuls, "FEW_WORDS", 4)
    V, N = ROWS[name]
    W, numbers = jax.random.normal(key, (V, 3)), jax.random.randint(key, (N // 2, 2), -1, 4)
    d = jax.random.normal(key, (*numbers.shape, 3))
    ours, plain = (
        jax.vjp(f, W) for f in (lambda W: matmuls.rows_in_order(W, numbers), lambda W: W[numbers])
    )
    np.testing.assert_array_equal(ours[0], plain[0])
    np.testing.assert_allclose(ours[1](d)[0], plain[1](d)[0], atol=1e-13)


def test_columns_are_rows_of_the_transpose_on_every_platform(key):
    W, numbers = jax.random.normal(key, (3, 5)), jnp.array([4, 1, 4])

    def value(W):
        return jnp.sum(matmuls.columns(W, numbers) ** 3)

    gradient = jax.grad(lambda W: jnp.sum(W[:, numbers] ** 3))(W)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(W), gradient)
    for platform in "cuda", "tpu":
        lowered = jax.jit(jax.grad(value)).trace(W).lower(lowering_platforms=(platform,))
        assert "scatter" not in lowered.as_text()


@pytest.mark.slow
def test_rows_go_through_every_mode(key):
    numbers, W = jnp.array([[0, 2], [2, 1]]), jax.random.normal(key, (2, 4, 3))
    ours, plain = (
        lambda W: jnp.sum(rows(W, numbers) ** 3),
        lambda W: jnp.sum(W[numbers] ** 3),
    )
    for mode in (jax.grad, jax.hessian, jax.jacfwd):
        np.testing.assert_allclose(jax.vmap(mode(ours))(W), jax.vmap(mode(plain))(W))


@pytest.mark.slow
def test_the_proof_is_of_the_function_that_is_not_rounded():
    assert prove(config(precision="bfloat16"), text="as you like it, " * 40).holds


def test_a_cell_of_ones_own_is_not_rounded_unasked():
    with pytest.raises(UserError, match=r"model\.precision=bfloat16"):
        settings.RNN(cell=settings.CustomCell("mine.py:cell"), precision="bfloat16")
