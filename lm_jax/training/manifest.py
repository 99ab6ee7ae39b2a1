"""The manifest of a run: digests of the config and the corpus, and a list of the checkpoints.

The files of a run name each other by digests, and damage to any file is found:

    config.json, vocabulary.json      sealed (`lm_jax.files.sealed`)
    manifest.json                     digests of the config and the corpus, the steps of the
                                      checkpoints and, at the end, a digest of metrics.jsonl
    checkpoints/STEP/manifest.json    the same digests, and digests of the rows of metrics.jsonl,
                                      of each file and each array (`lm_jax.training.checkpoint`)
    metrics.jsonl                     numbered and sealed rows (`lm_jax.training.journal`)
    result.json                       SHA-256 of the kept parameters

A save is complete once the manifest lists the checkpoint. A listed checkpoint that is gone has
therefore been lost, and a run that has lost all checkpoints begins anew only if asked.
"""

import importlib.metadata
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pydantic

from lm_jax import files
from lm_jax.config import Config
from lm_jax.settings import UserError, digest
from lm_jax.training.journal import Kept

NAME = "manifest.json"


class Manifest(pydantic.BaseModel):
    """Contents of manifest.json."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    config: str
    """Digest of the config, without the adjustable fields."""
    corpus: str
    """Digest of the corpus."""
    checkpoints: list[int] = []
    """Steps of the checkpoints."""
    journal: Kept | None = None
    """The rows of metrics.jsonl if the run has ended."""


def new(config: Config, corpus: str) -> Manifest:
    """The manifest of a run without checkpoints."""
    return Manifest(config=digest(config), corpus=corpus)


def read(run_dir: Path) -> Manifest:
    """The manifest of a run.

    Raises:
      UserError: the manifest is missing or damaged.
    """
    path = run_dir / NAME
    try:
        return files.read_sealed(path, Manifest)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None


def write(run_dir: Path, manifest: Manifest) -> None:
    """Write manifest.json, atomically."""
    files.write_sealed(run_dir / NAME, manifest.model_dump())


class Leaf(pydantic.BaseModel):
    """An array of a checkpoint."""

    shape: list[int]
    dtype: str
    sha256: str


class Contents(pydantic.BaseModel):
    """Contents of a checkpoint's manifest.json."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    step: int
    config: str
    """Digest of the config, as in the manifest of the run."""
    corpus: str
    """Digest of the corpus."""
    journal: Kept
    """The rows of metrics.jsonl so far."""
    environment: dict[str, str]
    """Versions, devices and flags, on which the last bits of a run depend."""
    files: dict[str, str]
    """SHA-256 by name, of each file in arrays/."""
    leaves: dict[str, Leaf]
    """The arrays by name."""


def environment(devices: Sequence[Any] | None = None) -> dict[str, str]:
    """Versions and flags of this process, and its devices, or the given devices of a run."""
    devices = devices or jax.local_devices()
    processes = len({device.process_index for device in devices})
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")},
        "devices": f"{len(devices)} x {devices[0].device_kind}"
        + (f" in {processes} processes" if processes > 1 else ""),
        "cores": str(os.cpu_count()),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "PRNG": str(jax.random.key_impl(jax.random.key(0))),
    }


def compare_environment(there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Warn if the environment of a checkpoint differs from the present environment.

    Raises:
      UserError: the random numbers are of another kind.
    """
    if there["PRNG"] != here["PRNG"]:
        raise UserError(
            f"the run draws its random numbers by {there['PRNG']}, and this process by "
            f"{here['PRNG']}: set jax_default_prng_impl to {there['PRNG']}"
        )
    changes = [
        f"{name}: {there.get(name)} -> {value}"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if changes:
        warnings.warn(f"the run's last bits may change ({'; '.join(changes)})", stacklevel=2)
