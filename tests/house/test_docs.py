"""The pages say what is so: their code runs, their files and flags exist."""

import ast
import operator
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
import tiny

from lm_jax.commands.main import main
from lm_jax.report.page import with_dark_colours

ROOT = Path(__file__).parents[2]
# Flags of the code that the pages show or name.
HYPERPARAMETERS = {"--model.cell.heads", "--train.optimizer.b1"}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def anchors(page):
    """What the headings of a page are called in links, as GitHub has it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
def test_every_block_of_the_programs_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    found = blocks(ROOT / "docs" / "programs.md", "python")
    assert len(found) >= 7
    for block in found:
        exec(block, names)
    assert len([row for row in names["rows"] if row and row["kind"] == "train"]) == 3
    # 40 steps on a text this simple take the loss well below the start's ln V.
    assert names["run"].result["splits"]["test"]["nats"] < 2.5
    assert names["loss"] < 2.5


@pytest.mark.slow
def test_every_block_of_the_gradients_page_runs_and_prints_what_is_shown(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    names = {}
    page = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)
    assert len(found) >= 15
    assert sum(bool(shown) for _, shown in found) == page.count("```text") == 4
    for block, shown in found:
        capsys.readouterr()
        exec(block, names)
        assert capsys.readouterr().out == shown, block


@pytest.mark.slow
def test_the_first_three_jobs_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """Each block of start.md in order; what is trained is made small."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_text.txt").write_text("A text.\n" * 9)
    page = ROOT / "docs" / "start.md"
    experiment, own_step = blocks(page, "python")
    (tmp_path / "rates.py").write_text(experiment)
    commands = [shlex.split(line) for line in "".join(blocks(page, "sh")).splitlines()]
    assert [words[1] for words in commands] == ["train", "sample", "score", "sweep", "probe"]
    for program, command, *words in commands:
        small = ["--train.steps", "4", "--model.hidden-size", "4", "--data.length", "8"]
        words += small if command in ("train", "sweep") else []
        assert main([command, *words], program) == 0, words
    assert "the best trial by itself: lm-jax train rates.py" in capsys.readouterr().out
    with jax.enable_x64(False):
        exec(own_step, {})
    assert [capsys.readouterr().out] == blocks(page, "text")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """Links among the pages, and names in docstrings that would mean two things, are checked."""
    options = ["-W", "--keep-going", "--quiet", "-d", tmp_path / "cache"]
    words = [sys.executable, "-m", "sphinx", *options, ROOT / "docs", tmp_path / "html"]
    built = subprocess.run(words, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert 'href="#lm_jax.gradients.lag_norms"' in (
        tmp_path / "html" / "api" / "lm_jax.gradients.html"
    ).read_text(encoding="utf-8")


def test_the_figures_of_the_pages_follow_a_dark_theme():
    """A figure's file has the present colours, and is written as a run's page writes it."""
    for path in (ROOT / "docs").rglob("*.svg"):
        svg = path.read_text(encoding="utf-8")
        light = re.sub(r"\n<style>\n@media \(prefers-color-scheme.*?</style>", "", svg, flags=re.S)
        assert light != svg, path
        assert with_dark_colours(light) == svg, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_modules_are_there(page):
    """Of each block of Python: what it imports, and what it takes from an imported module."""
    for block in blocks(page, "python"):
        if "safetensors.torch" in block:  # run by tests/exchange/test_with_torch.py
            continue
        tree, names = ast.parse(block), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), names)
        modules = {name for name, value in names.items() if isinstance(value, types.ModuleType)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                root, _, rest = ast.unparse(node).partition(".")
                if root in modules:
                    operator.attrgetter(rest)(names[root])


def test_the_readme_s_program_and_experiment_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(tiny.TEXT * 10)
    experiment, program = blocks(ROOT / "README.md", "python")
    names = {}
    exec(experiment, names)
    assert names["config"]().train.gradient.k2 == 96
    exec(program.replace("steps=200", "steps=2, log_every=1").replace("length=200", "length=5"), {})


def test_every_diff_of_the_contributing_page_applies():
    found = blocks(ROOT / "CONTRIBUTING.md", "diff")
    assert len(found) == 4
    for block in found:
        subprocess.run(["git", "apply", "--check"], input=block, text=True, cwd=ROOT, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_flags_are_there(page):
    from lm_jax.config import Config
    from lm_jax.fields import paths, types_at

    text = re.sub(r"```diff\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not heading or heading in anchors(other), f"{target}#{heading}"
    for flag in re.findall(r"--(?:data|model|train)[\w.-]+\w", text):
        path = re.sub(r"(?<=\.)\d+(?=\.)", "0", flag.removeprefix("--").replace("-", "_"))
        switch = re.sub(r"\bno_(?=\w+$)", "", path)
        known = path in paths(Config) or bool in types_at(Config, switch)
        assert known or flag in HYPERPARAMETERS, flag
