"""The gradient tools asked of a run: while it trains, and afterwards as numbers and a page."""

import json
import math
import re
from html import escape
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import rows_of, stopping_at

import lm_jax
from lm_jax import gradients as g
from lm_jax.analysis import chunks, probing, reach, spike, state_at
from lm_jax.analysis.next_updates import PARTS, Updates, estimators
from lm_jax.config import (
    RNN,
    SGD,
    Adding,
    Config,
    Copy,
    Data,
    LiveProbe,
    NGram,
    Train,
    resolve,
)
from lm_jax.data.batches import batch_at, first_sequences, streams
from lm_jax.data.corpus import load
from lm_jax.data.tasks import held_out
from lm_jax.data.vocabulary import BYTES
from lm_jax.gradients.live_probe import live
from lm_jax.report.page import Drawing
from lm_jax.report.reach_sections import reach_sections
from lm_jax.report.run_page import write_run
from lm_jax.report.study import as_plain, write_study
from lm_jax.report.update_sections import update_sections
from lm_jax.settings import UserError
from lm_jax.training import step
from lm_jax.training.checkpoint import steps_saved
from lm_jax.training.trainer import pipeline_of
from lm_jax.trees import norm

# --- while training -------------------------------------------------------------------------------

LANES = 2
LIVE = LiveProbe(every=6, lags=True, sequences=LANES)
CONFIG = tiny.config(train={"probe": LIVE})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return lm_jax.train(CONFIG, tmp_path_factory.mktemp("run") / "run", text=tiny.TEXT)


def probes_of(run_dir):
    return [row for row in rows_of(run_dir) if row["kind"] == "probe"]


def read_at(run, state):
    """What the update after a state reads."""
    config = resolve(run.config)
    source = pipeline_of(config, load(config.data, tiny.TEXT)).whole()
    carry, batch = step.peek_batch(config, state, source, len(run.vocabulary))
    return state.params, carry, batch


def test_a_probe_is_of_the_update_that_comes_next(run):
    rows = probes_of(run.path)
    assert [row["step"] for row in rows] == [0, 6, 12, 18, 20]
    found = live(LIVE, run.model)(*read_at(run, state_at(run, 12, text=tiny.TEXT)))
    place = {"step": 12, "kind": "probe", "split": "train"}
    assert rows[2] == {**place, **jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), found)}


def test_the_deltas_of_a_record_are_the_mean_over_its_updates(run):
    rows = [row for row in rows_of(run.path) if row["kind"] == "train"]
    assert [row["step"] for row in rows[:2]] == [1, 5]
    estimate = jax.jit(g.full_bptt(run.model, delta_norms=True))
    states = [state_at(run, at, text=tiny.TEXT) for at in (0, 1, 2, 3, 4)]
    norms = [estimate(*read_at(run, state))[3].delta_norms for state in states]
    np.testing.assert_allclose(rows[0]["delta_norms"], norms[0], rtol=1e-9)
    np.testing.assert_allclose(rows[1]["delta_norms"], np.mean(norms[1:], axis=0), rtol=1e-9)


def test_stop_and_resume_probes_as_the_uninterrupted_run(run, tmp_path):
    for at in (3, 6, 18):
        with pytest.raises(SystemExit):
            lm_jax.train(CONFIG, tmp_path, text=tiny.TEXT, watch=stopping_at(at))
    again = lm_jax.train(CONFIG, tmp_path, text=tiny.TEXT)
    assert rows_of(tmp_path) == rows_of(run.path)
    tiny.assert_trees_equal(again.params, run.params)


def test_more_steps_afterwards_leave_no_trace_of_the_earlier_end(run, tmp_path):
    """That it was asked at the end, which is no multiple of `every`, included."""
    short = tiny.config(train={"probe": LIVE, "steps": 10})
    lm_jax.train(short, tmp_path, text=tiny.TEXT)
    assert [row["step"] for row in probes_of(tmp_path)] == [0, 6, 10]
    lm_jax.train(CONFIG, tmp_path, text=tiny.TEXT)
    assert rows_of(tmp_path) == rows_of(run.path)


def test_probes_change_nothing_of_the_training(run, tmp_path):
    plain = lm_jax.train(tiny.config(), tmp_path, text=tiny.TEXT)
    tiny.assert_trees_close(plain.params, run.params, 1e-9)


# --- the study of a run ---------------------------------------------------------------------------

SENTENCE = "the cat lay"


@pytest.fixture(scope="module")
def found(run):
    return lm_jax.probe(run, text=tiny.TEXT, sequences=2, sentence=SENTENCE)


@pytest.mark.slow
def test_a_study_is_of_the_kept_parameters_and_the_next_updates(run, found):
    assert (found.step, found.spike, found.length, found.sequences) == (20, None, 8, 2)
    assert found.parameters_step == run.result["parameters_step"]
    params, carry, batch = read_at(run, state_at(run, 20, text=tiny.TEXT))
    loss, _, grads, _ = jax.jit(g.full_bptt(run.model).estimate)(params, carry, batch)
    cliff = found.updates.cliff
    np.testing.assert_allclose(cliff.loss, loss, rtol=1e-9)
    np.testing.assert_allclose(cliff.gradient_norm, norm(grads), rtol=1e-9)


def test_the_names_of_the_parts_are_those_of_the_results():
    assert get_args(probing.Part) == (*reach.Reach._fields, *PARTS, "spike")
    assert {*PARTS} < {*Updates._fields}


@pytest.mark.slow
def test_some_parts_are_those_of_the_whole_study(run, found, monkeypatch):
    given = {"text": tiny.TEXT, "sequences": 2, "sentence": SENTENCE}
    part = lm_jax.probe(run, **given, only=["lags", "cliff"])
    assert part.reach == reach.Reach(lags=part.reach.lags)
    assert part.updates == Updates(length=part.updates.length, cliff=part.updates.cliff)
    tiny.assert_trees_close(part.reach.lags, found.reach.lags, 1e-9)
    tiny.assert_trees_close(part.updates.cliff, found.updates.cliff, 1e-6)
    assert part.updates.length == pytest.approx(found.updates.length, rel=1e-9)
    assert (part.spike, part.length, part.sequences) == (None, 8, 2)
    # Without a part that reads the chunk, the text need not hold one.
    monkeypatch.setattr(chunks, "chunk", None)
    part = lm_jax.probe(run, text=tiny.TEXT, sequences=0, only=["spike"])
    assert part[3:] == (None, None, reach.Reach(), Updates())
    assert (part.step, part.spike) == (20, spike(run, text=tiny.TEXT))
    assert [*reach_sections({}, "elman", "probe"), *update_sections({}, "probe")] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the run has learned nothing")
def test_a_study_tells_of_which_step_its_parameters_are_though_the_result_is_lost(
    tmp_path, monkeypatch
):
    config = tiny.config(train={"optimizer": SGD(), "learning_rate": 100.0, "clip_norm": None})
    run = lm_jax.train(config, tmp_path, text=tiny.TEXT)
    assert 0 < run.result["parameters_step"] < run.step
    monkeypatch.setattr(probing, "reach", lambda *_, **__: reach.Reach())
    monkeypatch.setattr(probing, "updates", lambda *_, **__: Updates())
    found = lm_jax.probe(run._replace(result=None), text=tiny.TEXT, sequences=2, sentence=SENTENCE)
    assert found.parameters_step == run.result["parameters_step"]


@pytest.mark.parametrize(
    ("fields", "separate"),
    [
        ({"cell": "lstm"}, True),
        ({"cell": "mingru"}, True),
        ({"cell": "gru", "cell__reset": "before"}, False),
    ],
)
def test_snap1_is_compared_where_the_units_of_a_cell_are_separate(fields, separate):
    model = tiny.rnn(**fields)
    params = model.init(jax.random.key(0))
    made = estimators(model, params, steps=4, batch_size=LANES, key=jax.random.key(1))
    assert ("SnAp-1" in made) == separate
    assert {"truncated, k1=k2=1", "truncated, k1=k2=2", "UORO", "RTRL"} <= set(made)


@pytest.mark.slow
def test_the_reach_is_of_the_second_chunk_of_every_lane(run, found):
    tokens = np.asarray(load(resolve(run.config).data, tiny.TEXT).validation.tokens)
    source = streams(tokens[: len(tokens) // 2 * 2], run.vocabulary.boundary, 2)
    first, second = (batch_at(source, number, 8) for number in range(2))
    carry, _ = jax.jit(run.model.hidden)(run.params, run.model.init_carry(2), first.x)
    _, _, grads, _ = jax.jit(g.full_bptt(run.model).estimate)(run.params, carry, second)
    by_lag = found.reach.by_lag
    np.testing.assert_allclose(by_lag.truncations.norm[-1], norm(grads["layers"]), rtol=1e-9)
    np.testing.assert_allclose(by_lag.truncations.cosine[-1], 1, rtol=1e-9)
    lane = g.single_example(run.model)

    @jax.jit
    def at_end(carry, x, y):
        return g.lag_norms(lane.step, run.params, carry, x, 4)

    # The ends are after 4, 6 and 8 steps.
    expected = [
        at_end(jax.tree.map(lambda leaf, n=n: leaf[n], before), second.x[end - 4 : end, n], None)
        for end in (4, 6, 8)
        for before in [run.model.hidden(run.params, carry, second.x[: end - 4])[0]]
        for n in range(2)
    ]
    np.testing.assert_allclose(found.reach.lags.measured, np.mean(expected, axis=0), rtol=1e-9)


def test_the_credit_map_is_of_the_sentence_from_its_start(run, found):
    lane, y = g.single_example(run.model), run.vocabulary.encode(SENTENCE)
    x = np.append(run.vocabulary.boundary, y[:-1])
    whole = jax.jit(lambda *at: g.credit_map(lane.step, lane.loss, *at))
    expected = whole(run.params, lane.carry, jnp.asarray(x), jnp.asarray(y))
    credit = found.reach.credit
    np.testing.assert_allclose(credit.map, expected, rtol=1e-10)
    assert "".join(credit.targets) == SENTENCE
    assert "".join(credit.words) == "\\n" + SENTENCE[:-1]


def test_predictions_from_the_weights_are_of_an_ungated_layer_s(run, found):
    W = np.asarray(run.params["layers"][0]["W_hh"])
    guesses = found.reach.lags.predicted
    radius = np.max(np.abs(np.linalg.eigvals(W)))
    np.testing.assert_allclose(guesses.radius, radius ** np.arange(5), rtol=1e-4)
    np.testing.assert_allclose(guesses.slope_norm, np.linalg.norm(W, 2) ** np.arange(5), rtol=1e-4)
    (spectra,) = found.reach.dynamics.spectra.values()
    np.testing.assert_allclose(spectra.blocks[0].radius, radius, rtol=1e-9)


def test_eigenvalues_through_training_are_of_the_start_the_checkpoints_and_the_study(run, found):
    dynamics = found.reach.dynamics
    steps = {0, *steps_saved(run.path), found.parameters_step}
    assert {*dynamics.eigenvalues} == steps
    (own,) = dynamics.eigenvalues[found.parameters_step]["layers.0.W_hh"]
    np.testing.assert_array_equal(own, dynamics.spectra["layers.0.W_hh"].blocks[0].eigenvalues)
    (first,) = dynamics.eigenvalues[0]["layers.0.W_hh"]
    W = state_at(run, 0, text=tiny.TEXT).params["layers"][0]["W_hh"]
    np.testing.assert_allclose(np.abs(first).max(), np.abs(np.linalg.eigvals(W)).max(), rtol=1e-6)


@pytest.mark.slow
def test_a_study_of_a_step_is_of_the_state_before_it(run, monkeypatch):
    """At the spike, too; what is asked there is another test's."""
    asked = {}

    def reached(model, params, *rest, **settings):
        asked["reach"] = params
        return reach.Reach()

    def updates(model, params, carry, batches, *, apply, **settings):
        asked["updates"] = params
        asked["batches"] = batches
        asked["moved"] = apply(
            params, jax.jit(g.full_bptt(model).estimate)(params, carry, batches[0])[2]
        )

    monkeypatch.setattr(probing, "reach", reached)
    monkeypatch.setattr(probing, "updates", updates)
    worst = spike(run, text=tiny.TEXT)
    given = {"text": tiny.TEXT, "sequences": 1}
    for at, expected in ((7, 7), ("spike", worst.step)):
        found = lm_jax.probe(run, step=at, **given)
        assert (found.step, found.parameters_step) == (expected, expected)
        assert found.spike == (worst if at == "spike" else None)
        state, after = (state_at(run, n, text=tiny.TEXT) for n in (expected, expected + 1))
        tiny.assert_trees_equal(asked["reach"], state.params)
        tiny.assert_trees_equal(asked["updates"], state.params)
        tiny.assert_trees_equal(asked["batches"][0], read_at(run, state)[2])
        # The run does not clip, so its own update is the one that is looked at.
        tiny.assert_trees_close(asked["moved"], after.params, 1e-9)
    # Without a step, the reach is of the parameters that are kept, whichever the last ones were.
    kept = run._replace(params=tiny.moved(run.params))
    found = lm_jax.probe(kept, **given)
    assert (found.step, found.parameters_step) == (20, run.result["parameters_step"])
    tiny.assert_trees_equal(asked["reach"], kept.params)
    tiny.assert_trees_equal(asked["updates"], state_at(run, 20, text=tiny.TEXT).params)


def test_a_text_of_two_short_chunks_is_enough(run):
    tokens = run.vocabulary.encode("cats")
    seen = chunks.chunk(run.model, run.params, run.vocabulary, tokens, length=2, sequences=1)
    lane = g.single_example(run.model)
    dynamics = reach._dynamics(lane, run.params, run.vocabulary, seen)
    assert dynamics.text == ["a t"]
    carry = jax.tree.map(lambda leaf: leaf[0], seen.carry)
    read = jnp.asarray(run.vocabulary.encode("at"))
    expected = g.lyapunov_spectrum(lane.step, run.params, carry, read, 1)
    np.testing.assert_allclose(dynamics.windows, expected, rtol=1e-9)


def test_what_cannot_be_studied_is_refused(run, monkeypatch):
    given = {"text": tiny.TEXT, "sequences": 2}
    for fields, said in [
        ({"step": 21}, r"step=21 must be from 0 to the 20 updates"),
        ({"step": -1}, r"step=-1 must be from 0"),
        (
            {"tokens": np.zeros(31, np.int32)},
            r"31 tokens over sequences=2 make 15 each, and two chunks",
        ),
        ({"sentence": ""}, "the sentence is empty"),
        ({"sentence": "\ufeff"}, "the sentence is empty"),
        ({"seed": -1}, "seed=-1 must be from 0 to 4294967295"),
        ({"seed": 2**33}, "seed=8589934592 must be from 0"),
        ({"length": 1}, "length=1 must be 2 or more"),
        ({"sequences": 0}, "sequences=0 1 or more"),
        ({"text": None}, "hands it over again, as text="),
        ({"only": ["lag"]}, r"only=lag: choose from lags, by_lag, .*; did you mean 'lags'\?"),
        ({"only": []}, "only=: choose from lags"),
    ]:
        with pytest.raises(UserError, match=said):
            lm_jax.probe(run, **{**given, **fields})
    of_bytes = run._replace(vocabulary=BYTES)
    with pytest.raises(UserError, match=r"the sentence .* is not UTF-8"):
        lm_jax.probe(of_bytes, **given, sentence="a\udcff", tokens=np.zeros(99, np.int32))
    with pytest.raises(UserError, match="no recurrent state"):
        lm_jax.probe(run._replace(model=tiny.window()), **given)
    counted = run._replace(config=Config(data=run.config.data, model=NGram(order=2)))
    with pytest.raises(UserError, match="not trained by gradients"):
        lm_jax.probe(counted, **given)


# --- the study of a run on a task -----------------------------------------------------------------


@pytest.fixture(scope="module", params=[Copy(symbols=3, items=2), Adding()], ids=lambda t: t.kind)
def solver(request, tmp_path_factory):
    data = Data(source=request.param, length=20, batch_size=4)
    model = RNN(embedding_size=None, hidden_size=5)
    config = Config(data=data, model=model, train=Train(steps=4, log_every=2))
    return lm_jax.train(config, tmp_path_factory.mktemp("task") / "run")


@pytest.mark.slow
def test_a_task_is_studied_on_whole_sequences_that_were_never_read(solver):
    # A whole study compiles for a minute; one task has one, the other these parts.
    whole = isinstance(solver.config.data.source, Copy)
    found = lm_jax.probe(solver, sequences=2, only=None if whole else ["by_lag", "credit"])
    assert (found.step, found.length, found.sequences) == (4, 20, 2)
    batch = first_sequences(held_out(solver.config.data, "validation")[0](), 2)
    estimate = jax.jit(g.full_bptt(solver.model).estimate)
    _, _, grads, _ = estimate(solver.params, solver.model.init_carry(2), batch)
    by_lag, credit = found.reach.by_lag, found.reach.credit
    asked = np.asarray(batch.mask[:, 0])
    np.testing.assert_allclose(by_lag.truncations.norm[-1], norm(grads["layers"]), rtol=1e-9)
    np.testing.assert_allclose(by_lag.truncations.cosine[-1], 1, rtol=1e-9)
    assert np.all((credit.map != 0).any(axis=1) == asked)
    assert [word != "" for word in credit.targets] == asked.tolist()
    assert (credit.bands, credit.by_word, credit.by_target) == (None, None, None)
    assert found.updates.exposure is None
    assert (found.updates.cliff is not None) == whole
    write_study(solver, found, "probe")
    page = write_run(solver.path, solver).read_text()
    assert "on 2 sequences of 20 steps" in page
    assert "rare tokens" not in page
    assert "own text" not in page


def test_what_is_of_a_text_is_refused_of_a_task(solver):
    for fields, said in [
        ({"length": 9}, "length is of a text, and .* of 20 steps"),
        ({"sentence": "a"}, "sentence is of a text"),
        ({"tokens": np.zeros(9, np.int32)}, "tokens is of a text"),
        ({"sequences": 0}, "sequences=0 must be from 1 to 100"),
        ({"sequences": 101}, "sequences=101 must be from 1 to 100"),
        ({"only": ["exposure"]}, "exposure is of a text"),
    ]:
        with pytest.raises(UserError, match=said):
            lm_jax.probe(solver, **fields)


# --- numbers and a page ---------------------------------------------------------------------------


def test_a_study_is_written_as_strict_json_and_one_page(run, found):
    broken = found.reach.by_lag._replace(
        norms=np.array([1.0, math.nan, math.inf, *found.reach.by_lag.norms[3:]]),
        horizon={"0.5": 1.0, "0.9": math.nan},
    )
    found = found._replace(reach=found.reach._replace(by_lag=broken))
    path = write_study(run, found, "probe-x")
    assert path == run.path / "probe-x.json"
    numbers = path.read_text()

    def literal(name):
        raise AssertionError(name)

    read = json.loads(numbers, parse_constant=literal)
    assert read["reach"]["by_lag"]["norms"][:3] == [1.0, None, None]
    assert read["reach"]["by_lag"]["horizon"] == {"0.5": 1.0, "0.9": None}
    assert (read["length"], read["sequences"]) == (8, 2)
    assert np.array(read["reach"]["credit"]["map"]).shape == (len(SENTENCE), len(SENTENCE))
    value = found.reach.dynamics.spectra["layers.0.W_hh"].blocks[0].eigenvalues[0]
    block = read["reach"]["dynamics"]["spectra"]["layers.0.W_hh"]["blocks"][0]
    assert block["eigenvalues"][0] == [value.real, value.imag]

    sections = [
        *reach_sections(read["reach"], "lstm", "probe-x"),
        *update_sections(read["updates"], "probe-x"),
    ]
    drawn = [part for section in sections for part in section.parts if isinstance(part, Drawing)]
    assert len(drawn) >= 14
    assert len({part.name for part in drawn}) == len(drawn)
    assert all(section.finding for section in sections)
    assert "within 10 % at no length measured" in sections[0].finding
    html = write_run(run.path).read_text()
    assert html.count('class="wide"') == html.count("save as SVG")
    for part in drawn:
        assert (run.path / "figures" / f"{part.name}.svg").exists()
    for section in sections:
        assert f"<h3>{escape(section.title)}</h3>" in html
    # Nothing is loaded from elsewhere.
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=.(?!data:|#)", html)


def test_a_word_cannot_break_the_page(run, found):
    words = ["</script><b>", "&amp;", *found.reach.credit.words[2:]]
    credit = found.reach.credit._replace(words=words)
    write_study(run, found._replace(reach=found.reach._replace(credit=credit)), "probe-y")
    assert "</script><b>" not in write_run(run.path).read_text()


def test_plain_values_keep_their_shape():
    found = as_plain({1: (np.array([1 + 2j]), jnp.ones((1, 2))), "a": [None, "b", 3]})
    assert found == {"1": [[[1.0, 2.0]], [[1.0, 1.0]]], "a": [None, "b", 3]}
