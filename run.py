"""Train, sweep, score, sample, probe and verify language models: `python run.py --help`."""

import contextlib
import functools
import inspect
import io
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import lm_jax
from lm_jax import inference
from lm_jax.commandline import Flags
from lm_jax.config import Config, resolve
from lm_jax.data.corpus import cache_folder, load
from lm_jax.data.text import Text, file_text
from lm_jax.data.vocabulary import encoded
from lm_jax.experiment import (
    Experiment,
    command_line,
    in_one_line,
    load_experiment,
    with_kinds,
)
from lm_jax.report.probe_page import write_study
from lm_jax.report.score_table import (
    show_beam,
    show_exposure,
    show_samples,
    show_score,
    show_stream,
)
from lm_jax.report.sweep import show_plan, show_sweep
from lm_jax.report.sweep_page import write_sweep
from lm_jax.report.sweep_progress import SweepDisplay
from lm_jax.report.terminal import Display, show_probe, show_proof, show_result, waiting
from lm_jax.settings import UserError, digest, nearest
from lm_jax.sweeps import Halving, executor_called, plan
from lm_jax.sweeps.processes import cores_here
from lm_jax.synonyms import COMMANDS, name_meant
from lm_jax.training import directory, prove

SAMPLE_LENGTH = 300  # tokens shown at the end of training

Flag = tyro.conf.FlagCreatePairsOff[bool]


def train_command(default: Config) -> Callable[..., int]:
    """Make the command `train`; the flags default to an experiment's settings."""

    def train(
        experiment: tyro.conf.Positional[str],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
        devices: int | None = None,
    ) -> int:
        """Train a model, or resume a stopped run.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: settings of the run.
          run_dir: directory of the run; runs/EXPERIMENT-DIGEST if not given (the same command then
            resumes the same run).
          devices: number of devices that share the sequences of each batch; all devices if not
            given. A CPU counts as a single device if not given, else as the given number.
        """
        name = Path(experiment).stem
        config = resolve(config)
        run_dir = run_dir or Path("runs") / f"{name}-{digest(config)}"
        if devices is not None and devices > 1:
            divide_cpu(devices)
        with told_if_stopped(run_dir), display_of(name, config) as display:
            run = lm_jax.train(config, run_dir, watch=display.watch, devices=devices)
        show_result(run)
        if run.result and run.result["status"] == "diverged":
            print(f"the loss was not finite at step {run.result['step']:,}: {run_dir}")
            return 1
        if not config.data.generated:
            text = inference.sample(run.model, run.params, run.vocabulary, length=SAMPLE_LENGTH)
            print(f"\na sample:\n\n{text.strip()}\n")
        print(run_dir)
        return 0

    return train


@contextlib.contextmanager
def told_if_stopped(run_dir: Path) -> Iterator[None]:
    """If a signal stops the run or sweep, prints on standard error how to resume."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped: the same command goes on with {run_dir}", file=sys.stderr)
        raise


def divide_cpu(devices: int) -> None:
    """Divides the CPU into `devices` JAX devices; no effect after JAX's first computation."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)


def display_of(name: str, config: Config) -> Display:
    """Make the progress display of a run."""
    train = config.train
    unit = "squared error" if config.data.regression else "nats a token"
    return Display(name, train.steps, train.epochs, unit) if train else Display(name, 0)


def sweep_command(
    default: Config, asked: Experiment | None, given: list[str]
) -> Callable[..., int]:
    """Make the command `sweep`; the flags default to an experiment's settings.

    Args:
      default: the experiment's config.
      asked: the experiment; None if the command line names no experiment.
      given: words of the command line, to print a complete command for each point.
    """

    def sweep(
        experiment: tyro.conf.Positional[str],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
        dry_run: Flag = False,
        executor: str = "here",
        workers: int | None = None,
        cores: int | None = None,
        lanes: int | None = None,
        retries: int = 1,
        halving_first: int | None = None,
        halving_factor: int | None = None,
        suggest: Literal["optuna"] | None = None,
        batch: int | None = None,
    ) -> int:
        """Train a model at every point of an experiment's sweep(), or resume a stopped sweep.

        Trials that differ only in numbers train side by side, as lanes of a single program.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: base settings, changed by the points.
          run_dir: directory of the sweep; runs/EXPERIMENT-sweep-DIGEST if not given.
          dry_run: only print the command line of each trial, the groups of trials that share a
            program, and the memory they need.
          executor: where to train: here, in this process, on all cores or devices; processes,
            several processes of this machine; ray, nodes of a cluster; slurm, jobs of a cluster.
          workers: processes: number of processes; 1 per GPU, or 2 without a GPU, if not given.
          cores: ray, slurm: cores of each job; 1 if not given.
          lanes: largest number of trials side by side; as many as fit into half of the free memory
            if not given.
          retries: number of further attempts at a failed trial, alone and in a fresh process.
          halving_first: successive halving (Li et al., 2020): the update of the first rung; at a
            rung all but the best trials end. No halving if not given.
          halving_factor: successive halving: the best 1/factor continue, and each rung is factor
            times the rung before; 3 if not given.
          suggest: optuna: replace the drawn points of sweep() by as many points suggested by
            Optuna, based on the results of earlier points.
          batch: suggest: number of points suggested and trained together; 8 if not given.
        """
        at_least(1, workers=workers, cores=cores, lanes=lanes, batch=batch)
        at_least(0, retries=retries)
        at_least(1, **{"halving-first": halving_first})
        at_least(2, **{"halving-factor": halving_factor})
        only_with("--halving-first", halving_first, **{"halving-factor": halving_factor})
        only_with("--suggest", suggest, batch=batch)
        name = Path(experiment).stem
        if asked is None or asked.points is None:
            raise UserError(f"{experiment} has no sweep()")
        if suggest is not None and asked.drawn is None:
            raise UserError(f"--suggest=optuna needs a sweep() that is draw(…): {experiment}'s not")
        run_dir = run_dir or Path("runs") / f"{name}-sweep-{digest(resolve(config))}"
        command = functools.partial(command_line, given, config)
        halving = None
        if halving_first is not None:
            halving = Halving(halving_first, 3 if halving_factor is None else halving_factor)
        where = executor_called(executor, workers=workers, cores=cores)
        if executor == "here":
            # A JAX device for each core: the lanes are sharded over the devices.
            divide_cpu(len(cores_here()))
        planned = plan(config, asked.points)
        if dry_run:
            show_plan(planned, command, halving)
            return 0
        steps = {t.name: t.config.train.steps if t.config.train else 0 for t in planned.trials}
        bars = [{trial.name: steps[trial.name] for trial in g.trials} for g in planned.groups]
        bars = [] if suggest else bars
        with told_if_stopped(run_dir), SweepDisplay(bars, max(steps.values())) as display:
            rows = lm_jax.sweep(
                config,
                asked.points if suggest is None or asked.drawn is None else asked.drawn,
                run_dir,
                watch=display.watch,
                executor=where,
                lanes=lanes,
                retries=retries,
                halving=halving,
                suggest=None if suggest is None else 8 if batch is None else batch,
            )
        show_sweep(rows, command)
        print(write_sweep(run_dir))
        print(run_dir)
        return 1 if any(row["status"] == "failed" for row in rows) else 0

    return sweep


def verify_command(default: Config) -> Callable[..., int]:
    """Make the command `verify`; the flags default to an experiment's settings."""

    def verify(
        experiment: tyro.conf.Positional[str],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
    ) -> int:
        """Verify the gradient of an experiment's model by independent methods.

        The methods are the BPTT of training, autodiff, RTRL and finite differences, in float64, on
        a few tokens of the training text and the initial parameters. A method is left out if the
        model does not have the method, or if the method is autodiff itself. The methods compute the
        gradient of a whole chunk, without dropout or other noise, at model.precision=float32. If
        the methods disagree, the exit status is 1.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: settings of the experiment.
        """
        jax.config.update("jax_enable_x64", True)
        with waiting("comparing the routes, each a program to be compiled"):
            proof = prove(config)
        show_proof(proof)
        return 0 if proof.holds else 1

    return verify


def score(
    run_dir: tyro.conf.Positional[Path],
    file: tyro.conf.Positional[Path],
    by: Literal["token", "sentence", "none"] | None = None,
    sentences: Flag = False,
    json: Flag = False,
    dynamic: Literal["sgd", "rms"] | None = None,
    dynamic_rate: float | None = None,
    dynamic_decay: float | None = None,
    dynamic_epsilon: float | None = None,
    dynamic_length: int | None = None,
    cache: int | None = None,
    cache_weight: float | None = None,
    cache_flatness: float | None = None,
    exposure: int | None = None,
    greedy: Flag = False,
    seed: int | None = None,
    mix: Path | None = None,
    mix_weight: float | None = None,
) -> int:
    """Log-probability of a text under a trained model: total, per token and per sentence.

    Args:
      run_dir: run directory of the model.
      file: the text, UTF-8, of any length; scores are printed while the text is read.
      by: print a row per token, a row per sentence (a line of the text), or only the totals; token
        if not given.
      sentences: score each line independently, from the initial state.
      json: print a JSON object, with the nats (-ln P) in total and by token or by sentence.
      dynamic: dynamic evaluation (Krause et al., 2018): continue training on each chunk of the text
        after scoring the chunk, by gradient descent (sgd), or with the gradient scaled by the mean
        squared gradient on the training text (rms).
      dynamic_rate: learning rate; 0.03 for sgd and 0.00003 for rms if not given.
      dynamic_decay: share of the way back to the trained parameters at each update; 0 for sgd and
        0.003 for rms if not given.
      dynamic_epsilon: rms: added to the root of the mean squared gradient; 2e-5 if not given.
      dynamic_length: tokens of a chunk; 20 if not given.
      cache: mix in a cache of this many hidden states (Grave et al., 2017).
      cache_weight: share of the cache in the mixture; 0.1 if not given.
      cache_flatness: factor of the products of hidden states; 0.1 if not given.
      exposure: exposure bias: mean nats by position in chunks of this many tokens, reading the
        text, and reading the model's own tokens instead.
      greedy: exposure: read the most likely token instead of a sampled token.
      seed: exposure: seed of the draws; 0 if not given.
      mix: mix in the probabilities of another run with the same vocabulary (Bengio et al., 2003,
        mix a network and an n-gram model).
      mix_weight: share of the first run in the mixture; 0.5 if not given.
    """
    only_with("--mix", mix, **{"mix-weight": mix_weight})
    learning = {"rate": dynamic_rate, "decay": dynamic_decay, "length": dynamic_length}
    only_with("--dynamic", dynamic, **{f"dynamic-{name}": learning[name] for name in learning})
    only_with("--dynamic=rms", dynamic == "rms" or None, **{"dynamic-epsilon": dynamic_epsilon})
    remembering = {"weight": cache_weight, "flatness": cache_flatness}
    only_with("--cache", cache, **{f"cache-{name}": remembering[name] for name in remembering})
    only_with("--exposure", exposure, greedy=greedy or None, seed=seed)
    by_line = sentences or None
    ways = {"sentences": by_line, "dynamic": dynamic, "cache": cache, "exposure": exposure}
    asked = [way for way, value in ways.items() if value is not None]
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} do not go together")
    if exposure is not None and by is not None:
        raise UserError("--by and --exposure do not go together: the figures are by position")
    run = mixed(reading_text(run_dir), mix, mix_weight)
    text = text_of(run, file)
    trained = (run.model, run.params, run.vocabulary)
    if exposure is not None:
        gap = inference.exposure(*trained, text, length=exposure, greedy=greedy, seed=seed or 0)
        show_exposure(gap, as_json=json)
        return 0
    if sentences:
        blocks = inference.line_blocks(*trained, text)
    else:
        if dynamic is not None:
            learning["epsilon"] = dynamic_epsilon
            scorer = inference.dynamic(run.model, *learning_rule(run, dynamic, learning))
        elif cache is not None:
            weight, flatness = filled(remembering, weight=0.1, flatness=0.1).values()
            scorer = inference.cache(run.model, size=cache, weight=weight, flatness=flatness)
        else:
            scorer = inference.parallel_scorer(
                run.model, inference.stretch_length(len(run.vocabulary))
            )
        blocks = inference.blocks(scorer, run.params, run.vocabulary, text)
    show_score(run.vocabulary, blocks, by=by or "token", as_json=json)
    return 0


def reading_text(run_dir: Path) -> lm_jax.Run:
    """Load a run; refuse a run on a task, without text."""
    run = lm_jax.load_run(run_dir)
    run.vocabulary.boundary  # noqa: B018 - raises for the vocabulary of a task
    return run


def text_of(run: lm_jax.Run, file: Path) -> Text:
    """Open a file as a text for a run's model; any bytes if the tokenizer is "byte"."""
    return file_text(str(file), str(file), any_bytes=run.vocabulary.tokenizer == "byte")


def mixed(run: lm_jax.Run, other: Path | None, weight: float | None) -> lm_jax.Run:
    """Replace a run's model by a mixture with another run's model, if `other` is given."""
    if other is None:
        return run
    weight = 0.5 if weight is None else weight
    if not 0 <= weight <= 1:
        raise UserError(f"--mix-weight={weight} must be from 0 to 1")
    beside = lm_jax.load_run(other)
    if beside.vocabulary != run.vocabulary:
        raise UserError(f"--mix={other} has another vocabulary than {run.run_dir}")
    model = lm_jax.models.Mixture(run.model, beside.model, weight)
    return run._replace(model=model, params=(run.params, beside.params))


def learning_rule(run: lm_jax.Run, kind: str, given: dict[str, Any]) -> tuple[inference.Rule, int]:
    """Update rule of dynamic evaluation according to the flags, and tokens per chunk."""
    rate, decay = {"sgd": (0.03, 0.0), "rms": (3e-5, 0.003)}[kind]
    asked = filled(given, rate=rate, decay=decay, length=20, epsilon=2e-5)
    length = asked["length"]
    numbers = {"learning_rate": asked["rate"], "decay": asked["decay"]}
    if kind == "sgd":
        return inference.sgd(run.params, **numbers), length
    if run.config.data.source == "memory":
        raise UserError(
            "--dynamic=rms reads the training text, which a run of data.source=memory has not kept"
        )
    corpus = load(run.config.data)
    directory.refuse_other_text(run.run_dir, corpus)
    train = corpus.train.tokens
    roots = inference.root_mean_square_gradient(
        run.model, run.params, train, run.vocabulary.boundary, length=length
    )
    return inference.rms(roots, **numbers, epsilon=asked["epsilon"]), length


def only_with(flag: str, value: Any, **given: Any) -> None:
    """Refuses the `given` flags if `flag` itself is not given."""
    for name, asked in given.items():
        if value is None and asked is not None:
            raise UserError(f"--{name} is read only with {flag}")


def at_least(least: int, **given: int | None) -> None:
    """Refuses flags whose numbers are too small."""
    for name, number in given.items():
        if number is not None and number < least:
            raise UserError(f"--{name}={number} must be {least} or more")


def filled(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Merge `defaults` with the given values that are not None."""
    asked = {name: value for name, value in given.items() if value is not None}
    return {**defaults, **asked}


def sample(
    run_dir: tyro.conf.Positional[Path],
    prompt: str = "",
    length: int = SAMPLE_LENGTH,
    count: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: str | None = None,
    beam: int | None = None,
    json: Flag = False,
    seed: int | None = None,
    mix: Path | None = None,
    mix_weight: float | None = None,
) -> int:
    """Sample text from a trained model, printed while drawn.

    Args:
      run_dir: run directory of the model.
      prompt: beginning of the text; without a prompt, the text begins like the training text.
      length: largest number of tokens to draw.
      count: number of samples to draw side by side; 1 if not given.
      temperature: divisor of the logits, applied before top-k, top-p and min-p (in this order);
        below 1, likely tokens become likelier; 0 always takes the most likely token; 1 if not
        given.
      top_k: draw from this many most likely tokens.
      top_p: draw from the smallest set of most likely tokens with at least this total probability.
      min_p: draw from the tokens with at least this share of the largest probability.
      stop: end the text at this token, without printing the token; for example . or \\n or <eos>.
      beam: search for the most likely text with a beam of this width, instead of drawing.
      json: print a JSON object for each sample, with the nats (-ln P) of each drawn token under
        the model, before temperature, top-k, top-p and min-p.
      seed: seed of the draws; the same seed gives the same text; 0 if not given.
      mix: mix in the probabilities of another run with the same vocabulary.
      mix_weight: share of the first run in the mixture; 0.5 if not given.
    """
    only_with("--mix", mix, **{"mix-weight": mix_weight})
    options = {
        "count": count,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
    }
    drawn = filled(options)
    if beam is not None and drawn:
        raise UserError(f"--beam and --{next(iter(drawn)).replace('_', '-')} do not go together")
    run = mixed(reading_text(run_dir), mix, mix_weight)
    trained = (run.model, run.params, run.vocabulary)
    common = {"prompt": prompt, "length": length, "stop": stop}
    if beam is not None:
        show_beam(inference.beam(*trained, **common, width=beam), run.vocabulary, as_json=json)
    elif json or count is not None:
        show_samples(inference.samples(*trained, **common, **drawn), run.vocabulary, as_json=json)
    else:
        show_stream(inference.stream(*trained, **common, **drawn))
    return 0


def probe(
    run_dir: tyro.conf.Positional[Path],
    step: str | None = None,
    text: Path | None = None,
    sentence: str | None = None,
    length: int | None = None,
    lanes: int | None = None,
    seed: int = 0,
) -> int:
    """Analyse how the gradient of a trained recurrent model travels through time.

    Writes numbers to probe.json and figures to probe.html in the run directory; with --step, to
    probe-STEP.json and probe-STEP.html.

    Args:
      run_dir: run directory of the model.
      step: analyse the run after this many updates; or spike: before the update with the largest
        rise of the loss. If not given, analyse the kept parameters.
      text: file to read instead of the run's validation text. A run on generated sequences instead
        reads whole validation sequences, never trained on; only --lanes then sets their number.
      sentence: sentence for the credit map; a line of the text if not given.
      length: T, tokens of the chunk; as in training, but at most 64, if not given.
      lanes: B, number of sequences, taken from different places of the text; 4 if not given.
      seed: seed of the random directions and of the model's own tokens.
    """
    run = lm_jax.load_run(run_dir)
    if text is not None and run.config.data.generated:
        raise UserError(f"--text={text}: {run_dir} was trained on sequences that are drawn")
    # Python reads no integer of thousands of digits.
    if step not in (None, "spike") and not (step.isdecimal() and len(step) < 19):
        raise UserError(f"--step={step} must be a number of updates, or spike")
    tokens = None
    if text is not None:
        pieces = encoded(run.vocabulary, text_of(run, text))
        tokens = np.concatenate([numbers for numbers, _, _ in pieces])
    with waiting("asking; the first time each question is compiled, which takes minutes in all"):
        found = lm_jax.probe(
            run,
            step=None if step is None else "spike" if step == "spike" else int(step),
            tokens=tokens,
            sentence=sentence,
            seed=seed,
            **filled({"length": length, "lanes": lanes}),
        )
    show_probe(found)
    print(write_study(run, found, "probe" if step is None else f"probe-{found.step}"))
    return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parse the command line; return the command with all arguments bound, ready to call."""
    default, asked, given = Config(), None, []
    reads = arguments[:1] in (["train"], ["sweep"], ["verify"]) and len(arguments) > 1
    helped = {"-h", "--help"} & {*arguments}
    if reads and arguments[1].startswith("-") and not helped:
        # The flags change the experiment's settings: the experiment must be known first.
        raise UserError(
            f"{arguments[1]} comes before the experiment: run.py {arguments[0]} EXPERIMENT [flags]"
        )
    if reads and not arguments[1].startswith("-"):
        asked = load_experiment(arguments[1])
        default = asked.config
        default, rest = with_kinds(default, arguments[2:])
        given, arguments = arguments[1:], [*arguments[:2], *rest]
    commands = {
        "train": train_command(default),
        "sweep": sweep_command(default, asked, given),
        "score": score,
        "sample": sample,
        "probe": probe,
        "verify": verify_command(default),
    }
    name = arguments[0] if arguments else None
    if name is not None and name not in commands and not name.startswith("-"):
        near = name_meant(COMMANDS, name)
        said = f"; did you mean {near!r}?" if near else nearest(name, commands)
        raise UserError(f"there is no command {name}{said}")
    if name in commands and not helped:  # before tyro, which takes a third of a second to refuse
        flags = Flags(name, own_flags(commands[name]), default if reads else None)
        if mistake := flags.mistake(arguments[1:]):
            raise UserError(mistake)
    said, config = io.StringIO(), (tyro.conf.AvoidSubcommands,)
    try:
        with contextlib.redirect_stderr(said):
            if name in commands:  # the flags of the others would take tyro as long again, each
                command = deferred(commands[name])
                return tyro.cli(command, prog=f"run.py {name}", args=arguments[1:], config=config)
            return tyro.extras.subcommand_cli_from_dict(
                {name: deferred(command) for name, command in commands.items()},
                prog="run.py",
                description=__doc__,
                args=arguments,
                config=config,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UserError(in_one_line(said.getvalue())) from None


def own_flags(command: Callable[..., int]) -> dict[str, Any]:
    """Types of a command's own flags, by name: the flags other than settings."""
    found = inspect.signature(command).parameters.values()
    return {
        one.name: one.annotation
        for one in found
        if one.name != "config" and one.default is not one.empty
    }


def deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Wrap a command: a call only binds the arguments, and returns a function of no arguments."""

    @functools.wraps(command)
    def bound(*args: Any, **values: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **values)

    return bound


def main(arguments: list[str]) -> int:
    """Runs a command; returns the exit status."""
    try:
        return parse(arguments)()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader closed the pipe; send later output to null, or Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # not the user's mistake, but a traceback would not help either
        print(f"error: {error}", file=sys.stderr)
        return 1


def set_up() -> None:
    """Applies settings of the whole process; for use as a program, not as a library."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stdout may be ASCII; samples may not
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    # A persistent compilation cache per machine: a compiled program suits only its processor.
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


if __name__ == "__main__":
    set_up()
    sys.exit(main(sys.argv[1:]))
