"""Folders with a small experiment, its text and a run."""

import pytest
import tiny
from tiny_experiment import EXPERIMENT, PROGRAM

from lm_jax.commands import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # set in the processes of pytest-xdist
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    (tmp_path / "lab.py").write_text(EXPERIMENT)
    return tmp_path


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A folder with a text, an empty file and a run on the text."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(tiny.TEXT)
    (folder / "empty.txt").write_text("")
    (folder / "lab.py").write_text(EXPERIMENT.replace("text.txt", str(folder / "text.txt")))
    words = ["train", str(folder / "lab.py"), "--run-dir", str(folder / "run")]
    assert main.main(words, PROGRAM) == 0
    return folder


@pytest.fixture
def trained(trained_run, monkeypatch):
    monkeypatch.chdir(trained_run)
