"""The package, built from a clone and tried in environments without the clone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lm_jax

ROOT = Path(__file__).parents[2]


def run(*words, cwd, **kwargs):
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_the_version_stands_in_one_place_and_the_pages_name_it():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == lm_jax.__version__
    date = re.search(r"^date-released: (.*)$", text, re.MULTILINE)[1]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (.*)$", changes, re.MULTILINE)[1]
    assert newest == f"{lm_jax.__version__} - {date}"
    assert "version =" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the clone, without the files ignored by git."""
    folder = tmp_path_factory.mktemp("clone")
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def environment(folder):
    """Make a fresh environment with the libraries of the present environment; return its bin/."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    site = run(
        folder / "bin" / "python",
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
        cwd=folder,
    ).strip()
    here = [path for path in sys.path if Path(path).name == "site-packages"]
    (Path(site) / "libraries.pth").write_text("\n".join(here))
    return folder / "bin"


def install(bin_dir, *words):
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    run(*pip, bin_dir / "python", "install", *flags, *words, cwd=bin_dir)


@pytest.mark.slow
def test_wheel_and_sdist_are_whole_and_building_leaves_nothing_behind(clone, tmp_path):
    before = files(clone)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, cwd=clone)
    assert files(clone) == before
    built = sorted(tmp_path.iterdir())
    assert [path.suffix for path in built] == [".whl", ".gz"]
    run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--editable",)], ids=["wheel", "editable"])
def test_the_installed_command_trains_an_experiment_by_name(clone, tmp_path, kept_cache, how):
    before = files(clone)
    bin_dir = environment(tmp_path / "environment")
    install(bin_dir, *how, clone)
    assert files(clone) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    about = "import lm_jax, lm_jax.experiment as e; print(lm_jax.__version__, e.EXPERIMENTS)"
    version, experiments = run(bin_dir / "python", "-c", about, cwd=empty).split()
    assert version == lm_jax.__version__
    assert Path(experiments).is_relative_to(clone if how else tmp_path / "environment")
    names = {path.name for path in Path(experiments).rglob("*.py")}
    assert names == {path.name for path in (ROOT / "experiments").rglob("*.py")}
    assert "train" in run(bin_dir / "lm-jax", "--help", cwd=empty)
    words = "train quickstart --train.steps 2 --model.hidden-size 4 --run-dir run".split()
    run(bin_dir / "lm-jax", *words, cwd=empty, env={"LM_JAX_CACHE": str(kept_cache)})
    assert (empty / "run" / "result.json").exists()
    assert {path.name for path in empty.iterdir()} == {"run"}
