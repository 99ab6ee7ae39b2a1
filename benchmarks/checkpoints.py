"""Cost of checkpoints: training time per save, and the share of a resume that verification takes.

    python -m benchmarks.checkpoints

trains the quickstart and an LSTM of 30 million parameters with SGD, and resumes each run three
times in a new process, with compiled programs in the cache. A save costs training the seconds until
`Checkpoints.save` returns. Verification is all hashing of files and arrays before the first save of
a resumed run; a resume lasts from the start of Python to the end of the process, which makes a few
more updates. `make bench` leaves this out.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_jax
from benchmarks.side_by_side import ROOT
from lm_jax.config import LSTM, RNN, SGD, Config, Data, Memory, Train, override
from lm_jax.experiment import load_experiment
from lm_jax.training import checkpoint

TEXT = "the cat sat on the mat\nand the dog lay by the cat\n\nall was still\n" * 200
LARGE = Config(
    data=Data(source=Memory(), batch_size=4, length=8),
    model=RNN(embedding_size=1380, hidden_size=1380, cell=LSTM(), layers=2),
    train=Train(optimizer=SGD(), validate_every=10**6),
)
EVERY = {"quickstart": 50, "large": 10}  # updates from save to save


def timed(place: Any, name: str) -> list[float]:
    """Replace a function by one that notes the seconds of each call; return the notes."""
    seconds: list[float] = []
    function: Callable = getattr(place, name)

    def call(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(place, name, call)
    return seconds


def train(model: str, run_dir: Path, saves: int) -> None:
    """Train a model up to its n-th save; an existing run is resumed."""
    config, text = LARGE, TEXT
    if model == "quickstart":
        config, text = load_experiment(model).config, None
    every = EVERY[model]
    changes = {"steps": saves * every, "checkpoint_every": every, "schedule": "constant"}
    changes = {f"train.{name}": value for name, value in changes.items()}
    lm_jax.train(override(config, changes), run_dir, text=text)


def resume(model: str, run_dir: Path, saves: int) -> None:
    """Resume a run, and print the seconds of hashing before the first save."""
    hashing = [timed(checkpoint, "_file_digests"), timed(checkpoint, "_leaf")]
    verified: list[float] = []
    save = checkpoint.Checkpoints.save

    def noting(*given: Any, **named: Any) -> None:
        verified.append(sum(map(sum, hashing)))
        save(*given, **named)

    checkpoint.Checkpoints.save = noting
    train(model, run_dir, saves)
    print(verified[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--resume", nargs=3, metavar=("MODEL", "RUN_DIR", "SAVES"))
    asked = parser.parse_args()
    if asked.resume:
        model, run_dir, saves = asked.resume
        resume(model, Path(run_dir), int(saves))
        return
    blocked = timed(checkpoint.Checkpoints, "save")
    written = timed(checkpoint.Checkpoints, "_write")
    for model in EVERY:
        blocked.clear()
        written.clear()
        with tempfile.TemporaryDirectory() as folder:
            train(model, Path(folder) / "run", 4)
            for name, seconds in (("training waits", blocked), ("a save takes", written)):
                print(f"{model}: {name} {', '.join(f'{s * 1e3:.0f}' for s in seconds)} ms")
            for saves in (5, 6, 7):
                began = time.perf_counter()
                command = [sys.executable, "-m", "benchmarks.checkpoints", "--resume", model]
                output = subprocess.check_output(
                    [*command, f"{folder}/run", str(saves)], cwd=ROOT, text=True
                )
                share = float(output.split()[-1]), time.perf_counter() - began
                print(
                    f"{model}: verified in {share[0] * 1e3:.0f} ms of {share[1]:.1f} s", flush=True
                )


if __name__ == "__main__":
    main()
