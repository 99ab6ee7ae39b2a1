"""The page of a run, from its files: what it finds, and that a browser shows it."""

import html
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import figures, generation
from lm_jax.config import Config, Copy, Data, LiveProbe, Train, resolve
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.report.comparison import names, write_comparison
from lm_jax.report.learning_sections import learning_sections
from lm_jax.report.page import (
    Drawing,
    LivePage,
    Section,
    Surprise,
    Table,
    number,
    write_page,
)
from lm_jax.report.reach_sections import _by_frequency, _sensitivity, reach_sections
from lm_jax.report.run_page import about, sample_of, write_about, write_run
from lm_jax.report.sweep_page import write_sweep
from lm_jax.settings import UserError

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)


EIGHT = Vocabulary("char", ("<unk>", "\n", *"abcdef"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    probe = LiveProbe(every=2, sequences=1)
    train = {"steps": 6, "log_every": 1, "validate_every": 2, "probe": probe, "sample_length": 9}
    config = tiny.config(train=train)
    return lm_jax.train(config, tmp_path_factory.mktemp("page") / "run", text=tiny.TEXT)


def test_the_page_holds_what_was_run_and_found(run):
    write_about(run.path, command="run.py train mine", claim="It learns <fast>.")
    write_about(run.path, command="another", claim="of a resumed run")
    page = write_run(run.path, run, sample_of(run, 20)).read_text(encoding="utf-8")
    for said in (
        "It learns &lt;fast&gt;.",
        "run.py train mine",
        "finished at update 6",
        f"jax {lm_jax.training.manifest.environment()['jax']}",
        "train.steps",
        "Validation reached",
        "uniform guess, ln",
        "Does the gradient reach farther",
        "What does it say?",
        "The model wrote 3 samples",
    ):
        assert said in page, said
    assert (run.path / "figures" / "loss.svg").exists()
    assert len(page) < 3e6


def test_a_run_says_in_short_what_it_is(run):
    said = repr(run)
    assert said.startswith(f"<Run {run.path}: elman network, ")
    assert "finished at step 6, validation loss" in said
    assert "<li>finished at step 6</li>" in run._repr_html_()


def rows(losses, validation=(), **more):
    trained = [
        {
            "kind": "train",
            "split": "train",
            "step": step,
            "nats": nats,
            "grad_norm": 1.0,
            "grad_norm_max": 2.0,
            "grad_norm_clipped": 1.0,
            "clipped": 0.0,
            "learning_rate": 0.1,
            "tokens_per_second": 10.0,
            "seconds": 1.0,
            **more,
        }
        for step, nats in enumerate(losses, 1)
    ]
    judged = [
        {
            "kind": "evaluation",
            "split": "validation",
            "step": step,
            "nats": nats,
            "perplexity": 1.0,
            "bits_per_character": 2.0,
            "unknown": 0,
        }
        for step, nats in enumerate(validation, 1)
    ]
    return trained + judged


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ([3.0, 2.0, 1.0], "at update 3, and was still falling."),
        ([3.0, 1.0, 2.0], "at update 2, and has risen to 2 since."),
        ([3.0, 1.0, 1.001], "and changed by less than 0.5 % at the last validation."),
        ([9.0], "That is worse than uniform guess, ln 8"),
        ([None, None], "The training loss went from 4.000 to 2.000."),
    ],
)
def test_the_finding_could_have_come_out_otherwise(validation, said):
    first = learning_sections(
        rows([4.0, 3.0, 2.0], validation), None, vocabulary=EIGHT, clip_norm=None
    )[0]
    assert said in first.finding


def test_a_diverged_run_says_so_and_its_losses_are_drawn(run):
    result = {"status": "diverged", "step": 3, "splits": {}}
    for section in learning_sections(
        rows([4.0, None, 2.0]), result, vocabulary=EIGHT, clip_norm=1.0
    ):
        for part in section.parts:
            if isinstance(part, Drawing):
                part.draw(width=340)
        if section.title == "Does the model learn?":
            assert section.finding.startswith("Loss, gradient or parameters were not finite")


def test_too_few_records_are_no_curve():
    (only,) = learning_sections(rows([4.0]), None, vocabulary=EIGHT, clip_norm=None)
    assert "too few records of training for a curve: 1" in only.finding
    assert not only.parts


def test_how_much_was_clipped_is_counted_over_all_updates():
    sections = learning_sections(
        rows([4.0, 3, 2], clipped=0.5), None, vocabulary=None, clip_norm=1.0
    )
    norms = next(section for section in sections if section.title == "Did a gradient explode?")
    assert norms.finding.startswith("Clipping shortened the gradient of 50.0% of the updates.")


def test_the_blocks_of_a_gated_cell_have_the_names_of_its_gates():
    block = {"eigenvalues": [[0.0, 2.0]], "radius": 2.0, "norm": 2.0}
    spectra = {"layers.0.W_hh": {"blocks": [block] * 4}}
    dynamics = {"spectra": spectra, "convergence": [[0.1]] * 2, "windows": [0.1], "text": ["a"]}
    moments = {"0": [[[1.0, 0.0]]] * 4, "9": [[[0.0, 2.0]]] * 4}
    dynamics["eigenvalues"] = {step: {"layers.0.W_hh": own} for step, own in moments.items()}
    section = reach_sections({"dynamics": dynamics}, "lstm", "probe")[0]
    drawn = [part for part in section.parts if isinstance(part, Drawing)]
    through = drawn[1].draw(width=720)
    assert [axes.get_title() for axes in through.axes][3] == "layers.0.W_hh, output gate"
    _, first, last = (line.get_xydata().tolist() for line in through.axes[0].lines)
    assert (first, last) == ([[1, 0]], [[0, 2]])
    assert section.finding.startswith("4 of 4 eigenvalues lie outside the unit circle")
    table = next(part for part in section.parts if isinstance(part, Table))
    names = [row[0].removeprefix("layers.0.W_hh, ") for row in table.rows]
    assert names == ["input gate", "forget gate", "candidate", "output gate"]


def test_gates_have_their_names_during_training_too():
    probed = [
        {"kind": "probe", "split": "train", "step": step, "spectral_radius": {"0": [0.5] * 4}}
        for step in (0, 5)
    ]
    sections = learning_sections(probed, None, vocabulary=EIGHT, clip_norm=None, cell="lstm")
    (drawing,) = next(s for s in sections if s.title == "Vanishing or exploding?").parts
    assert "layer 0, forget gate" in drawing.draw(width=720).svg()


def test_a_damaged_about_is_left_out(tmp_path):
    (tmp_path / "about.json").write_text('{"claim": 3}')
    assert about(tmp_path) == {}
    with pytest.raises(UserError, match="no such directory"):
        write_run(tmp_path / "nowhere")


def test_runs_are_compared_on_the_same_axes(run, tmp_path):
    config = tiny.config(train={"steps": 4, "log_every": 1, "validate_every": 2})
    other = lm_jax.train(config, tmp_path / "other", text=tiny.TEXT)
    page = write_comparison([run.path, other.path], tmp_path / "page.html").read_text()
    for said in ("The runs differ in", "other", "Validation loss", "Training loss"):
        assert said in page
    with pytest.raises(UserError, match="given twice"):
        write_comparison([run.path, run.path], tmp_path / "page.html")


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    assert names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_live_page_is_written_at_evaluations_and_never_stops_training(monkeypatch):
    written = []

    def write():
        written.append(1)
        raise TypeError("a fault of the page")

    live = LivePage(write)
    live.watch(1, None)
    live.watch(1, {"kind": "train"})
    assert not written
    with pytest.warns(UserWarning, match="not written: TypeError: a fault of the page"):
        live.watch(2, {"kind": "evaluation"})
    monkeypatch.setattr("time.monotonic", lambda: -1.0)
    live.watch(3, {"kind": "evaluation"})  # not due yet
    assert len(written) == 1


def test_a_live_page_waits_in_silence_for_something_to_show(tmp_path):
    LivePage(lambda: write_sweep(tmp_path)).watch(1, {"kind": "evaluation"})
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_drawn_leaves_the_rest_of_the_page(tmp_path):
    def broken(width):
        raise ValueError("no number <here>")

    parts = [Drawing("broken", broken, ""), Table(("a",), [("whole",)])]
    page = write_page(tmp_path / "page.html", "T", "", [Section("S", "found", parts)]).read_text()
    assert "No figure broken: no number &lt;here&gt;" in page
    assert "whole" in page


def test_a_damaged_study_is_named_and_the_rest_is_there(run):
    for k, text in enumerate(["{}", "{", '{"reach": []}', "[]"]):
        (run.path / f"probe-{k}.json").write_text(text)
    page = write_run(run.path).read_text()
    for k in range(4):
        assert f"probe-{k}.json is damaged or of another version" in page
        (run.path / f"probe-{k}.json").unlink()
    assert "Does the model learn?" in page


def test_figures_do_not_follow_a_link_out_of_the_directory(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "figures").symlink_to(tmp_path / "elsewhere")
    drawing = Drawing("lags", lambda width: figures.lag_norms([1.0, 0.5], width=width), "")
    page = write_page(tmp_path / "page.html", "T", "", [Section("S", "", [drawing])])
    assert "No figure lags" in page.read_text()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_task_of_numbers_and_a_loss_beyond_all_bounds_have_a_page():
    judged = rows([1.0, 2.0, 3.0], [0.5])
    judged[-1] |= {"perplexity": None, "bits_per_character": None, "success": 0.25, "chance": 0.2}
    (first, *_) = learning_sections(judged, None, vocabulary=None, clip_norm=None)
    assert "a loss of 0.5, 25.0% of the sequences right" in first.finding
    huge = rows([1e30, 2e30, 3e30], [1e30])
    huge[-1] |= {"perplexity": None}
    for section in learning_sections(huge, None, vocabulary=EIGHT, clip_norm=math.inf):
        for part in section.parts:
            if isinstance(part, Drawing):
                part.draw(width=720).svg()


@pytest.mark.slow
def test_losses_of_other_texts_are_not_compared(run, tmp_path):
    config = tiny.config(train={"steps": 4, "log_every": 1, "validate_every": 2})
    other = lm_jax.train(config, tmp_path / "other", text="another text\n" * 50)
    page = write_comparison([run.path, other.path], tmp_path / "page.html").read_text()
    assert "losses cannot be compared" in page
    assert "Validation loss" not in page
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, ""), (True, "yes"), (1234, "1,234"), (-0.5, "−0.5"), (float("nan"), "not finite")],
)
def test_a_cell_is_written_plainly(value, said):
    assert number(value) == said


def browser(page, tmp_path, *more):
    """The page as the browser has it after its scripts, and what the browser complained of."""
    folder = f"--user-data-dir={tmp_path / 'browser'}"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", folder]
    asked = ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", *more]
    done = subprocess.run(
        [BROWSER, *quiet, *asked, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_a_browser_draws_the_page_sorts_its_tables_and_prints_all_columns(tmp_path):
    table = Table(("trial", "loss"), [("a", 10.0), ("b", 9.0), ("c", None), ("d", -1.0)], 1)
    drawing = Drawing("lags", lambda width: figures.lag_norms(0.5 ** np.arange(9), width=width), "")
    wide = Table([f"first setting {k}" for k in range(20)], [(1234.5, "diverged at 9,999") * 10])
    parts = [table, drawing, Surprise(["a", "\n"], [1.0, 9.0]), wide]
    page = write_page(tmp_path / "page.html", "T", "lead", [Section("S", "found", parts)])
    script = (
        "<script>const b = document.querySelectorAll('th button')[1]; b.click();"
        "const read = () => [...document.querySelector('tbody').rows]"
        ".map(row => row.cells[0].textContent).join('');"
        "const up = read(); b.click(); const seen = getComputedStyle(document.querySelector("
        "'.narrow')).display + getComputedStyle(document.querySelector('.wide')).display;"
        "const box = document.querySelector('.wide svg').getBoundingClientRect();"
        "document.title = [up, read(), seen, document.documentElement.scrollWidth <= innerWidth,"
        "box.width > 0].join(' ');"
        # The wide table scrolls on the screen, and is whole on paper of 18 cm.
        "const style = document.querySelector('style'), room = document.querySelectorAll('.scroll')"
        "[1], whole = () => room.scrollWidth <= room.clientWidth, screen = whole();"
        "style.textContent = style.textContent.replace('@media print', '@media all');"
        "document.body.style.width = '18cm'; document.title += ` ${screen} ${whole()}`;"
        "</script></body>"
    )
    page.write_text(page.read_text().replace("</body>", script))
    dom, complaints = browser(page, tmp_path, "--window-size=1200,900")
    title = html.unescape(re.search("<title>(.*?)</title>", dom)[1])
    assert title == "dbac abdc noneblock true true false true"
    assert complaints == []


def test_the_model_writes_at_each_validation_what_it_would_say_then(run):
    judged = [row for row in tiny.rows_of(run.path) if row["kind"] == "evaluation"]
    assert [row["step"] for row in judged] == [2, 4, 6]
    last = generation.sample(run.model, run.params, run.vocabulary, length=9, seed=run.config.seed)
    assert judged[-1]["sample"] == last
    assert "sample" not in run.result["splits"]["validation"]


def test_a_task_has_no_text_to_write():
    with pytest.raises(UserError, match=r"train\.sample_length=9 needs a text"):
        resolve(Config(data=Data(source=Copy()), train=Train(sample_length=9)))


def ranged(losses):
    """The section on a range test from 1e-4 to 1, after the record of the first update."""
    trained = rows([9.0, *losses])
    for row, rate in zip(trained, [1e-5, *np.geomspace(1e-4, 1, len(losses))], strict=True):
        row["learning_rate"] = rate
    sections = learning_sections(trained, None, vocabulary=EIGHT, clip_norm=None, ranged=True)
    return next(section for section in sections if section.title.startswith("Which learning rates"))


def test_a_range_test_names_the_steepest_fall_and_the_lowest_loss():
    rates = np.geomspace(1e-4, 1, 17)
    falling = 4 - 2 / (1 + (rates / 0.01) ** -2)  # steepest at 0.01
    section = ranged(falling + np.where(rates > 0.2, 3.0, 0))
    assert section.finding == (
        "The loss fell most steeply at a learning rate of 0.01, and was lowest, 2.006, at 0.18; "
        "at 1 it was 5."
    )
    (drawing,) = section.parts
    assert "running mean" in drawing.draw(width=720).svg()
    assert ranged(falling).finding.endswith("was lowest, 2.000, at 1, the largest rate tried.")
    assert "fell at no rate: it was lowest at 0.0001" in ranged(rates + 4).finding
    cut = ranged([*falling[:-2], None, None]).finding
    assert "fell most steeply at a learning rate of 0.01" in cut
    assert cut.endswith("Records without a finite loss are left out.")
    assert "too few records for a range test: 7. A smaller" in ranged(falling[:7]).finding


def test_bands_of_tokens_that_were_not_read_have_no_mean_lag():
    rows = [[0.5, 0.25], [None, None]]
    credit = {"bands": ["often", "rare"], "by_word": rows, "by_target": rows}
    (section,) = _by_frequency(credit, "probe")
    assert section.finding == "No token of the rarest quarter, or of the most frequent, was read."


def test_a_sensitivity_that_begins_at_zero_is_compared_from_its_first_step():
    """At the first step h_0 = 0, and the state is not sensitive to W_hh."""
    curves = {"W_hh": [0.0, 2.0, 6.0], "b_h": [1.0, 2.0, 2.0]}
    section = _sensitivity({name: {"norm": norms} for name, norms in curves.items()}, "probe")
    assert "sensitivity to W_hh changes most, by a factor of 3." in section.finding
