"""The recurrence: the backward pass written by hand is the gradient, as often as it is taken."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax.config import (
    GRU,
    LRU,
    LSTM,
    MLSTM,
    SLSTM,
    Elman,
    GLUBlock,
    MinGRU,
    MLPBlock,
    Mogrifier,
    NoBlock,
)
from lm_jax.models import RNNModel, SoftmaxReadout, cells, layers, recurrence
from lm_jax.models.base import NO_HOOK, EdgeHook
from lm_jax.models.embedding import Embedding

H, B, T = 3, 2, 5
CELLS = {
    "elman": cells.ElmanCell(H, "sigmoid"),
    "lstm": cells.LSTMCell(H),
    "peepholes": cells.LSTMCell(H, peepholes=True),
    "layer norm": cells.LSTMCell(H, layer_norm=True),
    "gru": cells.GRUCell(H),
}


def plain(cell, params, carry, z_x):
    """The scan as it stands: any hook between the steps asks for it."""
    return layers.unroll(cell, params, carry, z_x, NO_HOOK)


def case(name):
    cell = CELLS[name]
    key = jax.random.key(3)
    params = tiny.moved(cell.init(key))
    carry = tiny.moved(cell.init_carry(B), seed=2)
    return cell, params, carry, jax.random.normal(key, (T, B, cell.width))


def objective(run, cell):
    """A function of everything that comes out, the last carry included."""
    weights = jax.random.normal(jax.random.key(4), (T, B, H))

    def value(params, carry, z_x):
        last, h = run(cell, params, carry, z_x)
        return jnp.sum(weights * h) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

    return value


@pytest.mark.parametrize("name", CELLS)
def test_the_gradient_by_hand_is_that_of_autodiff(name):
    cell, *point = case(name)
    by_hand, autodiff = (
        jax.jit(jax.value_and_grad(objective(run, cell), (0, 1, 2)))(*point)
        for run in (recurrence.explicit, plain)
    )
    tiny.assert_trees_close(by_hand, autodiff)


@pytest.mark.quick(
    "elman-by hand", "layer norm-by hand", "gru-by hand", "lstm-by hand", "lstm-plain"
)
@pytest.mark.parametrize("between", [None, NO_HOOK], ids=["by hand", "plain"])
@pytest.mark.parametrize("name", CELLS)
def test_the_tap_has_the_norm_of_delta_for_its_gradient(name, between):
    """δ_t is what autodiff gives for a shift added to the carry after step t."""
    cell, params, carry, z_x = case(name)
    d_carry = jax.tree.map(lambda leaf: jnp.zeros((T, *leaf.shape)), carry)

    def run(shifts, tap):
        def shifted(carry, shift):
            return jax.tree.map(jnp.add, carry, shift)

        def hooked(*args):
            if tap is None:
                return layers.unroll(*args, EdgeHook(shifted, shifts))
            return layers.unroll(*args, between, tap)

        return objective(hooked, cell)(params, carry, z_x)

    delta = jax.grad(lambda shifts: run(shifts, None))(d_carry)
    expected = sum(jnp.sum(leaf**2, axis=-1) for leaf in jax.tree.leaves(delta))
    found = jax.jit(jax.grad(lambda tap: run(None, tap)))(jnp.zeros((T, B)))
    tiny.assert_trees_close(found, jnp.sqrt(expected))


@pytest.mark.parametrize("name", ["elman", "lstm"])
def test_second_derivatives_go_through_the_gradient_by_hand(name):
    """A Hessian-vector product, reverse over reverse and forward over reverse."""
    cell, *point = case(name)
    direction = tiny.moved(jax.tree.map(jnp.zeros_like, point), seed=9)
    found = []
    for run in (recurrence.explicit, plain):
        gradient = jax.grad(objective(run, cell), (0, 1, 2))

        def along(*point, gradient=gradient):
            products = jax.tree.map(lambda a, b: jnp.sum(a * b), list(gradient(*point)), direction)
            return sum(jax.tree.leaves(products))

        found.append(list(jax.jit(jax.grad(along, (0, 1, 2)))(*point)))
    _, forward = jax.jit(
        lambda *point: jax.jvp(
            jax.grad(objective(recurrence.explicit, cell), (0, 1, 2)), point, tuple(direction)
        )
    )(*point)
    tiny.assert_trees_close(found[0], found[1])
    tiny.assert_trees_close(list(forward), found[1])


def test_lanes_of_other_weights_are_mapped():
    cell, params, carry, z_x = case("lstm")
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    gradient = jax.grad(objective(recurrence.explicit, cell))
    mapped = jax.jit(jax.vmap(gradient, in_axes=(0, None, None)))(two, carry, z_x)
    for lane in range(2):
        alone = gradient(jax.tree.map(lambda leaf, lane=lane: leaf[lane], two), carry, z_x)
        tiny.assert_trees_close(jax.tree.map(lambda leaf, lane=lane: leaf[lane], mapped), alone)


def scans_by_platform(name):
    """The scans of the gradient, forwards and backwards: on a CPU, and on an accelerator."""
    cell, *point = case(name)
    jaxpr = jax.make_jaxpr(jax.grad(objective(recurrence.explicit, cell)))(*point)
    chosen = [e.params["branches"] for e in jaxpr.jaxpr.eqns if e.primitive.name == "cond"]
    return zip(*([scan_in(branch) for branch in branches] for branches in chosen), strict=True)


def scan_in(branch):
    (found,) = [e for e in branch.jaxpr.eqns if e.primitive.name == "scan"]
    return found


def test_the_backward_pass_makes_the_weights_gradient_after_the_scan():
    """Within the scans only the products with W_hh and its transpose are left, on any platform."""
    for scans in scans_by_platform("lstm"):
        products = [str(e.params["jaxpr"]).count("dot_general") for e in scans]
        assert products == [1, 1]


def test_a_gate_that_sees_a_sum_keeps_one_gradient_of_it():
    # An accelerator's scan also keeps δ_t of the GRU, for the gradient of the bias of n.
    for name, kept in (("elman", [1, 1]), ("lstm", [1, 1]), ("gru", [2, 3])):
        scans = [backward for _, backward in scans_by_platform(name)]
        stacked = [sum(v.aval.shape[:1] == (T,) for v in scan.outvars) for scan in scans]
        assert stacked == kept, name


def test_h_is_the_cell_step_by_step():
    for name in CELLS:
        cell, params, carry, z_x = case(name)
        last, h = recurrence.explicit(cell, params, carry, z_x)
        for t in range(T):
            carry = cell.step(params, carry, z_x[t])
            np.testing.assert_allclose(h[t], cell.output(carry), rtol=1e-13)
        tiny.assert_trees_close(last, carry)


def test_more_tokens_than_words_are_read_through_a_table_of_the_words_alone():
    """C W_xh made once for each word is x W_xh of each token; so are the gradients of both."""
    words = 4
    embedding = Embedding(words, 2)
    layer = layers.CellLayer(CELLS["lstm"], embedding)
    model = RNNModel(embedding, SoftmaxReadout(words), layers=(layer,), hidden_size=H)
    params = tiny.moved(model.init(jax.random.key(1)))
    carry = tiny.moved(model.init_carry(1), seed=2)
    x = jax.random.randint(jax.random.key(5), (8, 1), 0, words)

    def by(read):
        def value(params):
            last, h = read(params)
            return jnp.sum(jnp.sin(h)) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

        return jax.jit(jax.value_and_grad(value))(params)

    def in_pieces(params):
        # Three tokens are fewer than the words, so that each is read by its own vector.
        before, pieces = carry, []
        for piece in (x[:3], x[3:6], x[6:]):
            before, h = model.hidden(params, before, piece)
            pieces.append(h)
        return before, jnp.concatenate(pieces)

    tiny.assert_trees_close(by(lambda params: model.hidden(params, carry, x)), by(in_pieces))
    products = str(jax.make_jaxpr(model.hidden)(params, carry, x))
    assert f"f64[{words},{CELLS['lstm'].width}] = dot_general" in products


def test_parameters_made_ready_read_token_by_token_without_the_product():
    """One lookup stands for the vector and its product with W_xh; no parameter is touched."""
    words = 4
    embedding = Embedding(words, 2)
    layer = layers.CellLayer(CELLS["gru"], embedding)
    model = RNNModel(embedding, SoftmaxReadout(words), layers=(layer,), hidden_size=H)
    params = tiny.moved(model.init(jax.random.key(1)))
    assert model.precompute(params, words - 1) is params
    ready = model.precompute(params, words)
    carry, x = model.init_carry(1), jnp.array([[3]])
    for _ in range(2):
        tiny.assert_trees_close(model.hidden(ready, carry, x), model.hidden(params, carry, x))
        carry = model.hidden(params, carry, x)[0]
    products = [str(jax.make_jaxpr(model.hidden)(p, carry, x)) for p in (params, ready)]
    assert products[0].count("dot_general") == products[1].count("dot_general") + 1


@pytest.mark.quick("lstm", "layer norm", "gru")
@pytest.mark.parametrize("name", CELLS)
def test_the_pass_of_accelerators_is_that_of_a_cpu(name, monkeypatch):
    """With the gates computed twice, with idle units, and with the norm of δ."""
    monkeypatch.setattr(recurrence, "UNROLL", 2)
    cell, *point = case(name)
    tap = jnp.zeros((T, B))

    def value(run):
        def of(params, carry, z_x, tap):
            bound = lambda *given: run(*given, tap)  # noqa: E731
            return objective(bound, cell)(params, carry, z_x)

        return jax.jit(jax.value_and_grad(of, (0, 1, 2, 3)))(*point, tap)

    tiny.assert_trees_close(value(recurrence.lean), value(recurrence.explicit))


def test_the_program_of_an_accelerator_has_idle_units_and_the_cpu_s_has_none():
    cell, *point = case("lstm")

    def lowered(platform):
        run = jax.jit(lambda *given: recurrence.explicit(cell, *given))
        return run.trace(*point).lower(lowering_platforms=(platform,)).as_text()

    enlarged = f"{recurrence.ALIGNED}x{4 * recurrence.ALIGNED}xf64"  # W_hh
    assert enlarged in lowered("cuda")
    assert enlarged in lowered("tpu")
    assert enlarged not in lowered("cpu")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("cell", "block"),
    [
        slow(Elman(), NoBlock()),
        (LSTM(peepholes=True), NoBlock()),
        slow(LSTM(layer_norm=True), NoBlock()),
        slow(GRU(), NoBlock()),
        slow(GRU(reset="before"), NoBlock()),
        slow(MinGRU(), NoBlock()),
        slow(LRU(), NoBlock()),
        slow(Mogrifier(rank=2), NoBlock()),
        slow(SLSTM(), NoBlock()),
        slow(MLSTM(heads=2), NoBlock()),
        slow(MinGRU(), MLPBlock(convolution=3)),
        slow(LRU(), GLUBlock()),
    ],
    ids=str,
)
def test_steps_without_a_token_leave_the_carry_and_the_gradient_as_they_are(cell, block):
    model = tiny.rnn(hidden_size=(6, 4), layers=2, cell=cell, block=block)
    params, batch = tiny.moved(model.init(jax.random.key(0))), tiny.batch()
    first = tiny.moved(model.init_carry(tiny.B))
    after = {}
    for name, steps in (("whole", 4), ("padded", tiny.T)):
        there = jnp.arange(steps)[:, None] < 4
        x = jnp.where(there, batch.x[:steps], -1)
        mask = jnp.broadcast_to(there, x.shape)
        reading = dataclasses.replace(model, holds=name == "padded")

        def loss(params, first, model=reading, x=x, mask=mask, y=batch.y[:steps]):
            carry, h = model.hidden(params, first, x)
            ends = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(carry))
            return model.loss(params, h, y, mask) + ends, carry

        after[name] = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, first)
    tiny.assert_trees_close(after["padded"], after["whole"])
