"""The command `train`."""

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

import lm_jax
from lm_jax.commands.shared import SAMPLE_LENGTH, ExperimentName, Flag, divide_cpu, either
from lm_jax.commands.stopping import explained, longer, saved_of_run
from lm_jax.config import Config, resolve
from lm_jax.config.layouts import told
from lm_jax.report.lines import print_json, print_row
from lm_jax.report.page import LivePage
from lm_jax.report.progress import Display
from lm_jax.report.run_page import sample_of, write_about, write_run
from lm_jax.report.terminal import show_result
from lm_jax.settings import digest
from lm_jax.track import Name, together, tracker
from lm_jax.training import Run
from lm_jax.training.cluster import exchange, join, leads, shorten_errors


def train_command(
    default: Config, given: Sequence[str], program: str, claim: str = ""
) -> Callable[..., int]:
    """Make the command `train`; the flags default to an experiment's settings.

    Args:
      default: the experiment's config.
      given: the words after the command, to print the command for resuming a stopped run.
      program: the program as it was started, for the same command.
      claim: what the experiment claims, for the run's page.
    """
    command = f"{program} train"

    def train(
        experiment: ExperimentName,
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
        devices: int | None = None,
        restart: Flag = False,
        quiet: Flag = False,
        json: Flag = False,
        track: tuple[Name, ...] = (),
        distributed: Flag = False,
    ) -> int:
        """Train a model, or resume a stopped run.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: settings of the run.
          run_dir: directory of the run; runs/EXPERIMENT-DIGEST if not given (the same command then
            resumes the same run).
          devices: number of devices that share the sequences of each batch; as many as divide the
            batch if not given. A CPU counts as one device if not given, else as the given number.
          restart: begin anew; a run in the directory is kept as RUN_DIR.old-1 (or the next number).
          quiet: print only the run's directory, and errors.
          json: print each new row of metrics.jsonl as a line of JSON, then a line with the result.
          track: write the rows of metrics.jsonl elsewhere, too: csv, tensorboard or wandb, or some
            of these. The places: metrics.csv, the folder tensorboard, Weights & Biases.
          distributed: train one run in several processes, on all of their devices: start the same
            command once per process, under Slurm or on a TPU pod as usual, elsewhere with
            JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. RUN_DIR must
            be on a file system that all processes share; process 0 writes and prints.
        """
        either(quiet=quiet, json=json)
        either(devices=devices is not None, distributed=distributed)
        name = Path(experiment).stem
        said = told(config.data)
        config = resolve(config)
        run_dir = run_dir or Path("runs") / f"{name}-{digest(config)}"
        if devices is not None and devices > 1:
            divide_cpu(devices)
        if distributed:
            shorten_errors()
            join()
        if distributed and not leads():
            run = lm_jax.train(config, run_dir, watch=False, restart=restart, distributed=True)
            exchange({})  # wait for process 0, which writes the page
            return int(_diverged(run))
        if said and not quiet:
            print(said, file=sys.stderr)

        def draw(run: Run | None = None, sample: str | None = None) -> Path:
            write_about(run_dir, command=f"{command} {shlex.join(given)}", claim=claim)
            return write_run(run_dir, run, sample)

        saved = functools.partial(saved_of_run, run_dir)
        with contextlib.ExitStack() as stack:
            stack.enter_context(explained(run_dir, command, given, saved, restart=restart))
            watches = [stack.enter_context(tracker(one, run_dir)) for one in track]
            watches.append(LivePage(draw).watch)
            if json:
                watches.append(print_row)
            elif not quiet:
                watches.append(stack.enter_context(Display.of(name, config)).watch)
            watch = together(*watches)
            run = lm_jax.train(
                config,
                run_dir,
                watch=watch,
                devices=devices,
                restart=restart,
                distributed=distributed,
            )
            diverged = _diverged(run)
            sample = None if diverged else sample_of(run, SAMPLE_LENGTH)
            try:
                page = draw(None if diverged else run, sample)
            except OSError as error:  # the run is whole without its page
                page = f"no page: {error}"
        if distributed:
            exchange({})
        if json:
            print_json({"kind": "result", "run_dir": str(run_dir), **(run.result or {})})
        elif not quiet:
            show_result(run)
            if sample is not None:
                print(f"\na sample:\n\n{sample.strip()}\n")
            if more := longer(run, command, given):
                print(f"for more updates: {more}")
            print(page)
        if diverged:
            said = "loss, gradient or parameters were not finite at step"
            print(f"{said} {run.step:,}: {run_dir}", file=sys.stderr)
            return 1
        if not json:
            print(run_dir)
        return 0

    return train


def _diverged(run: Run) -> bool:
    return run.result is not None and run.result["status"] == "diverged"
