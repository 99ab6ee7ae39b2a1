"""Runs of counted models: the same directory, scored and sampled by the same code."""

import json
import math

import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import generation, scoring
from lm_jax.config import Config, Data, Memory, NGram
from lm_jax.report.run_page import write_run
from lm_jax.report.terminal import show_result
from lm_jax.settings import UserError


def config(**fields):
    return Config(data=Data(source=Memory()), model=NGram(**{"order": 3, **fields}))


def test_a_counted_run_is_judged_saved_and_read_back(tmp_path):
    rows = []
    run = lm_jax.train(config(), tmp_path, text=tiny.TEXT, watch=lambda step, row: rows.append(row))
    again = lm_jax.load_run(tmp_path)
    tiny.assert_trees_equal(run.params, again.params)
    assert run.result["status"] == "finished"
    assert [row["split"] for row in rows] == ["validation", "test"]
    assert run.result["splits"]["test"]["nats"] == rows[1]["nats"]
    grams = run.result["ngrams"]
    assert [row["order"] for row in grams] == [1, 2, 3]
    assert grams[2]["possible"] == len(run.vocabulary) ** 3
    scored = scoring.score(run.model, run.params, run.vocabulary, tiny.TEXT[:50])
    assert np.all(scored.nats > 0)
    text = generation.sample(run.model, run.params, run.vocabulary, length=40, seed=1)
    assert set(text) <= set(tiny.TEXT)


def test_a_finished_count_is_not_made_again_and_a_broken_one_is(tmp_path):
    first = lm_jax.train(config(), tmp_path, text=tiny.TEXT)
    calls = []
    lm_jax.train(config(), tmp_path, text=tiny.TEXT, watch=lambda *told: calls.append(told))
    assert calls == []
    (tmp_path / "result.json").unlink()
    again = lm_jax.train(config(), tmp_path, text=tiny.TEXT)
    assert again.result["sha256"] == first.result["sha256"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.filterwarnings("ignore:passing over the damaged checkpoint")
def test_a_count_whose_checkpoint_is_damaged_is_made_again(tmp_path):
    first = lm_jax.train(config(), tmp_path, text=tiny.TEXT)
    for file in (tmp_path / "checkpoints").rglob("manifest.json"):
        file.write_text("{}")
    again = lm_jax.train(config(), tmp_path, text=tiny.TEXT)
    assert again.result["sha256"] == first.result["sha256"]


@pytest.mark.parametrize(
    "fields",
    [
        {"smoothing": "interpolated"},
        {"smoothing": "add-k", "k": 0.01},
        {"sentence_boundaries": False},
        {"prune": (0, 10)},
        {"entropy_threshold": 0.01},
    ],
    ids=str,
)
def test_every_smoothing_makes_a_run(fields, tmp_path, capsys):
    run = lm_jax.train(config(**fields), tmp_path, text=tiny.TEXT)
    sizes = run.result["ngrams"][2]
    pruned = bool(fields.keys() & {"prune", "entropy_threshold"})
    assert (sizes["kept"] < sizes["seen"]) == pruned
    show_result(run)
    assert (" kept " in capsys.readouterr().out) == pruned
    assert (">kept<" in write_run(tmp_path, run, None).read_text()) == pruned
    tiny.assert_trees_equal(run.params, lm_jax.load_run(tmp_path).params)
    assert run.result["splits"]["test"]["perplexity"] < len(run.vocabulary)


@pytest.mark.slow
def test_maximum_likelihood_may_give_a_text_no_probability_at_all(tmp_path):
    texts = ("ab" * 50 + "\n", "aab\n", "aab\n")
    run = lm_jax.train(config(smoothing="none"), tmp_path, text=texts)
    assert run.result["splits"]["test"]["nats"] is None  # infinite, for which JSON has no number
    found = scoring.score(run.model, run.params, run.vocabulary, "aab\n")
    assert math.isinf(found.loss.nats)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"order": 0}, "order=0: input should be greater than 0"),
        ({"order": 10**6}, "order=1000000 is longer than any n-gram of the text"),
        ({"k": 0.5}, "model.k is read only with model.smoothing=add-k"),
        ({"prune": (1, 1)}, "model.prune=(1, 1) must begin with 0 and never fall"),
        ({"prune": (0, 2, 1)}, "model.prune=(0, 2, 1) must begin with 0 and never fall"),
        ({"prune": (0, 1, 1, 1)}, "model.prune=(0, 1, 1, 1) has more numbers than model.order=3"),
        (
            {"prune": (0, 10**6)},
            "prune=(0, 1000000) leaves no 2-grams: prune less, or take",
        ),
        ({"prune": (0, 1), "smoothing": "backoff"}, "are not read with model.smoothing=backoff"),
        (
            {"entropy_threshold": 1e-4, "smoothing": "add-k"},
            "model.entropy_threshold is not read with model.smoothing=add-k",
        ),
        ({"smoothing": "backoff"}, "model.smoothing=backoff is the model of an ARPA file"),
    ],
)
def test_what_cannot_be_counted_is_refused_before_anything_is_written(fields, said, tmp_path):
    with pytest.raises(UserError) as refusal:
        lm_jax.train(config(**fields), tmp_path / "run", text=tiny.TEXT)
    assert said in str(refusal.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_dynamic_evaluation_of_a_counted_model_is_refused(tmp_path):
    run = lm_jax.train(config(), tmp_path, text=tiny.TEXT)
    scorer = scoring.dynamic(run.model, scoring.sgd(run.params, learning_rate=0.1), 4)
    with pytest.raises(UserError, match="learns by gradient descent"):
        scoring.score(run.model, run.params, run.vocabulary, tiny.TEXT, scorer)
