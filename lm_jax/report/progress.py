"""Progress of a training run: a bar in a terminal or a notebook, lines elsewhere."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lm_jax import training
from lm_jax.config import Config
from lm_jax.files import Row
from lm_jax.report.study import within
from lm_jax.report.terminal import Bars, formatted, literal, vectors_in_words
from lm_jax.training import Run
from lm_jax.training.journal import Watch


def train(
    config: Config,
    run_dir: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    watch: Watch | Literal[False] | None = None,
    devices: int | None = None,
    restart: bool = False,
    distributed: bool = False,
) -> Run:
    """Train a model, or resume the run that an earlier call began in the same directory.

    SIGTERM saves and raises SystemExit(143); SIGINT saves and raises KeyboardInterrupt. In both
    cases, and after any crash, the same call resumes the run.

    Args:
      config: the config of the run. To resume a run, only fields marked as
        `lm_jax.fields.Adjustable` may differ from the config of the run.
      run_dir: directory of the run; created if missing.
      text: with `data.source="memory"`, one text, or three (training, validation, test).
      watch: called as watch(step, row) about once a second; row is the newly written row of
        metrics.jsonl, or None. If watch is None, a terminal or a notebook shows a progress bar;
        False: no bar.
      devices: number of devices that share the sequences of a batch; a divisor of the batch size;
        None for as many devices as divide the batch. The number is not part of the config: a run
        may resume with another number, but then the last bits differ.
      restart: begin anew. If the directory holds a run, rename it to `run_dir.old-1` first (the
        first free number).
      distributed: train one run in all processes of a cluster, on all of their devices. Every
        process makes the same call, and `run_dir` is one directory that they share; process 0
        writes there, and `watch` is called there only. Unless the program has called
        `jax.distributed.initialize` itself, this call does, before any other computation of JAX; it
        reads JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID unless Slurm or a TPU
        pod tells JAX. Without `distributed` a process trains by itself, whatever others do.

    Returns:
      the run, as from `load_run`.

    Raises:
      UserError: the config, the text or the directory is not usable, or all checkpoints of the
        directory's run are lost; nothing has been changed.
      LostProcess: (`lm_jax.training.cluster`, an OSError) another process of a distributed run has
        ended. JAX cannot leave the cluster any more: end the process by `os._exit`.
    """
    with contextlib.ExitStack() as stack:
        if watch is None:
            display = stack.enter_context(Display.of(Path(run_dir).name, config))
            watch = display.live and display.watch
        return training.train(
            config,
            run_dir,
            text=text,
            watch=watch or None,
            devices=devices,
            restart=restart,
            distributed=distributed,
        )


class Display(Bars):
    """Display of a training run on standard error: a progress bar in a terminal, else lines.

    Pass `display.watch` to `lm_jax.train`, inside `with Display(...) as display`.
    """

    def __init__(
        self, name: str, steps: int, epochs: int | None = None, unit: str = "nats a token"
    ):
        """Show a run of `steps` updates, or of `epochs` epochs; `unit` is the unit of the loss."""
        self.epochs, self.unit, self.loss = epochs, unit, ""
        super().__init__()
        self.task = self.progress.add_task(literal(name), total=steps, said="compiling")

    @classmethod
    def of(cls, name: str, config: Config) -> "Display":
        """Show a run of a config, under a name."""
        train = config.train
        unit = "squared error" if config.data.regression else "nats a token"
        return cls(name, train.steps, train.epochs, unit) if train else cls(name, 0)

    def watch(self, step: int, row: Row | None) -> None:
        """Show a step and row from `lm_jax.train`; the bar appears at the first call."""
        self.progress.start()
        self.progress.update(self.task, completed=step)
        if row is None:
            self.progress.update(self.task, said=self.loss)
            return
        if row["kind"] == "train":
            if self.epochs is not None:
                total = round(step / row["epoch"]) * self.epochs
                self.progress.update(self.task, total=total)
            speed = f"{row['tokens_per_second']:,.0f} tokens/s"
            self.loss = f"{formatted(row['nats'], '.3f')} {self.unit}, {speed}"
            self.progress.update(self.task, said=self.loss)
            if not self.live:
                self.say(f"step {step:,}: {self.loss}, gradient norm {row['grad_norm']:.3g}")
        elif row["kind"] == "vectors":
            self.say(vectors_in_words(row))
        elif row["kind"] == "init_from":
            place = f"{row['run']} at step {row['run_step']:,}"
            self.say(f"{row['parameters']:,} parameters from {place}")
        elif row["kind"] == "probe":
            self.say(f"step {step:,}: {_reach(row)}")
        elif row["kind"] == "restored":
            back = f"diverged at step {row['diverged']:,}, back to step {step:,}"
            self.say(f"{back} with {row['lr_scale']:.3g} of the learning rate")
        elif "success" in row:
            figures = f"loss {formatted(row['nats'], '.4f')} (chance {row['chance']:.4f})"
            right = f"{row['success']:.1%} of the sequences right"
            self.say(f"step {step:,}: {row['split']} {figures}, {right}")
        else:
            figures = f"{row['nats']:.4f} nats a token, perplexity {row['perplexity']:.2f}"
            bits = row["bits_per_character"]
            bits = f"{row['unknown']:,} unknown" if bits is None else f"{bits:.3f} bits a character"
            self.say(f"step {step:,}: {row['split']} {figures}, {bits}")


def _reach(row: Row) -> str:
    """A line about a row of kind "probe"."""
    parts = []
    if "horizon" in row:
        steps = (
            f"{within(share)} after {formatted(back, '.0f')}"
            for share, back in row["horizon"].items()
        )
        parts.append(f"steps until the truncated gradient is {', '.join(steps)}")
    if "lag_norms" in row:
        norms = row["lag_norms"]
        longest = formatted(norms[-1], ".3g")
        parts.append(f"∂h_T/∂h_(T−{len(norms) - 1}) has norm {longest}")
    if "spectral_radius" in row:
        radii = [radius for blocks in row["spectral_radius"].values() for radius in blocks]
        parts.append(f"spectral radii {', '.join(formatted(radius, '.3f') for radius in radii)}")
    if "lyapunov" in row:
        parts.append(f"largest Lyapunov exponent {formatted(row['lyapunov'], '.3f')} nats a step")
    return "; ".join(parts)
