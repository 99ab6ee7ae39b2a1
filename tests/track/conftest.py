"""A folder with a small experiment and its text."""

import pytest
import tiny
from tiny_experiment import EXPERIMENT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    (tmp_path / "lab.py").write_text(EXPERIMENT)
    return tmp_path
