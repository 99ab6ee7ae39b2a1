"""Bits a character where tokens are unknown: there are none, for their characters have no price.

A word that the vocabulary lacks is scored as `<unk>`, at the price of one token; which word it was
costs nothing. Dividing by all characters would make a model the better, the fewer words it knows.
"""

import json
import math

import pytest
import tiny

import lm_jax
from lm_jax import scoring
from lm_jax.config import RNN, Config, Data, Memory, NGram, Word
from lm_jax.data.sizes import TextSize
from lm_jax.data.text import in_memory
from lm_jax.report.progress import Display
from lm_jax.report.run_page import write_run
from lm_jax.report.score_table import show_score
from lm_jax.report.sweep import show_sweep
from lm_jax.report.terminal import UNPAID, show_result
from lm_jax.report.wording import SPACED
from lm_jax.scoring import Loss, parallel_scorer
from lm_jax.training.journal import read_rows

WORDS = "the cat sat on the mat and the dog lay by the cat\n"
KNOWN = (WORDS * 20, WORDS, WORDS * 2)
UNHEARD = (WORDS * 20, WORDS + "the extraordinarily long cat\n", WORDS)


def counted(order=2, **data):
    text = tiny.changed(Data(source=Memory(), tokenizer=Word()), **data)
    return Config(data=text, model=NGram(order=order))


def rows_of(run):
    rows = read_rows(run.path / "metrics.jsonl")
    return {row["split"]: row for row in rows if row["kind"] == "evaluation"}


def test_bits_are_those_of_all_characters_where_every_token_is_known(tmp_path):
    run = lm_jax.train(counted(), tmp_path, text=KNOWN)
    for split, text in zip(("validation", "test"), KNOWN[1:], strict=True):
        row = run.result["splits"][split]
        nats = row["nats"] * row["tokens"]
        assert row["bits_per_character"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-12)
        assert rows_of(run)[split] == {"step": 0, "kind": "evaluation", "split": split, **row}


def test_a_split_with_unknown_tokens_has_no_bits_a_character(tmp_path, capsys):
    """The fewer words a unigram model tells apart, the fewer nats: sums of P are larger than P."""
    few = lm_jax.train(counted(1, tokenizer__size=3), tmp_path / "few", text=KNOWN)
    all_known = lm_jax.train(counted(1), tmp_path / "all", text=KNOWN)
    row, known = (run.result["splits"]["test"] for run in (few, all_known))
    assert row["unknown"] > 0
    assert known["unknown"] == 0
    assert row["nats"] < known["nats"]
    assert row["bits_per_character"] is None
    assert rows_of(few)["test"]["bits_per_character"] is None
    assert rows_of(few)["test"]["unknown"] == row["unknown"]
    show_result(few)
    out = capsys.readouterr().out
    assert f"– bits a character: {UNPAID}" in out
    assert out.count(" – │") == 2
    show_result(all_known)
    assert "–" not in capsys.readouterr().out


def test_one_split_may_have_them_and_the_other_not(tmp_path, capsys):
    run = lm_jax.train(counted(), tmp_path, text=UNHEARD)
    validation, test = (run.result["splits"][name] for name in ("validation", "test"))
    assert (validation["unknown"], validation["bits_per_character"]) == (2, None)
    assert test["unknown"] == 0
    assert test["bits_per_character"] > 0
    show_result(run)
    out = capsys.readouterr().out
    assert out.count(" – │") == 1
    assert f"{test['bits_per_character']:.4f}" in out


@pytest.mark.slow
def test_a_trained_model_s_validations_have_none_either(tmp_path, capsys):
    for tokenizer in ("word", "char"):
        config = tiny.config(
            data={"tokenizer": tokenizer, "tokenizer__size": 5, "batch_size": 2},
            train={"steps": 2, "validate_every": 2},
            model=RNN(embedding_size=4, hidden_size=5),
        )
        with Display("run", 2) as display:
            run = lm_jax.train(
                config, tmp_path / tokenizer, text=[tiny.TEXT] * 3, watch=display.watch
            )
        unknown = run.result["splits"]["test"]["unknown"]
        assert unknown > 0
        assert rows_of(run)["validation"]["bits_per_character"] is None
        assert all(row["bits_per_character"] is None for row in run.result["splits"].values())
        assert f", {unknown:,} unknown\n" in capsys.readouterr().err
        show_result(run)
        assert UNPAID in capsys.readouterr().out


def test_an_unk_that_stands_in_the_text_is_characters_like_any_others(tmp_path):
    """As in the files of WikiText and the Penn Treebank: the token spells the five characters."""
    text = "the <unk> sat on the mat\n"
    run = lm_jax.train(counted(), tmp_path, text=(text * 20, text, text))
    row = run.result["splits"]["test"]
    assert row["unknown"] == 0
    bits = row["nats"] * row["tokens"] / math.log(2) / len(text)
    assert row["bits_per_character"] == pytest.approx(bits, rel=1e-12)


def test_each_figure_divides_by_its_own_unit():
    def figures(size):
        row = Loss(6 * math.log(2), 3, size).row()
        names = ("bits_per_token", "perplexity_per_word", "bits_per_byte", "bits_per_character")
        return [value and pytest.approx(value) for value in map(row.get, names)]

    assert figures(TextSize(characters=4, bytes=6, words=2)) == [2, 8, 1, 1.5]
    assert figures(TextSize(characters=4, bytes=6, words=2, unknown=1)) == [2, None, None, None]
    assert figures(TextSize(characters=24, bytes=24, words=12)) == [2, None, None, 0.5]  # spaced


@pytest.mark.parametrize("tokenizer", ["word", "char"])
def test_characters_between_blanks_cost_their_own_bits_and_the_tables_say_so(
    tokenizer, tmp_path, capsys
):
    """The files `c o n s u m e r s _` of the Penn Treebank: 1.806 bits, and not half of it."""
    text = "c o n s u m e r s _ m a y _ w a n t\n"
    run = lm_jax.train(counted(tokenizer=tokenizer), tmp_path, text=(text * 9, text, text))
    row = run.result["splits"]["test"]
    bits = row["nats"] * row["tokens"] / math.log(2)
    assert row["characters"] == 19
    assert row["bits_per_character"] == pytest.approx(bits / 19, rel=1e-12)
    assert row["words"] is row["bytes"] is row["bits_per_byte"] is None
    show_result(run)
    assert f"bits a character: {SPACED}" in capsys.readouterr().out
    blocks = scoring.line_blocks(run.model, run.params, run.vocabulary, in_memory("text", text))
    show_score(run.vocabulary, blocks, by="none", as_json=False)
    assert f"{row['bits_per_character']:.4f}   {SPACED}\n" in capsys.readouterr().out
    assert f"Bits a character: {SPACED}." in write_run(run.path, None, None).read_text()


def test_a_run_of_an_earlier_version_is_shown_with_the_figures_that_it_has(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("COLUMNS", raising=False)  # set in the processes of pytest-xdist
    run = lm_jax.train(counted(), tmp_path, text=KNOWN)
    show_result(run)
    assert "bits a token" in capsys.readouterr().out
    old = {"nats", "perplexity", "bits_per_character", "tokens", "characters", "unknown"}
    splits = {
        name: {key: value for key, value in row.items() if key in old}
        for name, row in run.result["splits"].items()
    }
    show_result(run._replace(result={**run.result, "splits": splits}))
    out = capsys.readouterr().out
    assert "bits a token" not in out
    assert f"{splits['test']['bits_per_character']:.4f}" in out


def test_an_unknown_word_is_shown_as_it_was_written(tmp_path, capsys):
    run = lm_jax.train(counted(), tmp_path, text=KNOWN)
    text = "the zèbra sat <unk>\nand " + "on " * 70 + "the gnu\nslept"
    trained = run.params, run.vocabulary, in_memory("text", text)

    def shown(**how):
        blocks = scoring.blocks(parallel_scorer(run.model, 3), *trained)
        show_score(run.vocabulary, blocks, **how)
        return capsys.readouterr().out

    out = shown(by="token", as_json=False)
    for word in ("zèbra", "gnu", "slept"):
        assert f"  {word}   unknown, scored as <unk>\n" in out
    assert "  <unk>\n" in out
    rows = json.loads(shown(by="token", as_json=True))["by_token"]
    assert [row[2] for row in rows if len(row) == 3] == ["zèbra", "gnu", "slept"]
    assert [row[0] for row in rows[:5]] == ["the", "<unk>", "sat", "<unk>", "<eos>"]
    lines = shown(by="sentence", as_json=False).splitlines()
    assert lines[1].endswith("  the zèbra sat <unk>")
    assert lines[2].endswith("  and " + "on " * 58 + "on…")
    assert lines[3].endswith("  slept")


@pytest.mark.parametrize("by", ["token", "sentence", "none"])
def test_a_scored_text_has_none_however_it_is_shown(by, tmp_path, capsys):
    run = lm_jax.train(counted(), tmp_path, text=KNOWN)
    trained = run.model, run.params, run.vocabulary
    for text, unknown in ((WORDS, 0), (WORDS + "the zebra\nslept", 2)):
        found = scoring.score(*trained, text)
        assert found.unknown == found.loss.size.unknown == unknown
        bits = found.loss.bits_per_character
        assert bits == (
            None if unknown else pytest.approx(found.loss.nats / math.log(2) / len(text))
        )
        for as_json in (False, True):
            blocks = scoring.line_blocks(*trained, in_memory("text", text))
            show_score(run.vocabulary, blocks, by=by, as_json=as_json)
            out = capsys.readouterr().out
            if as_json:
                assert (json.loads(out)["bits_per_character"] is None) == (unknown > 0)
                assert json.loads(out)["unknown"] == unknown
            else:
                last = out.splitlines()[-1]
                assert last.startswith("bits a character  ")
                assert (UNPAID in last) == (unknown > 0)


def test_a_sweep_s_table_has_a_dash_where_tokens_are_unknown(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # set in the processes of pytest-xdist
    points = {"all": {}, "few": {"data.tokenizer.size": 3}}
    rows = lm_jax.sweep(counted(), points, tmp_path / "both", text=KNOWN)
    show_sweep(rows, lambda point: "python run.py train")
    out = capsys.readouterr().out
    few = next(line for line in out.splitlines() if line.startswith("│ few"))
    assert few.split("│")[-2].strip() == "–"
    assert f"– bits a character: {UNPAID}" in out
    few_alone = lm_jax.sweep(counted(tokenizer__size=3), {"few": {}}, tmp_path / "few", text=KNOWN)
    show_sweep(few_alone, lambda point: "python run.py train")
    out = capsys.readouterr().out
    assert "bits/char" not in out
    assert "–" not in out
