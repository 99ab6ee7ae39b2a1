"""The progress of a run: a bar, lines, JSON, or nothing."""

import io
import sys

import tiny

import lm_jax
from lm_jax.report.progress import Display


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_program_shows_a_bar_in_a_terminal_only_and_only_if_nobody_watches(tmp_path, monkeypatch):
    config = tiny.config(train={"steps": 2, "log_every": 1, "validate_every": 2})
    for name, terminal, watch in [
        ("bar", True, None),
        ("silent", True, False),
        ("own", True, lambda step, row: None),
        ("pipe", False, None),
    ]:
        monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
        monkeypatch.setenv("TERM", "xterm")
        lm_jax.train(config, tmp_path / name, text=tiny.TEXT, watch=watch)
        shown = sys.stderr.getvalue()
        assert ("validation" in shown) == ("2/2" in shown) == (name == "bar")
        assert bool(shown) == (name == "bar")


def test_a_live_probe_is_shown_with_its_horizon(capsys):
    with Display("run", 2) as display:
        row = {"kind": "probe", "step": 2, "horizon": {"0.5": 2, "0.9": 7}}
        display.watch(2, row)
    said = (
        "step 2: steps until the truncated gradient is within 50 % after 2, within 10 % after 7\n"
    )
    assert capsys.readouterr().err == said
