"""The notebooks: every cell runs, from top to bottom, in an empty folder."""

import json
from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    with jax.enable_x64(False):
        for cell in cells:
            if cell["cell_type"] == "code":
                source = "".join(cell["source"]).replace("STEPS = 300", "STEPS = 4")
                exec(compile(source, cell["id"], "exec"), names)
    assert "within 10 % of the full gradient after" in capsys.readouterr().out
