"""The command `train`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

import lm_jax
from lm_jax import generation
from lm_jax.commands.shared import SAMPLE_LENGTH, divide_cpu, told
from lm_jax.config import Config, resolve
from lm_jax.report.terminal import Display, show_result
from lm_jax.settings import digest


def train_command(default: Config) -> Callable[..., int]:
    """Make the command `train`; the flags default to an experiment's settings."""

    def train(
        experiment: tyro.conf.Positional[str],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
        devices: int | None = None,
        restart: bool = False,
    ) -> int:
        """Train a model, or resume a stopped run.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: settings of the run.
          run_dir: directory of the run; runs/EXPERIMENT-DIGEST if not given (the same command then
            resumes the same run).
          devices: number of devices that share the sequences of each batch; all devices if not
            given. A CPU counts as a single device if not given, else as the given number.
          restart: begin anew; a run in the directory is kept as RUN_DIR.old-1 (or the next number).
        """
        name = Path(experiment).stem
        config = resolve(config)
        run_dir = run_dir or Path("runs") / f"{name}-{digest(config)}"
        if devices is not None and devices > 1:
            divide_cpu(devices)
        with told(run_dir, restart), display_of(name, config) as display:
            run = lm_jax.train(
                config, run_dir, watch=display.watch, devices=devices, restart=restart
            )
        show_result(run)
        if run.result and run.result["status"] == "diverged":
            step = run.result["step"]
            print(f"loss, gradient or parameters were not finite at step {step:,}: {run_dir}")
            return 1
        if not config.data.generated:
            text = generation.sample(run.model, run.params, run.vocabulary, length=SAMPLE_LENGTH)
            print(f"\na sample:\n\n{text.strip()}\n")
        print(run_dir)
        return 0

    return train


def display_of(name: str, config: Config) -> Display:
    """Make the progress display of a run."""
    train = config.train
    unit = "squared error" if config.data.regression else "nats a token"
    return Display(name, train.steps, train.epochs, unit) if train else Display(name, 0)
