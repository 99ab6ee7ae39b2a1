"""Tables of runs: a column for each setting that differs, the best marked, narrow and wide."""

import pytest

from lm_jax.report.run_table import settings_columns
from lm_jax.report.sweep import show_sweep

CELL, READOUT, RATE = "model.cell.gain", "model.readout.gain", "train.learning_rate"


def row(number, settings, loss, status="finished", **more):
    flags = " ".join(f"--{path} {value}" for path, value in settings.items())
    return {
        "number": number,
        "name": flags,
        "flags": flags,
        "point": settings,
        "settings": settings,
        "trial": f"trials/{number:03d}",
        "status": status,
        "best_validation": loss,
        "test": loss,
        "splits": {},
        "parameters": 1_000_000,
        "seconds": 12345.6,
        "tokens_per_second": 1e6,
        **more,
    }


ROWS = [
    row(1, {CELL: 2.0, READOUT: 1, RATE: 1e-05, "model": "rnn", "seed": 0}, 1.5),
    row(2, {CELL: 0.5, READOUT: 2, RATE: None, "model": "rnn", "seed": 1}, 1.25),
    row(3, {CELL: 2.0, READOUT: 1, RATE: 1e-05, "model": "rnn", "seed": 1}, 1.0, "pruned"),
]


def test_a_setting_that_differs_is_a_column_under_the_end_of_its_path():
    assert settings_columns(ROWS) == {
        "cell.gain": ["2", "0.5", "2"],
        "readout.gain": ["1", "2", "1"],
        "learning rate": ["1e-05", "off", "1e-05"],
        "seed": ["0", "1", "1"],
    }
    absent = [{"settings": {"a": 1}, "usual": {"a"}}, {"settings": {}}]
    assert settings_columns(absent) == {}
    near = [{"settings": {"a": 0.12345678}}, {"settings": {"a": 0.12345679}}]
    assert settings_columns(near) == {"a": ["0.123457", "0.123457"]}
    absent[0]["usual"] = set()
    assert settings_columns(absent) == {"a": ["1", ""]}


@pytest.mark.parametrize("width", [70, 200])
def test_the_best_finished_trial_is_marked_and_no_number_breaks(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    show_sweep(ROWS, lambda point: "a command")
    out = capsys.readouterr().out
    table, means = out.split("over the seeds")
    cells = [line.split("│")[1:-1] for line in table.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line[:7]] for line in cells] == [
        ["3 (pruned)", "2", "1", "1e-05", "1", "1.0000", "1.0000"],
        ["2", "0.5", "2", "off", "1", "1.2500*", "1.2500*"],
        ["1", "2", "1", "1e-05", "0", "1.5000", "1.5000"],
    ]
    assert max(map(len, table.splitlines())) <= width
    assert ("too narrow for tokens/s" in table) == (width == 70)
    assert ("1,000,000" in table) == (width == 200)
    assert "rate" in means
