"""The proof: the routes agree for every cell, and one wrong number in a gradient breaks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import gradients as g
from lm_jax import models
from lm_jax.analysis import prove
from lm_jax.commands.main import main
from lm_jax.config import RNN, Adding, Config, Convolution, Copy, Data, Train
from lm_jax.gradients import proof
from lm_jax.models import transition

BATCH = tiny.batch(length=4, lanes=2)
EXPERIMENT = """
from lm_jax.config import Config, Data, File, RNN, Train

def config():
    return Config(
        data=Data(source=File(train="text.txt"), batch_size=4, length=8),
        model=RNN(embedding_size=3, hidden_size=4),
    )
"""


def verified(model, **settings):
    params = jax.jit(model.init)(jax.random.key(0))
    return g.verify(model, params, BATCH, directions=2, **settings)


def own():
    """A model of a cell of one's own, of whose state a part has no derivative."""

    def step(params, carry, x):
        return jnp.tanh(params["a"] * carry[0] + x[:3] + carry[1]), carry[1] + 1

    return of_a_step(step, (jnp.zeros(3), jnp.zeros((), jnp.int32)), lambda carry: carry[0])


def of_a_step(step, carry, output):
    cell = models.Transition(lambda key: {"a": jnp.ones(3)}, carry, step, output)
    layers = (transition.TransitionLayer(cell, tiny.V),)
    embedding, readout = models.Embedding(tiny.V, None), models.SoftmaxReadout(tiny.V)
    return models.RNNModel(embedding, readout, layers=layers, hidden_size=3)


def cell(kind, **fields):
    return tiny.rnn(**{"embedding_size": 3, "hidden_size": 4, "cell": kind, **fields})


def convolution():
    return models.make(Convolution(width=2, hidden_size=4, embedding_size=3), tiny.V)


RECURRENT = {
    "elman": (
        lambda: cell("elman", cell__activation="relu", layers=2, residual=True),
        "explicit BPTT",
    ),
    "lstm": (lambda: cell("lstm", cell__layer_norm=True, cell__peepholes=True), "explicit BPTT"),
    "gru": (lambda: cell("gru", embedding_size=None), "explicit BPTT"),
    "mogrifier": (lambda: cell("mogrifier", cell__rank=2, layers=2), None),
    "reset before": (lambda: cell("gru", cell__reset="before"), None),
    "minlstm": (lambda: cell("minlstm"), "parallel scan"),
    "diagonal": (lambda: cell("lru"), "parallel scan"),
    "rglru": (lambda: cell("rglru"), "parallel scan"),
    "sru": (lambda: cell("sru"), None),
    "slstm": (lambda: cell("slstm"), "explicit BPTT"),
    "mlstm": (lambda: cell("mlstm", cell__heads=2), None),
    "GLU block": (lambda: cell("lru", block="glu", layers=2), "parallel scan"),
    "MLP block": (lambda: cell("elman", block="mlp", block__convolution=2), "explicit BPTT"),
}
TRAINED = {
    **RECURRENT,
    "own": (own, None),
    "window": (tiny.window, None),
    "convolution": (convolution, None),
}


@pytest.mark.quick("elman")
@pytest.mark.parametrize("name", RECURRENT)
def test_all_routes_agree_for_every_cell(name):
    make, trained = RECURRENT[name]
    model = make()
    checks = verified(model)
    first = [trained] if trained else []
    exact = len(first) + 1
    assert [check.route for check in checks[:exact]] == [*first, "RTRL"]
    blocks = len(jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    assert len(checks) == exact + 1 + blocks
    assert all(check.agrees for check in checks)
    assert max(check.difference for check in checks[:exact]) < 1e-11


@pytest.mark.quick("elman", "lstm", "minlstm", "window", "GLU block")
@pytest.mark.parametrize("name", TRAINED)
def test_a_route_is_shown_where_it_is_a_program_of_its_own(name):
    """Autodiff against itself would prove nothing."""
    make, trained = TRAINED[name]
    model = make()
    at = jax.jit(model.init)(jax.random.key(0)), model.init_carry(2), BATCH
    found = [jax.jit(way(model)).lower(*at).as_text() for way in (g.explicit_bptt, g.full_bptt)]
    assert (found[0] != found[1]) == (trained is not None)
    assert proof.trained_by(model) == trained


@pytest.mark.slow
def test_a_model_without_recurrence_is_proven_without_rtrl():
    checks = verified(tiny.window())
    assert checks[0].route == "finite differences"
    assert all(check.route.startswith("finite differences") for check in checks)
    assert all(check.agrees for check in checks)


@pytest.mark.slow
def test_where_an_influence_would_be_too_large_forward_mode_goes_along_the_directions():
    checks = verified(tiny.rnn(), largest=100)
    assert checks[1].route == "RTRL along directions"
    assert checks[1].difference < 1e-11


def test_a_state_of_which_a_part_has_no_derivative_goes_along_the_directions():
    checks = verified(own())
    assert checks[0].route == "RTRL along directions"
    assert all(check.agrees for check in checks)


def wrong_by_a_little(make):
    """An estimator one of whose numbers is wrong by 0.1 % of the gradient's norm."""

    def made(model):
        estimator = make(model)

        def estimate(params, carry, batch):
            loss, carry, grads, info = estimator(params, carry, batch)
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
            own, *above = grads["layers"]
            own = {**own, "W_hh": own["W_hh"].at[0, 1].add(1e-3 * norm)}
            return loss, carry, {**grads, "layers": [own, *above]}, info

        return g.Estimator(estimator.init_carry, estimate, estimator.model_carry)

    return made


@pytest.mark.quick("explicit_bptt-failing0", "rtrl-failing1")
@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("explicit_bptt", {"explicit BPTT"}),
        ("rtrl", {"RTRL"}),
        # What all are held against is wrong itself.
        (
            "full_bptt",
            {"explicit BPTT", "RTRL", "finite differences", "finite differences of layers.0.W_hh"},
        ),
    ],
)
def test_one_wrong_number_breaks_the_checks_that_see_it(name, failing, monkeypatch):
    monkeypatch.setattr(proof, name, wrong_by_a_little(getattr(proof, name)))
    model = tiny.rnn(hidden_size=4, embedding_size=3)
    assert {check.route for check in verified(model) if not check.agrees} == failing


def test_a_gradient_that_is_not_finite_is_not_proven():
    model = tiny.rnn(hidden_size=4, embedding_size=3)
    params = jax.jit(model.init)(jax.random.key(0))
    params["readout"]["b_y"] = params["readout"]["b_y"].at[0].set(jnp.nan)
    checks = g.verify(model, params, BATCH, directions=1)
    assert np.isnan(checks[0].difference)
    assert not any(check.agrees for check in checks)


def test_a_batch_without_targets_proves_nothing():
    model = tiny.rnn(hidden_size=4, embedding_size=3)
    with pytest.raises(ValueError, match="no target"):
        g.verify(model, model.init(jax.random.key(0)), BATCH._replace(mask=BATCH.mask & False))


def narrow_step(params, h, x):
    return (params["a"] * h).astype(jnp.float16).astype(h.dtype) + x[:3]


@pytest.mark.parametrize(
    ("make", "narrow"),
    [
        (lambda: cell("lstm", precision="bfloat16"), "bfloat16"),
        (lambda: tiny.window(precision="bfloat16"), "bfloat16"),
        (lambda: of_a_step(narrow_step, jnp.zeros(3), lambda h: h), "float16"),
    ],
    ids=["lstm", "window", "own"],
)
def test_a_model_that_rounds_is_refused(make, narrow):
    """Its routes would differ by the rounding, and right gradients would seem wrong."""
    with pytest.raises(ValueError, match=f"float64 to {narrow}, .*precision=float32"):
        verified(make())


def test_without_float64_there_is_no_proof():
    model = tiny.rnn(hidden_size=4, embedding_size=3)
    with jax.enable_x64(False), pytest.raises(ValueError, match="needs float64"):
        g.verify(model, model.init(jax.random.key(0)), BATCH)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    (tmp_path / "lab.py").write_text(EXPERIMENT)
    return tmp_path


def told(capsys, *arguments):
    status = main(["verify", "lab.py", *arguments], "python run.py")
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.slow
def test_the_command_prints_what_it_proved_and_on_what(folder, capsys, monkeypatch):
    status, out, err = told(capsys, "--model.cell", "lstm")
    assert (status, err) == (0, "")
    assert "RTRL" in out
    assert "all routes agree: " in out
    assert "8 tokens of 2 sequences, float64" in out
    assert "NO" not in out
    assert "precision" not in out
    monkeypatch.setattr(proof, "explicit_bptt", wrong_by_a_little(proof.explicit_bptt))
    status, out, _ = told(capsys, "--model.cell", "lstm")
    assert status == 1
    assert "1 of 9 checks failed" in out


@pytest.mark.slow
def test_the_command_says_at_which_precision_it_proved_it(folder, capsys):
    status, out, _ = told(capsys, "--model.precision", "bfloat16")
    assert status == 0
    assert "at model.precision=float32, not at the run's bfloat16" in out


def test_the_command_tells_mistakes_in_one_line(folder, capsys):
    status, _, err = told(capsys, "--model", "ngram")
    assert (status, err) == (2, "error: model=ngram is not trained by gradients\n")
    status, _, err = told(capsys, "--model.hiden-size", "3")
    assert status == 2
    assert "--model.hiden-size" in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [Adding(), Copy(symbols=3, items=2), Adding(length=4)],
    ids=["adding", "copy", "shorter than its room"],
)
def test_it_holds_on_the_sequences_of_a_task_where_they_are_asked(task):
    """Real inputs and targets too; where nothing is asked for, nothing would agree with nothing."""
    data = Data(source=task, length=12, batch_size=3)
    proof = prove(Config(data=data, model=RNN(embedding_size=None, hidden_size=3), train=Train()))
    assert proof.holds
    assert (proof.steps, proof.sequences) == (8, 2)
    assert any(check.difference > 0 for check in proof.checks)
