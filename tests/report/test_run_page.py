"""The page of a run, from its files: what it finds, and that a browser shows it."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import generation
from lm_jax.config import Config, Copy, Data, LiveProbe, Train, resolve
from lm_jax.report.comparison import names, write_comparison
from lm_jax.report.learning_sections import learning_sections
from lm_jax.report.page import Drawing, LivePage, Table, number
from lm_jax.report.reach_sections import reach_sections
from lm_jax.report.run_page import about, sample_of, write_about, write_run
from lm_jax.settings import UserError

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    probe = LiveProbe(every=2, sequences=1)
    train = {"steps": 6, "log_every": 1, "validate_every": 2, "probe": probe, "sample_length": 9}
    config = tiny.config(train=train)
    return lm_jax.train(config, tmp_path_factory.mktemp("page") / "run", text=tiny.TEXT)


def test_the_page_holds_what_was_run_and_found(run):
    write_about(run.run_dir, command="run.py train mine", claim="It learns <fast>.")
    write_about(run.run_dir, command="another", claim="of a resumed run")
    page = write_run(run.run_dir, run, sample_of(run, 20)).read_text(encoding="utf-8")
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
    assert (run.run_dir / "figures" / "loss.svg").exists()
    assert len(page) < 3e6


def test_a_run_says_in_short_what_it_is(run):
    said = repr(run)
    assert said.startswith(f"<Run {run.run_dir}: elman network, ")
    assert "finished at step 6, validation loss" in said
    assert "<li>finished at step 6</li>" in run._repr_html_()
    assert 'report.html">' in run._repr_html_()


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
        ([3.0, 1.0, 2.0], "at update 2, and has risen by 1.000 since."),
        ([3.0, 1.0, 1.001], "and changed by less than 0.5 % at the last validation."),
        ([9.0], "That is worse than uniform guess, ln 8"),
        ([None, None], "The training loss went from 4.000 to 2.000."),
    ],
)
def test_the_finding_could_have_come_out_otherwise(validation, said):
    first = learning_sections(rows([4.0, 3.0, 2.0], validation), None, size=8, clip_norm=None)[0]
    assert said in first.finding


def test_a_diverged_run_says_so_and_its_losses_are_drawn(run):
    result = {"status": "diverged", "step": 3, "splits": {}}
    for section in learning_sections(rows([4.0, None, 2.0]), result, size=8, clip_norm=1.0):
        for part in section.parts:
            if isinstance(part, Drawing):
                part.draw(width=340)
        if section.title == "Does the model learn?":
            assert section.finding.startswith("Loss, gradient or parameters were not finite")


def test_too_few_records_are_no_curve():
    (only,) = learning_sections(rows([4.0]), None, size=8, clip_norm=None)
    assert "too few for a curve" in only.finding
    assert not only.parts


def test_how_much_was_clipped_is_counted_over_all_updates():
    sections = learning_sections(rows([4.0, 3, 2], clipped=0.5), None, size=None, clip_norm=1.0)
    norms = next(section for section in sections if section.title == "Did a gradient explode?")
    assert norms.finding.startswith("Clipping shortened the gradient of 50.0% of the updates.")


def test_the_blocks_of_a_gated_cell_have_the_names_of_its_gates():
    block = {"eigenvalues": [[0.0, 2.0]], "radius": 2.0, "norm": 2.0}
    spectra = {"layers.0.W_hh": {"blocks": [block] * 4}}
    dynamics = {"spectra": spectra, "convergence": [[0.1]] * 2, "windows": [0.1], "text": ["a"]}
    section = reach_sections({"dynamics": dynamics}, "lstm", "probe")[0]
    assert section.finding.startswith("4 of 4 eigenvalues lie outside the unit circle")
    table = next(part for part in section.parts if isinstance(part, Table))
    names = [row[0].removeprefix("layers.0.W_hh, ") for row in table.rows]
    assert names == ["input gate", "forget gate", "candidate", "output gate"]


def test_a_damaged_about_is_left_out(tmp_path):
    (tmp_path / "about.json").write_text('{"claim": 3}')
    assert about(tmp_path) == {}
    with pytest.raises(UserError, match="no such directory"):
        write_run(tmp_path / "nowhere")


def test_runs_are_compared_on_the_same_axes(run, tmp_path):
    config = tiny.config(train={"steps": 4, "log_every": 1, "validate_every": 2})
    other = lm_jax.train(config, tmp_path / "other", text=tiny.TEXT)
    page = write_comparison([run.run_dir, other.run_dir], tmp_path / "page.html").read_text()
    for said in ("The runs differ in", "other", "Validation loss", "Training loss"):
        assert said in page
    with pytest.raises(UserError, match="given twice"):
        write_comparison([run.run_dir, run.run_dir], tmp_path / "page.html")


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    assert names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_live_page_is_written_at_evaluations_and_never_stops_training(monkeypatch):
    written = []

    def write():
        written.append(1)
        raise OSError("disk full")

    live = LivePage(write)
    live.watch(1, None)
    live.watch(1, {"kind": "train"})
    assert not written
    live.watch(2, {"kind": "evaluation"})
    monkeypatch.setattr("time.monotonic", lambda: -1.0)
    live.watch(3, {"kind": "evaluation"})  # not due yet
    assert len(written) == 1


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
def test_a_browser_draws_the_page_and_sorts_its_tables(tmp_path):
    from lm_jax import figures
    from lm_jax.report.page import Section, Surprise, write_page

    table = Table(("trial", "loss"), [("a", 10.0), ("b", 9.0), ("c", None), ("d", -1.0)], 1)
    drawing = Drawing("lags", lambda width: figures.lag_norms(0.5 ** np.arange(9), width=width), "")
    parts = [table, drawing, Surprise(["a", "\n"], [1.0, 9.0])]
    page = write_page(tmp_path / "page.html", "T", "lead", [Section("S", "found", parts)])
    script = (
        "<script>const b = document.querySelectorAll('th button')[1]; b.click();"
        "const read = () => [...document.querySelectorAll('tbody tr')]"
        ".map(row => row.cells[0].textContent).join('');"
        "const up = read(); b.click(); const seen = getComputedStyle(document.querySelector("
        "'.narrow')).display + getComputedStyle(document.querySelector('.wide')).display;"
        "const box = document.querySelector('.wide svg').getBoundingClientRect();"
        "document.title = [up, read(), seen, document.documentElement.scrollWidth <= innerWidth,"
        "box.width > 0].join(' ');</script></body>"
    )
    page.write_text(page.read_text().replace("</body>", script))
    dom, complaints = browser(page, tmp_path, "--window-size=1200,900")
    title = html.unescape(re.search("<title>(.*?)</title>", dom)[1])
    assert title == "dbac abdc noneblock true true"
    assert complaints == []


def test_the_model_writes_at_each_validation_what_it_would_say_then(run):
    judged = [row for row in tiny.rows_of(run.run_dir) if row["kind"] == "evaluation"]
    assert [row["step"] for row in judged] == [2, 4, 6]
    last = generation.sample(run.model, run.params, run.vocabulary, length=9, seed=run.config.seed)
    assert judged[-1]["sample"] == last
    assert "sample" not in run.result["splits"]["validation"]


def test_a_task_has_no_text_to_write():
    with pytest.raises(UserError, match=r"train\.sample_length=9 needs a text"):
        resolve(Config(data=Data(source=Copy()), train=Train(sample_length=9)))
