"""The page of a sweep: what its cells hold, and the experiments that it is made for."""

import json
import math

import pytest
import tiny

from lm_jax.config import override
from lm_jax.experiment import load_experiment
from lm_jax.files import write_rows
from lm_jax.report.measures import Measure, measures, varied
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


def test_a_cell_is_the_mean_of_its_seeds_and_says_who_diverged():
    (shown,) = heat_map(ROWS, KNOWN["validation"], varied(ROWS))["data"]
    assert (shown["y"], shown["x"]) == (["0.5", "2"], ["10", "inf", "off"])
    assert shown["z"] == [[4.0, 5.0, None], [None, 2.0, None]]
    assert shown["text"] == [["4 ×1", "5", ""], ["", "2", "×1"]]
    assert shown["customdata"] == [[[1, 2], [1, 1], [0, 0]], [[0, 0], [2, 2], [0, 1]]]


def test_norms_have_their_geometric_mean_and_are_coloured_by_its_logarithm():
    (shown,) = heat_map(ROWS, KNOWN["first_probe.lag_norm"], varied(ROWS))["data"]
    flat = [one for line in shown["z"] for one in line]
    assert flat == pytest.approx([3.0, None, None, None, -4.0, None])
    # A norm that underflowed has no logarithm, but is shown.
    assert shown["text"] == [["1e+03 ×1", "0", ""], ["", "0.0001", "×1"]]


def test_one_field_makes_a_curve():
    rows = [r for r in ROWS if r["settings"][CLIP] == "inf"]
    fields = varied(rows)
    assert list(fields) == [GAIN]
    trials, means = curve(rows, KNOWN["validation"], fields)["data"]
    assert list(zip(trials["x"], trials["y"], strict=True)) == [(0.5, 5.0), (2.0, 1.0), (2.0, 3.0)]
    assert (means["x"], means["y"]) == ([0.5, 2.0], [5.0, 2.0])


def test_a_switch_is_drawn_as_a_category():
    """On an axis of numbers, Plotly leaves truth values out."""
    rows = [row(n, {"model.residual": bool(n)}, 1.0 + n) for n in (0, 1)]
    shown = curve(rows, KNOWN["validation"], varied(rows))
    assert shown["layout"]["xaxis"]["type"] == "category"
    assert [trace["x"] for trace in shown["data"]] == [["False", "True"]] * 2


def test_the_page_has_its_trials_best_first_and_opens_by_itself(tmp_path):
    sections = {section.title: section for section in sweep_sections(ROWS)}
    assert list(sections) == ["validation", "first_probe.lag_norm", "Over the seeds", "The trials"]
    (table,) = sections["The trials"].parts
    assert [line[0] for line in table.rows] == [f"trial {n}" for n in (1, 2, 6, 3, 5, 4)]
    assert [line[1] for line in table.rows][-2:] == ["diverged at 9", "diverged at 7"]
    write_rows(tmp_path / "results.jsonl", ROWS)
    page = write_sweep(tmp_path).read_text(encoding="utf-8")
    assert "6 trials that have ended, 4 finished, 2 diverged" in page
    assert 'src="http' not in page
    assert page.count("Plotly.newPlot(") == 2
    with pytest.raises(UserError, match="no results"):
        write_sweep(tmp_path / "nowhere")


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
