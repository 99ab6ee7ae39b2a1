"""What training adds to the gradient's step: averages, decay, the model's own tokens, epochs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import lm_jax
from lm_jax.config import ASGD, SGD, ScheduledSampling, Train, Truncated
from lm_jax.training import journal, step
from lm_jax.training import state as states
from lm_jax.training.optimizer import optimizer, own_share


def average(patience):
    return states.empty_average({"w": jnp.zeros(2)}, patience)


def begun(losses, patience):
    """The number, from 1, of the validation at which the average begins; 0 for never."""
    state = average(patience)
    for number, loss in enumerate(losses, 1):
        state = states.looked_at(state, jnp.int32(number), jnp.asarray(loss))
    return int(state.begun)


def awd(losses, patience):
    """Merity et al. (2018), algorithm 1, in the words of its authors' program."""
    for number in range(1, len(losses) + 1):
        before = losses[: number - 1]
        if len(before) > patience and losses[number - 1] > min(before[:-patience]):
            return number
    return 0


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_the_average_begins_by_the_papers_trigger(patience):
    falling = [5.0, 4.0, 3.0, 2.0, 1.0, 0.9, 0.8]
    cases = [falling, [*falling, 4.5, 4.5, 4.5, 4.5], [1.0] * 9, [3, 2, 1, 2, 3, 4, 5, 6, 7, 8]]
    for losses in cases:
        assert begun(losses, patience) == awd(losses, patience), losses
    assert any(awd(losses, patience) for losses in cases)


def test_the_average_is_the_mean_of_the_parameters_since_it_began():
    params = [np.array([float(n), n**2]) for n in range(9)]
    state = average(1)
    for made, new in enumerate(params[1:]):  # params[n] stands after n updates
        at = states.TrainState(
            step=jnp.int32(made),
            params=None,
            opt_state=(),
            carry=None,
            record=None,
            early_stopping=None,
            best_params=None,
            average=state,
        )
        state = states.averaged(at, {"w": jnp.asarray(new)})
        np.testing.assert_allclose(
            state.params["w"],
            np.mean(params[min(4, made + 1) : made + 2], 0) if made + 1 >= 4 else new,
        )
        if made + 1 == 4:
            state = state._replace(begun=jnp.int32(4))


@pytest.mark.slow
def test_a_run_with_averages_is_judged_and_kept_on_them(tmp_path):
    train = {"optimizer": ASGD(patience=1), "learning_rate": 5.0, "steps": 24, "validate_every": 2}
    config = tiny.config(train={**train, "keep_best": False})
    run = lm_jax.train(config, tmp_path / "last", text=tiny.TEXT)
    plain = tiny.config(train={**train, "optimizer": SGD(), "keep_best": False})
    other = lm_jax.train(plain, tmp_path / "plain", text=tiny.TEXT)
    # The same updates, and other parameters in the end.
    assert run.result["sha256"] != other.result["sha256"]
    best = lm_jax.train(tiny.config(train=train), tmp_path / "best", text=tiny.TEXT)
    assert best.result["splits"]["validation"]["nats"] <= run.result["splits"]["validation"]["nats"]


def test_weight_decay_is_a_gradient_of_half_the_squared_norm():
    w, g = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.1])
    rule = optimizer(Train(optimizer=SGD(), weight_decay=0.5), 0.1)
    updates, _ = rule.update(g, rule.init(w), w)
    np.testing.assert_allclose(optax.apply_updates(w, updates), w - 0.1 * (g + 0.5 * w), rtol=1e-15)


@pytest.mark.parametrize("curve", ["linear", "exponential", "sigmoid"])
def test_the_share_of_own_tokens_goes_from_start_to_end_and_stays(curve):
    feeding = ScheduledSampling(start=0.2, end=0.8, curve=curve, steps=10)
    shares = np.array([float(own_share(feeding, jnp.int32(n))) for n in range(14)])
    np.testing.assert_allclose(shares[[0, 10, 13]], [0.2, 0.8, 0.8], atol=1e-12)
    assert np.all(np.diff(shares[:11]) > 0)
    middle = {"linear": 0.5, "exponential": None, "sigmoid": 0.5}[curve]
    if middle is not None:
        np.testing.assert_allclose(shares[5], middle, atol=1e-12)
    else:
        assert shares[5] > 0.7


@pytest.mark.slow
def test_own_tokens_at_a_share_of_none_are_teacher_forcing(tmp_path):
    base = tiny.config(train={"steps": 6})
    forced = lm_jax.train(base, tmp_path / "forced", text=tiny.TEXT)
    for number, (share, same) in enumerate([(0.0, True), (1.0, False)]):
        feeding = ScheduledSampling(start=share, end=share, steps=4)
        config = tiny.config(train={"steps": 6, "feeding": feeding})
        run = lm_jax.train(config, tmp_path / str(number), text=tiny.TEXT)
        assert (run.result["sha256"] == forced.result["sha256"]) == same


@pytest.mark.quick("{}")
@pytest.mark.parametrize("gradient", [{}, {"gradient": Truncated(k1=4, k2=9)}], ids=str)
def test_a_run_on_its_own_tokens_resumes_to_the_bit(gradient, tmp_path):
    feeding = ScheduledSampling(start=0.5, end=0.5, draw="likeliest", steps=4)
    whole, parts = ({"steps": n, "feeding": feeding, **gradient} for n in (10, 5))
    long = lm_jax.train(tiny.config(train=whole), tmp_path / "long", text=tiny.TEXT)
    lm_jax.train(tiny.config(train=parts), tmp_path / "parts", text=tiny.TEXT)
    run = lm_jax.train(tiny.config(train=whole), tmp_path / "parts", text=tiny.TEXT)
    assert run.result["sha256"] == long.result["sha256"]


@pytest.mark.slow
def test_epochs_are_as_many_updates_as_they_take(tmp_path):
    config = tiny.config(train={"epochs": 2, "validate_every": None})
    run = lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    tokens = round(0.9 * len(tiny.TEXT))
    each = math.ceil(math.ceil(tokens / 4) / 8)  # 4 lanes, 8 tokens of each an update
    assert run.step == 2 * each
    more = tiny.config(train={"epochs": 3, "validate_every": None})
    assert lm_jax.train(more, tmp_path / "run", text=tiny.TEXT).step == 3 * each


@pytest.mark.slow
def test_frozen_vectors_stay_and_others_move(tmp_path):
    letters = sorted(set(tiny.TEXT) - {"\n", " "})
    lines = [f"{letter} {n} 0.5 -0.25 1\n" for n, letter in enumerate(letters)]
    (tmp_path / "vectors.txt").write_text("".join(lines))
    for freeze in (True, False):
        model = lm_jax.config.RNN(
            embedding_size=4,
            hidden_size=5,
            vectors=str(tmp_path / "vectors.txt"),
            freeze=("embedding.*",) if freeze else (),
        )
        config = tiny.config(train={"steps": 3, "weight_decay": 0.1}, model=model)
        run = lm_jax.train(config, tmp_path / str(freeze), text=tiny.TEXT)
        found = run.params["embedding"]["C"][run.vocabulary.numbers[letters[2]]]
        assert np.array_equal(found, [2, 0.5, -0.25, 1]) == freeze
        assert run.result["vectors"]["found"] == len(letters)
        jax.block_until_ready(run.params)


def test_vectors_that_have_changed_since_are_another_run(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("t 1 2 3 4\n")
    model = lm_jax.config.RNN(embedding_size=4, hidden_size=5, vectors=str(path))
    config = tiny.config(train={"steps": 1}, model=model)
    lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    path.write_text("t 1 2 3 5\n")
    with pytest.raises(lm_jax.UserError, match="vectors_sha256"):
        lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)


def test_a_run_begins_with_another_s_parameters_and_leaves_the_frozen_ones(tmp_path):
    """Parts by pattern; the rest is drawn; frozen parameters have no share in the gradient."""
    small = {"embedding_size": 4, "hidden_size": 5}

    def train(name, **model):
        config = tiny.config(train={"steps": 2}, model=lm_jax.config.RNN(**small, **model))
        return lm_jax.train(config, tmp_path / name, text=tiny.TEXT)

    first = train("first")
    parts = {"init_parts": ("layers.*",), "freeze": ("layers.*.W_hh", "embedding.C")}
    tuned = train("tuned", init_from=str(first.path), **parts)
    rows = journal.read_rows(tuned.path / "metrics.jsonl")
    assert rows[0]["kind"] == "init_from"
    assert rows[0]["run_step"] == 2
    assert rows[0]["parameters"] == 4 * 5 + 5 * 5 + 5
    old, new = first.params["layers"][0], tuned.params["layers"][0]
    np.testing.assert_array_equal(new["W_hh"], old["W_hh"])
    assert not np.array_equal(new["W_xh"], old["W_xh"])
    assert np.max(np.abs(new["W_xh"] - old["W_xh"])) < 0.1  # two updates away
    drawn = tuned.model.init(jax.random.fold_in(jax.random.key(0), step.Draw.INIT))
    np.testing.assert_allclose(tuned.params["embedding"]["C"], drawn["embedding"]["C"], rtol=1e-14)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"init_from": "nowhere"}, "nowhere is not a run directory"),
        ({"init_from": "first", "hidden_size": 6}, r"W_hh is \[5, 5\] there and \[6, 6\] here"),
        ({"init_from": "first", "layers": 2}, r"first has no layers.1.W_hh \[5, 5\]"),
        ({"init_from": "first", "init_parts": ("lay",)}, "init_parts='lay' matches no parameter"),
        ({"freeze": ("*",)}, r"model.freeze=\* leaves nothing to train"),
        ({"freeze": ("b_h",)}, "model.freeze='b_h' matches no parameter"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_before_anything_is_written(
    model, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def train(name, **model):
        model = lm_jax.config.RNN(**{"embedding_size": 4, "hidden_size": 5, **model})
        return lm_jax.train(tiny.config(train={"steps": 1}, model=model), name, text=tiny.TEXT)

    train("first")
    with pytest.raises(lm_jax.UserError, match=said):
        train("other", **model)
    assert not (tmp_path / "other" / "config.json").exists()


def test_another_vocabulary_is_named_before_the_shapes_that_follow_from_it(tmp_path):
    first = lm_jax.train(tiny.config(train={"steps": 1}), tmp_path / "first", text=tiny.TEXT)
    model = lm_jax.config.RNN(embedding_size=4, hidden_size=5, init_from=str(first.path))
    with pytest.raises(lm_jax.UserError, match="first has another vocabulary, and "):
        lm_jax.train(tiny.config(model=model), tmp_path / "other", text=tiny.TEXT + "jazz\n")
