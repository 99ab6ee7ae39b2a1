"""Cells of one's own: what they may be, that they are trained as any cell, and what is refused."""

import dataclasses
import functools
import hashlib
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import rows_of

import lm_jax
from lm_jax import gradients, models
from lm_jax.config import RNN, Config, CustomCell, LiveProbe, custom, resolve
from lm_jax.settings import UserError, digest

H = 5
CELLS = '''
import functools
import jax, jax.numpy as jnp
from flax import linen, nnx
from typing import NamedTuple
from lm_jax.models import Transition

class State(NamedTuple):
    h: jax.Array
    steps: jax.Array

def elman(inputs, hidden_size):
    W, zero = jax.nn.initializers.orthogonal(), jnp.zeros(hidden_size)
    init = lambda key: {"W": W(key, (inputs + hidden_size, hidden_size)), "b": zero}
    step = lambda params, h, x: jnp.tanh(jnp.append(x, h) @ params["W"] + params["b"])
    return Transition(init, zero, step)

def counting(inputs, hidden_size):
    plain = elman(inputs, hidden_size)
    step = lambda params, carry, x: State(plain.step(params, carry.h, x), carry.steps + 1)
    carry = State(jnp.zeros(hidden_size), 0)
    return Transition(plain.init, carry, step, lambda carry: carry.h)

def linen_cell(inputs, hidden_size):
    return linen.SimpleCell(hidden_size)

def nnx_cell(inputs, hidden_size, rngs):
    return nnx.SimpleCell(inputs, hidden_size, dtype=None, rngs=rngs)

class Doubled(linen.RNNCellBase):
    """Its output is no part of its carry."""
    features: int

    @linen.compact
    def __call__(self, carry, x):
        carry = jnp.tanh(linen.Dense(self.features)(jnp.append(x, carry)))
        return carry, 2 * carry

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(self.features)

def transposed(inputs, hidden_size):
    """Its W_hh is [G H, H], which is no row of square blocks."""
    plain = elman(inputs, hidden_size)
    def init(key):
        return {**plain.init(key), "W_hh": jax.random.normal(key, (2 * hidden_size, hidden_size))}
    def step(params, h, x):
        z = params["W_hh"] @ h
        return plain.step(params, jnp.tanh(z[:hidden_size] * z[hidden_size:]), x)
    return Transition(init, jnp.zeros(hidden_size), step)

three = 3
def nothing(inputs, hidden_size): return None
def grows(inputs, hidden_size):
    return elman(inputs, hidden_size)._replace(step=lambda params, h, x: jnp.append(h, 0.0))
def halves(inputs, hidden_size):
    return elman(inputs, hidden_size)._replace(step=lambda params, h, x: h.astype(jnp.float16))
def pairs(inputs, hidden_size):
    return elman(inputs, hidden_size)._replace(step=lambda params, h, x: (h, h))
def longer(inputs, hidden_size):
    return elman(inputs, hidden_size)._replace(output=lambda h: jnp.append(h, 0.0))
def two(inputs, hidden_size):
    return elman(inputs, hidden_size)._replace(output=lambda h: (h, h))
def whole(inputs, hidden_size):
    return elman(inputs, hidden_size)._replace(init=lambda key: {"n": jnp.arange(3)})
def wrong(inputs, hidden_size):
    return elman(inputs, hidden_size)._replace(step=lambda params, h, x: h @ jnp.zeros((1, 1)))
class Plain: pass
class Kept(nnx.Module):
    def __init__(self, inputs, hidden_size, rngs):
        self.norm = nnx.BatchNorm(hidden_size, rngs=rngs)
    def initialize_carry(self, shape, rngs): return jnp.zeros(5)
    def __call__(self, carry, x): return carry, carry
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CELLS)
    return tmp_path / "mine.py"


def translated(name, p):
    """The built-in Elman's parameters as those of another version of it."""
    if name in ("elman", "counting"):
        return {"W": jnp.concatenate([p["W_xh"], p["W_hh"]]), "b": p["b_h"]}
    inputs, states = {"kernel": p["W_xh"], "bias": p["b_h"]}, {"kernel": p["W_hh"]}
    if name == "linen_cell":
        return {"i": inputs, "h": states}
    return {"dense_i": inputs, "dense_h": states}


def losses_of(model, params):
    """The losses of two updates, the carry handed on."""
    estimate, carry, losses = jax.jit(gradients.full_bptt(model)), model.init_carry(tiny.B), []
    for step in range(2):
        loss, carry, grads, _ = estimate(params, carry, tiny.batch(step, start=step == 0))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        losses.append(float(loss))
    return losses


@functools.cache
def built_in():
    model = tiny.rnn()
    params = model.init(jax.random.key(0))
    return params, losses_of(model, params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["elman", "counting", "linen_cell", "nnx_cell"])
def test_an_elman_cell_of_one_s_own_learns_what_the_built_in_one_does(file, name):
    params, losses = built_in()
    model = tiny.rnn(cell=f"mine.py:{name}")
    own = translated(name, params["layers"][0])
    drawn = model.init(jax.random.key(0))["layers"][0]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), own) == jax.tree.map(
        lambda a: (a.shape, a.dtype), drawn
    )
    np.testing.assert_allclose(losses_of(model, {**params, "layers": [own]}), losses, rtol=1e-13)


@pytest.mark.quick("flax.nnx:OptimizedLSTMCell")
@pytest.mark.parametrize("name", ["flax.linen:OptimizedLSTMCell", "flax.nnx:OptimizedLSTMCell"])
def test_a_class_of_flax_is_a_cell(name):
    """A built-in LSTM's parameters, put where Flax keeps them, say the same; one-hot tokens."""
    plain = tiny.rnn(cell="lstm", embedding_size=None)
    own = tiny.rnn(cell=name, embedding_size=None)
    params, x = tiny.moved(plain.init(jax.random.key(0))), tiny.batch().x
    p = params["layers"][0]
    if "nnx" in name:
        layer = {"dense_i": {"kernel": p["W_xh"]}}
        layer["dense_h"] = {"kernel": p["W_hh"], "bias": p["b_h"]}
    else:
        W, U, b = (jnp.split(p[key], 4, axis=-1) for key in ("W_xh", "W_hh", "b_h"))
        layer = {f"i{gate}": {"kernel": W[k]} for k, gate in enumerate("ifgo")}
        layer |= {f"h{gate}": {"kernel": U[k], "bias": b[k]} for k, gate in enumerate("ifgo")}
    _, h = plain.hidden(params, plain.init_carry(tiny.B), x)
    _, same = own.hidden({**params, "layers": [layer]}, own.init_carry(tiny.B), x)
    tiny.assert_trees_close(h, same)


def test_an_output_that_is_no_part_of_the_carry_is_read_too(file):
    """And a second layer reads H numbers; reading in chunks is reading at once."""
    model = tiny.rnn(cell="mine.py:Doubled", layers=2)
    params, x = tiny.moved(model.init(jax.random.key(0))), tiny.batch().x
    carry, h = model.hidden(params, model.init_carry(tiny.B), x)
    for own, (state, output) in zip(params["layers"], carry, strict=True):
        assert own["Dense_0"]["kernel"].shape[0] in (4 + H, H + H)
        np.testing.assert_array_equal(output, 2 * state)
    np.testing.assert_array_equal(h[-1], carry[-1][1])
    middle, first = model.hidden(params, model.init_carry(tiny.B), x[:2])
    last, second = model.hidden(params, middle, x[2:])
    tiny.assert_trees_close((last, jnp.concatenate([first, second])), (carry, h))


@pytest.mark.slow
def test_a_whole_number_in_the_carry_stands_in_no_gradient_s_way(file):
    """Clipped, cut at random and watched, the gradient is that of the cell without the number."""
    two = [tiny.rnn(cell=f"mine.py:{name}") for name in ("elman", "counting")]
    params = tiny.moved(two[0].init(jax.random.key(0)))

    def asked(call, model):
        return jax.jit(call)(params, model.init_carry(tiny.B), tiny.batch())

    for make in (
        lambda model: gradients.full_bptt(model, clip_delta=0.1),
        lambda model: gradients.randomised_bptt(model, rate=0.3, key=jax.random.key(1)),
    ):
        (loss, _, grads, _), (same_loss, _, same, _) = (asked(make(m).estimate, m) for m in two)
        tiny.assert_trees_close((loss, grads), (same_loss, same))
    watched = (gradients.explicit_bptt(m, delta_norms=True) for m in two)
    norms, same = (asked(call, m)[3] for call, m in zip(watched, two, strict=True))
    tiny.assert_trees_close(norms, same)


HYPERPARAMETERS = """
import jax, jax.numpy as jnp
from flax import linen, nnx
from lm_jax.models import Transition

def scaled(inputs, hidden_size, scale=1.0, heads=1, name="a"):
    zero = jnp.zeros(hidden_size)
    init = lambda key: {"W": scale * jnp.ones((inputs, hidden_size))}
    return Transition(init, zero, lambda params, h, x: x @ params["W"])

class Linen(linen.RNNCellBase):
    features: int
    scale: float = 1.0

    @linen.compact
    def __call__(self, carry, x):
        shape = x.shape[-1], self.features
        carry = x @ self.param("W", linen.initializers.constant(self.scale), shape)
        return carry, carry

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(self.features)

class NNX(nnx.Module):
    def __init__(self, inputs, hidden_size, rngs, scale=1.0):
        self.W = nnx.Param(scale * jnp.ones((inputs, hidden_size)))
        self.H = hidden_size

    def initialize_carry(self, shape, rngs):
        return jnp.zeros(self.H)

    def __call__(self, carry, x):
        return x @ self.W[...], x @ self.W[...]
"""


@pytest.fixture
def adjustable(file):
    file.write_text(HYPERPARAMETERS)


@pytest.mark.parametrize("name", ["scaled", "Linen", "NNX"])
def test_a_hyperparameter_reaches_the_cell(adjustable, name):
    cell = CustomCell(f"mine.py:{name}")
    for arguments, scale in (({}, 1.0), ({"scale": 3.5}, 3.5)):
        model = tiny.rnn(cell=dataclasses.replace(cell, arguments=arguments))
        (layer,) = model.init(jax.random.key(0))["layers"]
        np.testing.assert_array_equal(layer["W"], jnp.full((4, H), scale))


@pytest.mark.parametrize("name", ["scaled", "Linen", "NNX"])
def test_a_hyperparameter_that_the_cell_does_not_have_is_refused(adjustable, name):
    cell = CustomCell(f"mine.py:{name}", arguments={"scal": 2.0})
    with pytest.raises(UserError) as refusal:
        resolve(Config(model=RNN(cell=cell)))
    expected = f"model.cell=mine.py:{name} has no parameter scal; did you mean 'scale'?"
    assert str(refusal.value) == expected


@pytest.mark.parametrize("name", ["scaled", "Linen", "NNX"])
def test_a_whole_number_for_a_fraction_is_the_same_config(adjustable, name):
    """And a default that is given is the same config as one that is filled in."""
    for one, two in (({"scale": 2}, {"scale": 2.0}), ({}, {"scale": 1})):
        configs = [
            resolve(Config(model=RNN(cell=CustomCell(f"mine.py:{name}", arguments=arguments))))
            for arguments in (one, two)
        ]
        assert digest(configs[0]) == digest(configs[1])
        assert type(configs[0].model.cell.arguments["scale"]) is float


MISTAKES = {
    "none.py:elman": "model.cell=none.py:elman: there is no such file",
    "no_such_package.module:elman": "there is no module no_such_package.module",
    "lm_jax.models.no_such:elman": "there is no module lm_jax.models.no_such",
    "mine.py:": "is not of the form FILE.py:NAME",
    "mine.txt/a:elman": "is not of the form FILE.py:NAME",
    "mine.py:elmann": "mine.py has no elmann; did you mean 'elman'?",
    "flax.linen:GRUCel": "flax.linen has no GRUCel; did you mean",
    "broken.py:elman": "broken.py, line 3: NameError: name 'jaxx' is not defined",
    "syntax.py:elman": "syntax.py, line 2: SyntaxError",
    "mine.py:three": "it is a int, no cell",
    "mine.py:nothing": "it is a function that gives a NoneType, no Transition and no cell of Flax",
    "mine.py:Plain": "it is a class, no Transition and no cell of Flax",
    "flax.linen:Dense": "Dense has no initialize_carry",
    "mine.py:Kept": "it keeps more than parameters: ['norm']['mean'], ['norm']['var']",
    "mine.py:grows": "step changes carry from float64[5] to float64[6]",
    "mine.py:halves": "step changes carry from float64[5] to float16[5]",
    "mine.py:pairs": "step changes the structure of the carry from PyTreeDef(*)",
    "mine.py:longer": "output gives float64[6], not the 5 floating-point numbers",
    "mine.py:two": "output gives PyTreeDef((*, *)), not an array of 5 numbers",
    "mine.py:whole": "init gives params['n'] of type int64, not floating-point",
    "mine.py:wrong": "mine.py, line 67: TypeError",
}


@pytest.mark.parametrize("cell", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_cell(file, cell):
    (file.parent / "broken.py").write_text("import jax\n\nx = jaxx.numpy\n")
    (file.parent / "syntax.py").write_text("import jax\ndef f(:\n")
    with pytest.raises(UserError) as refusal:
        tiny.rnn(cell=CustomCell(cell))
    assert MISTAKES[cell] in str(refusal.value)
    assert str(refusal.value).startswith("model.cell=")
    assert "\n" not in str(refusal.value)


def test_a_changed_cell_is_another_run(file, tmp_path, monkeypatch):
    config = Config(model=RNN(cell=CustomCell("mine.py:elman")))
    first = resolve(config)
    assert first.model.cell.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert resolve(first) == first
    file.write_text(CELLS + "# changed\n")
    assert digest(resolve(config)) != digest(first)
    for refused in (lambda: resolve(first), lambda: models.make(first.model, 7)):
        with pytest.raises(UserError, match=r"mine\.py:elman is not what its sha256 says"):
            refused()
    models.make(config.model, 7)  # without a digest, it is what it is now


def test_a_module_s_file_is_looked_at_unless_it_is_installed(tmp_path, monkeypatch):
    package = tmp_path / "some_cells"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "one.py").write_text(CELLS)
    monkeypatch.syspath_prepend(tmp_path)
    # Nothing is imported in order to find it.
    assert custom.code_of(CustomCell("some_cells.one:elman")) == CELLS.encode()
    assert custom.code_of(CustomCell("flax.linen:GRUCell")) is None
    assert custom.code_of(CustomCell("json:elman")) is None
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from .two import *\n")
    (package / "two.py").write_text(CELLS)
    tiny.rnn(cell="some_cells.one:elman")


def test_a_run_of_one_s_own_cell_from_its_training_to_its_loss(file, tmp_path):
    config = tiny.config(
        train={"steps": 3, "log_every": 1},
        model=RNN(cell=CustomCell("mine.py:counting"), embedding_size=4, hidden_size=H),
    )
    run = lm_jax.train(config, "run", text=tiny.TEXT)
    assert run.config.model.cell.sha256 is not None
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4))
    run = lm_jax.train(more, "run", text=tiny.TEXT)
    assert run.step == 4
    tiny.assert_trees_equal(lm_jax.load_run("run").params, run.params)

    file.write_text(CELLS + "# changed\n")
    with pytest.warns(UserWarning, match="run: model.cell=mine.py:counting has changed since"):
        again = lm_jax.load_run("run")
    tiny.assert_trees_equal(again.params, run.params)
    with pytest.raises(UserError, match=r"other settings .*model.cell.sha256: "):
        lm_jax.train(more, "run", text=tiny.TEXT)
    file.unlink()
    with pytest.raises(UserError, match=r"model.cell=mine.py:counting: there is no such file"):
        lm_jax.load_run("run")


@pytest.mark.slow
def test_a_recurrent_matrix_of_another_shape_is_left_out_of_the_spectra(file):
    config = tiny.config(
        train={"steps": 2, "probe": LiveProbe(every=1, by_lag=False, lyapunov=False)},
        model=RNN(cell=CustomCell("mine.py:transposed"), embedding_size=4, hidden_size=H),
    )
    run = lm_jax.train(config, "run", text=tiny.TEXT)
    assert gradients.spectra_by_layer(run.params) == {}
    rows = [row for row in rows_of(Path("run")) if row["kind"] == "probe"]
    assert rows
    for row in rows:
        assert row["spectral_radius"] == row["singular_value"] == {}


def test_a_cell_that_will_not_do_leaves_no_run_behind(file, tmp_path):
    with pytest.raises(UserError, match="step changes carry"):
        lm_jax.train(
            tiny.config(model=RNN(cell=CustomCell("mine.py:grows"))), "run", text=tiny.TEXT
        )
    assert not (tmp_path / "run").exists()


def test_the_experiment_with_its_own_cell_is_one():
    path = Path(__file__).parents[2] / "experiments" / "own_cell.py"
    config = resolve(runpy.run_path(str(path))["config"]())
    assert config.model.cell.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    params = jax.eval_shape(models.make(config.model, 9).init, jax.random.key(0))
    assert params["layers"][0]["W"].shape == (64 + 256, 256)


def test_a_cell_s_file_that_is_the_same_makes_an_equal_model(file):
    one, two = (tiny.rnn(cell="mine.py:elman", layers=2) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    file.write_text(CELLS + "\n# changed\n")
    assert tiny.rnn(cell="mine.py:elman", layers=2) != one
