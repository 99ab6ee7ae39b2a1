"""The page of a sweep: what its cells hold, and the experiments that it is made for."""

import itertools
import json
import math
import warnings

import pytest
import tiny
from matplotlib.colors import LogNorm

from lm_jax import figures, files
from lm_jax.config import override
from lm_jax.experiment import load_experiment
from lm_jax.files import write_rows
from lm_jax.report.measures import Measure, measures, varied
from lm_jax.report.page import Drawing
from lm_jax.report.sweep_page import curve, heat_map, sweep_sections, write_sweep
from lm_jax.settings import UserError
from lm_jax.sweeps import failures
from lm_jax.sweeps.plan import plan
from lm_jax.sweeps.results import Results
from lm_jax.sweeps.summaries import summaries

GAIN, CLIP = "model.cell.gain", "train.clip_norm"


def row(number, settings, loss, status="finished", **more):
    return {
        "number": number,
        "name": f"trial {number}",
        "trial": f"trials/{number:03d}",
        "point": settings,
        "flags": "",
        "settings": settings,
        "status": status,
        "best_validation": loss,
        "last_validation": loss,
        "test": loss,
        "step": 10,
        "seconds": 1.5,
        "splits": {},
        **more,
    }


def grown(norm):
    return {"first_probe": {"lag_norm": norm}}


ROWS = [
    row(1, {GAIN: 2.0, CLIP: "inf", "seed": 0}, 1.0, **grown(1e-6)),
    row(2, {GAIN: 2.0, CLIP: "inf", "seed": 1}, 3.0, **grown(1e-2)),
    row(3, {GAIN: 0.5, CLIP: "inf", "seed": 0}, 5.0, **grown(0.0)),
    row(4, {GAIN: 2.0, CLIP: None, "seed": 0}, None, "diverged", bad_step=7, **grown(1e9)),
    row(5, {GAIN: 0.5, CLIP: 10.0, "seed": 0}, 0.5, "diverged", bad_step=9, **grown(1e9)),
    row(6, {GAIN: 0.5, CLIP: 10.0, "seed": 1}, 4.0, **grown(1e3)),
]
KNOWN = {measure.name: measure for measure in measures(ROWS)}


def test_axes_rise_and_end_with_what_is_off():
    assert varied(ROWS) == {GAIN: [0.5, 2.0], CLIP: [10.0, "inf", None]}
    assert list(KNOWN) == ["validation", "first_probe.lag_norm"]


def words_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_cell_is_the_mean_of_its_seeds_and_says_who_diverged():
    shown = heat_map(ROWS, KNOWN["validation"], varied(ROWS))
    assert words_of(shown) == [GAIN, "4 ×1", "5", "", "", "2", "×1"]
    axes = shown.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "inf", "off"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.5", "2"]


def test_norms_have_their_geometric_mean_and_are_coloured_by_its_logarithm():
    shown = heat_map(ROWS, KNOWN["first_probe.lag_norm"], varied(ROWS))
    # A norm that underflowed has no logarithm, but is shown.
    assert words_of(shown)[1:] == ["1,000 ×1", "0", "", "", "0.0001", "×1"]
    assert isinstance(shown.axes[0].collections[0].norm, LogNorm)


def test_one_field_makes_a_curve():
    rows = [r for r in ROWS if r["settings"][CLIP] == "inf"]
    fields = varied(rows)
    assert list(fields) == [GAIN]
    trials, means = curve(rows, KNOWN["validation"], fields).axes[0].lines
    assert trials.get_xydata().tolist() == [[0.5, 5.0], [2.0, 1.0], [2.0, 3.0]]
    assert means.get_xydata().tolist() == [[0.5, 5.0], [2.0, 2.0]]


def test_the_page_says_what_is_best_and_has_a_column_for_each_setting(tmp_path):
    sections = {section.title: section for section in sweep_sections(ROWS, tmp_path)}
    found = sections["What was found?"]
    assert "gain 2, clip norm inf is best, with a validation loss of 1;" in found.finding
    (table,) = found.parts
    assert table.head[:4] == ["gain", "clip norm", "seed", "validation"]
    assert [line[table.head.index("trial")] for line in table.rows] == [
        f"{number:03d}" for number in (1, 2, 6, 3, 5, 4)
    ]
    status = table.head.index("status")
    assert [line[status] for line in table.rows][-2:] == ["diverged at 9", "diverged at 7"]
    assert table.best == 0
    assert "Lowest at gain 2, clip norm inf (2)" in sections["Best validation loss"].finding
    assert "Over the seeds" in sections


def test_the_page_opens_by_itself(tmp_path):
    write_rows(tmp_path / "results.jsonl", ROWS)
    page = write_sweep(tmp_path).read_text(encoding="utf-8")
    assert "6 trials have ended, 4 finished, 2 diverged" in page
    assert 'src="http' not in page
    assert page.count('class="wide"') == 2
    assert (tmp_path / "figures" / "validation.svg").read_text().startswith("<?xml")
    with pytest.raises(UserError, match="no results"):
        write_sweep(tmp_path / "nowhere")


def test_many_trials_are_lines_through_their_settings_and_draw_their_curves(tmp_path):
    paths = {"train.learning_rate": [0.1, 1.0], CLIP: [None, 1.0], GAIN: [1.0, 2.0]}
    rows = []
    for number, values in enumerate(itertools.product(*paths.values())):
        settings = dict(zip(paths, values, strict=True))
        rows.append(row(number, settings, 9.0 if number == 7 else 1.0 + number))
        trial = tmp_path / rows[-1]["trial"]
        trial.mkdir(parents=True)
        losses = [5.0, 1.0 + number]
        files.write_rows(
            trial / "metrics.jsonl",
            [
                {
                    "kind": "evaluation",
                    "split": "validation",
                    "step": step,
                    "nats": nats,
                    "perplexity": 1.0,
                    "bits_per_character": None,
                    "tokens": 1,
                    "characters": 1,
                    "unknown": 0,
                }
                for step, nats in enumerate(losses, 1)
            ],
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these rows have no seals
        sections = {section.title: section for section in sweep_sections(rows, tmp_path)}
    assert (
        "learning rate 0.1, clip norm off, gain 1"
        in sections["Which settings go together?"].finding
    )
    for section in sections.values():
        for part in section.parts:
            if isinstance(part, Drawing):
                part.draw(width=figures.WIDE)


def test_a_measure_reads_its_number_or_none():
    every = {
        "splits": {"test": {"success": 0.5}},
        "probe": {"spectral_radius": {"0": [1.0, 3.0], "1": [2.0]}, "horizon": {"0.9": 7.0}},
        "gradient": {"clipped": 0.25},
    }
    found = {m.name: m.read(every) for m in measures([every])}
    assert found == {
        "success": 0.5,
        "probe.spectral_radius": 3.0,
        "probe.horizon": 7.0,
        "gradient.clipped": 0.25,
    }
    assert all(isinstance(m, Measure) for m in measures([row(1, {}, 1.0)]))


def test_a_trials_records_come_to_means_over_all_of_its_updates():
    def record(step, share, norm, largest):
        means = {"clipped": share, "grad_norm": norm, "grad_norm_clipped": norm / 2}
        return {"kind": "train", "step": step, **means, "grad_norm_max": largest}

    def probe(step, norms):
        return {"kind": "probe", "step": step, "lyapunov": -1.0, "lag_norms": norms}

    rows = [record(1, 1.0, 8.0, 8.0), record(4, 0.0, 4.0, 9.0)]
    found = summaries([probe(0, [1.0, 0.5]), *rows, probe(4, [1.0, 0.2])])
    assert found == {
        "probe": {"lyapunov": -1.0, "lag_norm": 0.2},
        "first_probe": {"lyapunov": -1.0, "lag_norm": 0.5},
        "gradient": {"clipped": 0.25, "grad_norm": 5, "grad_norm_clipped": 2.5, "grad_norm_max": 9},
    }
    lost = record(5, 0.0, 0.0, None) | {"grad_norm": None, "grad_norm_clipped": None}
    broken = summaries([*rows, lost])
    assert broken["gradient"]["grad_norm"] is None
    assert broken["gradient"]["grad_norm_max"] is None
    assert summaries([]) == {}


def test_an_infinite_threshold_can_be_read_in_the_table_and_by_a_config(tmp_path):
    config = tiny.config()
    (trial,) = plan(config, {"off": {CLIP: math.inf}}, tiny.TEXT).trials
    (tmp_path / trial.directory).mkdir(parents=True)
    failures.record(tmp_path / trial.directory, failures.Failure.of(ValueError("no")), 1)
    results = Results(tmp_path, [trial])
    results.write()
    found = json.loads((tmp_path / "results.jsonl").read_text(encoding="utf-8"))
    assert found["settings"] == found["point"] == {CLIP: "inf"}
    assert override(config, found["point"]).train.clip_norm == math.inf


@pytest.mark.slow
def test_the_experiments_have_a_program_a_length_and_one_for_all_thresholds():
    for name, trials, groups in (("phase_diagram", 280, 5), ("clip_sweep", 60, 1)):
        found = load_experiment(name)
        planned = plan(found.config, found.points)
        assert len(planned.trials) == trials
        assert [len(group.trials) for group in planned.groups] == [trials // groups] * groups
        assert all(group.vectorised for group in planned.groups)
