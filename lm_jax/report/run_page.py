"""The page of a run, report.html: its training, its words, and every study of its gradient.

The page is made from the files of the run directory: config.json, vocabulary.json, metrics.jsonl,
result.json, probe*.json, about.json (how the run was started) and, for the device and the versions,
the newest checkpoint's manifest. What a model says and what surprises it is on the page if the
model is at hand.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm_jax import generation, scoring
from lm_jax.config import RNN, Config, RangeTest
from lm_jax.data.corpus import load
from lm_jax.fields import fields
from lm_jax.files import Row, read_json, write_json
from lm_jax.report.learning_sections import learning_sections
from lm_jax.report.page import FILE, Quote, Section, Surprise, Table, write_page
from lm_jax.report.reach_sections import reach_sections
from lm_jax.report.study import spike_in_words
from lm_jax.report.update_sections import update_sections
from lm_jax.report.wording import in_words
from lm_jax.settings import UserError
from lm_jax.training import Run
from lm_jax.training.checkpoint import steps_saved
from lm_jax.training.directory import read_config, read_vocabulary
from lm_jax.training.journal import read_result, read_rows

ABOUT = "about.json"
SURPRISED = 600  # tokens of the held-out text shown with their surprise


def write_about(directory: Path, *, command: str, claim: str) -> None:
    """Write how a run or a sweep was started, for its page; a resumed one keeps what is there.

    Args:
      directory: of the run or sweep.
      command: the command line.
      claim: what the experiment claims, or "".
    """
    if not (directory / ABOUT).exists():
        write_json(directory / ABOUT, {"command": command, "claim": claim}, indent=1)


def about(directory: Path) -> Row:
    """The contents of about.json; empty if the file is missing or damaged."""
    try:
        return read_json(directory / ABOUT, dict[str, str])
    except (OSError, UserError):
        return {}


def write_run(run_dir: Path, run: Run | None = None, sample: str | None = None) -> Path:
    """Write the page of a run, finished or in training.

    Args:
      run_dir: directory of the run.
      run: the same run, loaded, for what its model says; None to leave this out.
      sample: a text that the model wrote.

    Returns:
      the path of the page.

    Raises:
      UserError: the directory holds no run, or a file cannot be read.
    """
    config, (vocabulary, _) = read_config(run_dir), read_vocabulary(run_dir)
    rows, result = read_rows(run_dir / "metrics.jsonl"), read_result(run_dir)
    sections = learning_sections(
        rows,
        result,
        vocabulary=None if config.data.generated else vocabulary,
        clip_norm=None if config.train is None else config.train.clip_norm,
        cell=config.model.cell.kind if isinstance(config.model, RNN) else "",
        ranged=config.train is not None and isinstance(config.train.schedule, RangeTest),
    )
    if sample is not None:
        step = "" if run is None else f", parameters kept after {run.step:,} updates"
        text = Quote(f"drawn at temperature 1{step}", sample.strip("\n"))
        sections.append(Section("What does it say?", "", [text]))
    if run is not None and not config.data.generated:
        sections += _surprise(run)
    for path in sorted(run_dir.glob("probe*.json"), key=lambda path: path.stat().st_mtime):
        try:
            sections += _study(path, config)
        except (UserError, LookupError, TypeError, ValueError, AttributeError) as error:
            said = f"{path.name} is damaged or of another version: {error!r}"
            sections.append(Section(f"The study {path.stem}", said, []))
    sections.append(_settings(config))
    told = about(run_dir)
    claim = told.get("claim")
    lead = f"The experiment claims: {claim}" if claim else f"A model of kind {config.model.kind}."
    return write_page(run_dir / FILE, run_dir.resolve().name, lead, sections, _facts(run_dir, told))


def _facts(run_dir: Path, told: Row) -> dict[str, str]:
    began = time.strftime("%F %H:%M", time.localtime((run_dir / "config.json").stat().st_mtime))
    result = read_result(run_dir)
    found = {"command": told.get("command", ""), "begun": began}
    if result is not None:
        found["state"] = f"{result['status']} at update {result['step']:,}"
        found["parameters"] = f"{result['parameters']:,}"
        found["training"] = f"{result['seconds']:,.0f} seconds"
    else:
        found["state"] = "in training, or stopped"
    for step in reversed(steps_saved(run_dir)):
        path = run_dir / "checkpoints" / f"{step:08d}" / "manifest.json"
        with contextlib.suppress(OSError, UserError, KeyError, TypeError):
            here = read_json(path)["environment"]
            found["device"] = f"{here['devices']}, {here['cores']} cores"
            named = ("python", "jax", "flax", "optax", "numpy")
            found["versions"] = ", ".join(f"{name} {here[name]}" for name in named)
            break
    return found


def _settings(config: Config) -> Section:
    """The settings that differ from the defaults."""
    usual = {path: value for path, value, _ in fields(Config())}
    rows = [
        [path, in_words(value), in_words(usual[path]) if path in usual else "–"]
        for path, value, _ in fields(config)
        if path not in usual or usual[path] != value
    ]
    return Section(
        "How does it differ from the defaults?",
        f"{len(rows)} settings differ from the defaults." if rows else "All settings are defaults.",
        [Table(("setting", "here", "default"), rows)] if rows else [],
        "– is a setting that the default's alternative does not have.",
    )


def _surprise(run: Run) -> list[Section]:
    """The first tokens of the held-out text with their surprise; empty if there is no such text."""
    try:
        corpus = load(run.config.data)
    except UserError:  # the text was given by a program, or is gone
        return []
    tokens = np.asarray(corpus.validation.tokens[:SURPRISED])
    text = run.vocabulary.decode(tokens)
    if not text.strip():
        return []
    found = scoring.score(run.model, run.params, run.vocabulary, text)
    words = [run.vocabulary.tokens[token] for token in found.tokens.tolist()]
    most = int(np.argmax(found.nats))
    few = max(1, len(words) // 10)
    share = float(np.sort(found.nats)[::-1][:few].sum() / found.nats.sum())
    return [
        Section(
            "What surprises it?",
            f"The {few} least expected of these {len(words)} tokens carry {share:.0%} of the loss. "
            f"The greatest surprise is {run.vocabulary.show(int(found.tokens[most]))!r} with "
            f"{found.nats[most]:.1f} nats.",
            [Surprise(words, found.nats.tolist())],
            "The beginning of the validation text. The redder a token, the less probable it was to "
            "the model: uncoloured is certain, the deepest red is 8 nats or more.",
        )
    ]


def _study(path: Path, config: Config) -> Sequence[Section]:
    """The sections of a study in probe*.json, after a section that says what was studied."""
    study = read_json(path)
    model, data = config.model, config.data
    cell = model.cell.kind if isinstance(model, RNN) else model.kind
    said = f"With the parameters of update {study['parameters_step']:,}"
    if study["length"] is not None:
        chunk = "steps" if data.generated else "tokens of the validation text or of the text given"
        said += f", on {study['sequences']} sequences of {study['length']} {chunk}"
    said += f"; the next updates follow update {study['step']:,}."
    if study["spike"] is not None:
        said += f" {spike_in_words(study['spike'])}."
    parts = [
        *reach_sections(study.get("reach", {}), cell, path.stem),
        *update_sections(study.get("updates", {}), path.stem),
    ]
    return [
        Section(
            f"How the gradient travels through time: {path.stem}",
            said,
            [],
            "A gradient is that of the mean loss in nats a token, unless a figure says otherwise.",
        ),
        *(section._replace(level=3) for section in parts),
    ]


def sample_of(run: Run, length: int) -> str | None:
    """A text that the model writes; None for a model of generated sequences."""
    if run.config.data.generated:
        return None
    return generation.sample(run.model, run.params, run.vocabulary, length=length)
