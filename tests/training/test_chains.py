"""Any Optax chain: rules by name and of one's own, groups of parameters, accumulation, averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import lm_jax
from lm_jax.config import (
    ASGD,
    RNN,
    SGD,
    Adafactor,
    Adan,
    Config,
    CustomOptimizer,
    Group,
    Lion,
    Momentum,
    Muon,
    Train,
    resolve,
)
from lm_jax.data.batches import streams
from lm_jax.settings import UserError
from lm_jax.training.optimizer import optimizer
from lm_jax.training.state import accumulated
from lm_jax.training.step import init, run_until

RATE = 0.1
MODEL = tiny.rnn(layers=2)
PARAMS = MODEL.init(jax.random.key(0))
RNG = np.random.default_rng(0)
GRADS = [jax.tree.map(lambda w: jnp.asarray(RNG.normal(size=w.shape)), PARAMS) for _ in range(3)]


def path(rule, params=PARAMS):
    """The parameters after an update with each of the gradients."""
    state = rule.init(params)
    for grads in GRADS:
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def made(**fields):
    return path(optimizer(Train(**fields), RATE))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            Adan(beta1=0.9, beta2=0.8, beta3=0.7, eps=1e-3, weight_decay=0.1),
            optax.adan(RATE, b1=0.9, b2=0.8, b3=0.7, eps=1e-3, weight_decay=0.1),
        ),
        (
            Adafactor(factor_from=4, decay=0.7, clip=0.5, relative=False, momentum=0.6),
            optax.adafactor(
                RATE,
                min_dim_size_to_factor=4,
                decay_rate=0.7,
                clipping_threshold=0.5,
                multiply_by_parameter_scale=False,
                momentum=0.6,
                dtype_momentum=jnp.float64,
            ),
        ),
        (CustomOptimizer("optax:nadam", arguments={"b1": 0.8}), optax.nadam(RATE, b1=0.8)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_rule_by_name_is_optax_s(config, expected):
    tiny.assert_trees_equal(made(optimizer=config), path(expected))


def test_lion_is_its_formula():
    """Chen et al. (2023), algorithm 2."""

    def lion(w, *grads):
        m = 0
        for g in grads:
            w = w - RATE * (jnp.sign(0.8 * m + 0.2 * g) + 0.05 * w)
            m = 0.7 * m + 0.3 * g
        return w

    found = made(optimizer=Lion(beta1=0.8, beta2=0.7, weight_decay=0.05))
    tiny.assert_trees_close(found, jax.tree.map(lion, PARAMS, *GRADS))


def test_muon_turns_hidden_matrices_and_leaves_the_rest_to_adam():
    rule = optimizer(Train(optimizer=Muon(iterations=20)), 1.0)
    updates, _ = rule.update(GRADS[0], rule.init(PARAMS), PARAMS)
    W = updates["layers"][0]["W_hh"]
    singular = np.linalg.svd(W, compute_uv=False)
    assert singular.min() > 0.6  # the published polynomial brings all near 1, not to 1
    assert singular.max() < 1.3
    adam = optax.nadam(1.0)
    expected, _ = adam.update(GRADS[0], adam.init(PARAMS), PARAMS)
    for part in ("embedding", "readout"):
        tiny.assert_trees_close(updates[part], expected[part])
    np.testing.assert_allclose(updates["layers"][1]["b_h"], expected["layers"][1]["b_h"])


def test_groups_have_a_rate_a_decay_and_a_rule_of_their_own():
    found = made(
        optimizer=SGD(),
        learning_rate=0.5,
        weight_decay=0.2,
        groups=(
            Group("embedding.*", learning_rate=0.0),
            Group("*.0.W_hh", optimizer=Momentum(momentum=0.8)),
            Group("*W_hh", weight_decay=0.0, learning_rate=1.0),
        ),
    )
    plain = made(optimizer=SGD(), weight_decay=0.2)
    tiny.assert_trees_equal(found["embedding"], PARAMS["embedding"])
    tiny.assert_trees_equal(found["readout"], plain["readout"])
    first, second = found["layers"]
    momentum = made(optimizer=Momentum(momentum=0.8), weight_decay=0.2)
    np.testing.assert_array_equal(first["W_hh"], momentum["layers"][0]["W_hh"])
    # Twice train.learning_rate, and therefore twice the rate of the step.
    steps = sum(grads["layers"][1]["W_hh"] for grads in GRADS)
    expected = PARAMS["layers"][1]["W_hh"] - 2 * RATE * steps
    np.testing.assert_allclose(second["W_hh"], expected, rtol=1e-12)
    np.testing.assert_array_equal(second["W_xh"], plain["layers"][1]["W_xh"])


@pytest.mark.parametrize("pattern", ["layers.0.W_hh", "*W_hh", ""])
def test_a_group_without_parameters_is_refused(pattern):
    """Also a pattern that comes twice, and the empty one."""
    train = Train(groups=(Group("*W_hh"), Group(pattern)))
    with pytest.raises(UserError) as refusal:
        optimizer(train, RATE).init(PARAMS)
    assert str(refusal.value).startswith(f"train.groups.1.pattern={pattern!r} leaves no parameter")


OWN = """import optax

def chain(learning_rate, decay=0.5, steps=1):
    return optax.chain(optax.trace(decay=decay), optax.scale(-1), optax.scale(learning_rate))

def nothing(learning_rate):
    return learning_rate

def plateau(learning_rate):
    return optax.chain(
        optax.sgd(learning_rate),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0),
    )
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    return lambda name, **arguments: CustomOptimizer(f"{file}:{name}", arguments=arguments)


def test_a_chain_of_one_s_own_takes_its_hyperparameters(own):
    resolved = resolve(Config(train=Train(optimizer=own("chain", decay=0.8)))).train
    assert resolved.optimizer.arguments == {"decay": 0.8, "steps": 1}
    assert len(resolved.optimizer.sha256) == 64
    tiny.assert_trees_close(path(optimizer(resolved, RATE)), made(optimizer=Momentum(momentum=0.8)))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("nothing", {}, "mine.py:nothing: it gives no optax.GradientTransformation"),
        ("chains", {}, "has no chains; did you mean 'chain'?"),
        ("chain", {"deca": 1.0}, "mine.py:chain has no parameter deca; did you mean 'decay'?"),
    ],
)
def test_a_wrong_chain_is_refused_in_a_line(own, name, arguments, said):
    with pytest.raises(UserError) as refusal:
        optimizer(resolve(Config(train=Train(optimizer=own(name, **arguments)))).train, RATE)
    assert str(refusal.value).startswith("train.optimizer=")
    assert said in str(refusal.value)


@pytest.mark.slow
def test_a_chain_that_reads_the_loss_gets_it(own, tmp_path):
    config = tiny.config(train={"optimizer": own("plateau"), "steps": 3})
    assert lm_jax.train(config, tmp_path / "run", text=tiny.TEXT).step == 3


V = tiny.V
SOURCE = streams(np.random.default_rng(0).integers(0, V, 400).astype(np.int32), 0, 4)


def trained(steps, **train):
    train = {"optimizer": Momentum(momentum=0.5), "learning_rate": 0.5, **train}
    config = resolve(tiny.config(model=RNN(embedding_size=4, hidden_size=5), train=train))
    return run_until(config, init(config, V), SOURCE, steps, V)


@pytest.mark.slow
def test_accumulated_gradients_make_one_change_of_their_mean():
    """Two changes of four batches each, by hand: gradients at the same parameters, averaged."""
    found = trained(8, accumulate=4, clip_norm=0.1)
    assert int(found.step) == 8
    still = trained(7, accumulate=4, clip_norm=0.1)
    once = trained(4, accumulate=4, clip_norm=0.1)
    tiny.assert_trees_equal(still.params, once.params)
    tiny.assert_trees_equal(still.opt_state, once.opt_state)
    # The rate 0 leaves the parameters where they are, and the traces hold the gradients.
    start, means = trained(0), []
    for first in (0, 4):
        grads = []
        state = start if not means else once
        state = jax.tree.map(jnp.copy, state)
        config = resolve(
            tiny.config(
                model=RNN(embedding_size=4, hidden_size=5),
                train={"optimizer": Momentum(momentum=0.0), "learning_rate": 1e-30},
            )
        )
        for step in range(first, first + 4):
            state = state._replace(accumulated=None, opt_state=start.opt_state)
            state = run_until(config, jax.tree.map(jnp.copy, state), SOURCE, step + 1, V)
            grads.append(state.opt_state[0].trace)
        means.append(jax.tree.map(lambda *g: sum(g) / 4, *grads))
    trace, params = jax.tree.map(jnp.zeros_like, start.params), start.params
    for mean in means:
        length = optax.tree.norm(mean)
        clipped = jax.tree.map(lambda g, length=length: g * 0.1 / length, mean)
        trace = jax.tree.map(lambda m, g: 0.5 * m + g, trace, clipped)
        params = jax.tree.map(lambda w, m: w - 0.5 * m, params, trace)
    tiny.assert_trees_close(found.params, params, 1e-9)


def test_accumulated_gradients_are_a_mean_and_begin_anew():
    state = trained(0, accumulate=2)._replace(accumulated=GRADS[2])
    for number, expected in enumerate(
        (GRADS[0], jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[:2]), GRADS[2])
    ):
        mean = accumulated(state._replace(step=jnp.int32(number)), GRADS[number], 2)
        tiny.assert_trees_close(mean, expected)
        state = state._replace(accumulated=mean)


@pytest.mark.slow
def test_the_moving_average_weighs_past_parameters_by_powers_of_its_decay():
    past = [trained(step).params for step in range(1, 5)]
    weights = 0.8 ** np.arange(3, -1, -1)

    def mean(*leaves):
        return sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)) / weights.sum()

    state = trained(4, ema_decay=0.8)
    tiny.assert_trees_close(state.eval_params, jax.tree.map(mean, *past))
    tiny.assert_trees_equal(state.params, past[-1])


def test_the_moving_average_is_validated_and_kept(tmp_path):
    config = tiny.config(train={"ema_decay": 0.9, "steps": 10, "keep_best": False})
    run = lm_jax.train(config, tmp_path / "run", text=tiny.TEXT)
    plain = lm_jax.train(
        tiny.config(train={"steps": 10, "keep_best": False}), tmp_path / "plain", text=tiny.TEXT
    )
    assert run.result["splits"] != plain.result["splits"]
    again = lm_jax.load_run(tmp_path / "run")
    tiny.assert_trees_equal(again.params, run.params)


def test_two_averages_are_refused():
    with pytest.raises(UserError, match=r"train\.ema_decay does not go with train\.optimizer=asgd"):
        Train(ema_decay=0.9, optimizer=ASGD())


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": Muon(), "accumulate": 3},
        {"ema_decay": 0.9, "groups": (Group("*W_hh", optimizer=Lion()),)},
    ],
)
def test_a_stopped_run_ends_as_one_that_was_not_stopped(train, tmp_path):
    config = tiny.config(train={**train, "steps": 10})
    whole = lm_jax.train(config, tmp_path / "whole", text=tiny.TEXT)
    with pytest.raises(SystemExit):
        lm_jax.train(config, tmp_path / "cut", text=tiny.TEXT, watch=tiny.stopping_at(5))
    cut = lm_jax.train(config, tmp_path / "cut", text=tiny.TEXT)
    tiny.assert_trees_equal(cut.params, whole.params)
    assert tiny.rows_of(tmp_path / "cut") == tiny.rows_of(tmp_path / "whole")
