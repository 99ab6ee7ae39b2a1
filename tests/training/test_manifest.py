"""Each file of a run, damaged in each way: the damage is named, and the run is what it was."""

import contextlib
import random
import shutil
import warnings

import pytest
import tiny

import lm_jax
from lm_jax.settings import UserError

NAMES = (
    "config.json",
    "vocabulary.json",
    "manifest.json",
    "metrics.jsonl",
    "result.json",
    "checkpoints/00000020/manifest.json",
    "checkpoints/00000020/arrays",
)


def flipped(seed):
    def flip(content, other):
        draw = random.Random(seed)
        place, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]

    return flip


DAMAGE = {
    **{f"a flipped bit, {seed}": flipped(seed) for seed in range(4)},
    "cut": lambda content, other: content[: len(content) // 2],
    "cut by a line": lambda content, other: content[: content[:-1].rfind(b"\n") + 1],
    "zeros": lambda content, other: bytes(len(content)),
    "doubled": lambda content, other: content + content,
    "of another run": lambda content, other: other,
    "gone": lambda content, other: None,
}
QUICK = ("a flipped bit, 0", "cut", "of another run", "gone")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and the same with another seed."""
    place = tmp_path_factory.mktemp("runs")
    return [
        lm_jax.train(tiny.config(seed=seed), place / str(seed), text=tiny.TEXT) for seed in (0, 1)
    ]


def largest(path):
    """The file, or the largest of the numbers in a folder."""
    inner = path.rglob("d/*") if path.is_dir() else [path]
    return max(inner, key=lambda one: one.stat().st_size)


@contextlib.contextmanager
def told(said):
    """Collect what is warned of and refused."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except UserError as error:
            said.append(str(error))
    said += [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "how",
    [pytest.param(how, marks=[] if how in QUICK else pytest.mark.slow) for how in DAMAGE],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_named_and_the_run_is_what_it_was(name, how, runs, tmp_path):
    whole, other = runs
    run_dir = shutil.copytree(whole.path, tmp_path / "run")
    path = largest(run_dir / name)
    content = path.read_bytes()
    spoiled = DAMAGE[how](content, largest(other.path / name).read_bytes())
    if spoiled is None:
        path.unlink()
    else:
        path.write_bytes(spoiled)

    said = []
    with told(said):
        run = lm_jax.load_run(run_dir)
        if run.step == 20:
            tiny.assert_trees_equal(run.params, whole.params)
    with told(said):
        again = lm_jax.train(tiny.config(), run_dir, text=tiny.TEXT)
    tiny.assert_trees_equal(again.params, whole.params)
    assert again.result["sha256"] == whole.result["sha256"]
    assert again.result["splits"] == whole.result["splits"]
    sign = "00000020" if "/" in name else name
    unlost = spoiled == content or (how, name) == ("gone", "result.json")  # it is made again
    assert any(sign in line for line in said) != unlost, said
    rows, before = tiny.rows_of(run_dir), tiny.rows_of(whole.path)
    if name == "metrics.jsonl":
        assert all(row in before for row in rows)
        lost = f"({len(before) - len(rows)} of {len(before)} rows are lost"
        assert any(lost in line for line in said), said
    else:
        assert rows == before
    # What was damaged lies beside, as it was.
    if spoiled not in (None, content) and "/" not in name:
        assert (run_dir / f"{name}.damaged-1").read_bytes() == spoiled
