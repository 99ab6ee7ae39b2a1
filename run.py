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
from lm_jax.report.map import write_sweep
from lm_jax.report.printed import (
    show_beam,
    show_exposure,
    show_samples,
    show_score,
    show_stream,
)
from lm_jax.report.study import write_study
from lm_jax.report.sweep import show_plan, show_sweep
from lm_jax.report.terminal import Display, show_probe, show_proof, show_result, waiting
from lm_jax.report.watching import SweepDisplay
from lm_jax.settings import UserError, digest, nearest
from lm_jax.sweeps import Halving, executor_called, plan
from lm_jax.sweeps.processes import cores_here
from lm_jax.synonyms import COMMANDS, name_meant
from lm_jax.training import directory, prove

SAMPLE_LENGTH = 300  # tokens shown at the end of training

Flag = tyro.conf.FlagCreatePairsOff[bool]


def train_command(default: Config) -> Callable[..., int]:
    """The command `train`, its flags standing at an experiment's settings."""

    def train(
        experiment: tyro.conf.Positional[str],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
        devices: int | None = None,
    ) -> int:
        """Train a model, or go on where it stopped.

        Args:
          experiment: a path to a Python file, or the name of one in experiments/.
          config: what to train.
          run_dir: where the run lives; runs/EXPERIMENT-DIGEST if not given, so that the same
            command goes on with the same run.
          devices: how many share the lanes of each batch; every one there is if not given. On a CPU
            it is one, or as many as are asked for here.
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
        if not config.data.drawn:
            text = inference.sample(run.model, run.params, run.vocabulary, length=SAMPLE_LENGTH)
            print(f"\na sample:\n\n{text.strip()}\n")
        print(run_dir)
        return 0

    return train


@contextlib.contextmanager
def told_if_stopped(run_dir: Path) -> Iterator[None]:
    """Says on the standard error what becomes of a run or a sweep that a signal has stopped."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped: the same command goes on with {run_dir}", file=sys.stderr)
        raise


def divide_cpu(devices: int) -> None:
    """Makes the CPU so many devices, unless this process has begun to compute on it."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)


def display_of(name: str, config: Config) -> Display:
    """What shows a run while it trains."""
    train = config.train
    unit = "squared error" if config.data.real else "nats a token"
    return Display(name, train.steps, train.epochs, unit) if train else Display(name, 0)


def sweep_command(
    default: Config, asked: Experiment | None, given: list[str]
) -> Callable[..., int]:
    """The command `sweep`, its flags standing at an experiment's settings.

    Args:
      default: the experiment's config.
      asked: the experiment; None where none is named.
      given: the words of the command line, to be said again for each point.
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
        """Train a model at every point of an experiment's sweep(), or go on where it stopped.

        Trials that differ in numbers alone are trained side by side, as lanes of one program.

        Args:
          experiment: a path to a Python file, or the name of one in experiments/.
          config: what the points change.
          run_dir: where the sweep lives; runs/EXPERIMENT-sweep-DIGEST if not given.
          dry_run: print the trials with their command lines, which of them share a program, and
            what memory they take; and do nothing.
          executor: where trials are trained: here, in this process, on all its cores or devices;
            processes, several of this machine; ray, a cluster's nodes; slurm, a cluster's jobs.
          workers: processes: how many at once; one a GPU, or two without GPUs, if not given.
          cores: ray, slurm: how many a job has; 1 if not given.
          lanes: most trials side by side; as many as fit into half of the memory if not given.
          retries: how often a trial that fails is tried again, alone and in a fresh process.
          halving_first: successive halving: the update at which trials are first judged, and all
            but the best are ended (Li et al., 2020); no halving if not given.
          halving_factor: one in so many goes on, and the next judgement comes after so many times
            the updates; 3 if not given.
          suggest: optuna: instead of the points that sweep() has drawn, as many that Optuna
            suggests, with what came of the earlier ones in view.
          batch: suggest: points asked for, and trained, together; 8 if not given.
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
            # Lanes are shared by the devices, and a CPU is one for each core.
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
    """The command `verify`, its flags standing at an experiment's settings."""

    def verify(
        experiment: tyro.conf.Positional[str],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
    ) -> int:
        """Prove on an experiment's own settings that the gradient is right, by independent routes.

        BPTT as training takes it, autodiff, RTRL and finite differences, in float64, on a few
        tokens of the training text and the initial parameters; a route that the model does not
        have, or that is autodiff itself, is left out. It is the gradient of a whole chunk, of the
        model without its noise of training and at model.precision=float32. The exit status is 1
        where the routes do not agree.

        Args:
          experiment: a path to a Python file, or the name of one in experiments/.
          config: what would be trained.
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
    """The log-probability of a text under a trained model, in all, by token and by sentence.

    Args:
      run_dir: the run of the model.
      file: the text, UTF-8, of any length: it is printed as it is read.
      by: a row a token, a row a sentence (a line of the text), or the sums alone; token if not
        given.
      sentences: score each line by itself, as if nothing had come before it.
      json: print one JSON object, with nats (-ln P) in all and by token or by sentence.
      dynamic: go on learning from each chunk of the text once it is scored (Krause et al., 2018),
        by plain gradient descent, or scaled by the mean squared gradient on the training text.
      dynamic_rate: learning rate; 0.03 for sgd and 0.00003 for rms if not given.
      dynamic_decay: share of the way back to the trained parameters at each update; 0 for sgd and
        0.003 for rms if not given.
      dynamic_epsilon: rms: added to the root of the mean squared gradient; 2e-5 if not given.
      dynamic_length: tokens of a chunk; 20 if not given.
      cache: mix in a cache of this many hidden states (Grave et al., 2017).
      cache_weight: share of the cache in the mixture; 0.1 if not given.
      cache_flatness: factor of the products of hidden states; 0.1 if not given.
      exposure: nats by position in chunks of this many tokens, where the model reads the text, and
        where it reads its own tokens instead.
      greedy: exposure: it reads its likeliest token, not one that it draws.
      seed: exposure: of the draws; 0 if not given.
      mix: another run of the same vocabulary, whose probabilities are mixed in (Bengio et al.,
        2003, mix a network's with an n-gram's).
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
            scorer = inference.static(run.model, inference.stretch_length(len(run.vocabulary)))
        blocks = inference.blocks(scorer, run.params, run.vocabulary, text)
    show_score(run.vocabulary, blocks, by=by or "token", as_json=json)
    return 0


def reading_text(run_dir: Path) -> lm_jax.Run:
    """A run whose model reads text."""
    run = lm_jax.load_run(run_dir)
    run.vocabulary.boundary  # noqa: B018 - a task's vocabulary refuses
    return run


def text_of(run: lm_jax.Run, file: Path) -> Text:
    """A file as a text for a run's model to read."""
    return file_text(str(file), str(file), any_bytes=run.vocabulary.tokenizer == "byte")


def mixed(run: lm_jax.Run, other: Path | None, weight: float | None) -> lm_jax.Run:
    """A run whose model is a mixture with another run's, where that is asked for."""
    if other is None:
        return run
    weight = 0.5 if weight is None else weight
    if not 0 <= weight <= 1:
        raise UserError(f"--mix-weight={weight} must be from 0 to 1")
    beside = lm_jax.load_run(other)
    if beside.vocabulary != run.vocabulary:
        raise UserError(f"--mix={other} has another vocabulary than {run.run_dir}")
    model = lm_jax.models.mixture(run.model, beside.model, weight)
    return run._replace(model=model, params=(run.params, beside.params))


def learning_rule(run: lm_jax.Run, kind: str, given: dict[str, Any]) -> tuple[inference.Rule, int]:
    """The rule of dynamic evaluation that flags ask for, and the tokens of a chunk."""
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
    """Refuses flags that are given although the flag that they belong to is not."""
    for name, asked in given.items():
        if value is None and asked is not None:
            raise UserError(f"--{name} is read only with {flag}")


def at_least(least: int, **given: int | None) -> None:
    """Refuses flags whose numbers are too small."""
    for name, number in given.items():
        if number is not None and number < least:
            raise UserError(f"--{name}={number} must be {least} or more")


def filled(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The defaults, but for what is given."""
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
    """Text from a trained model, shown as it is drawn.

    Args:
      run_dir: the run of the model.
      prompt: what the text begins with; without one it begins as the training text does.
      length: tokens to draw, at most.
      count: samples to draw side by side; 1 if not given.
      temperature: below 1 the likely becomes likelier; 0 always takes the most likely token; 1 if
        not given. It comes before the cuts, which come in this order:
      top_k: draw from this many likeliest tokens.
      top_p: draw from the fewest likeliest tokens whose probabilities reach this sum.
      min_p: draw from the tokens with at least this share of the likeliest one's probability.
      stop: a token that ends the text and is not shown, such as . or \\n or <eos>.
      beam: search for the likeliest text with a beam of this width, instead of drawing.
      json: print a JSON object for each sample, with the nats (-ln P) of each drawn token under
        the model, before temperature and cuts.
      seed: of the draws; the same seed gives the same text; 0 if not given.
      mix: another run of the same vocabulary, whose probabilities are mixed in.
      mix_weight: share of the first run in the mixture; 0.5 if not given.
    """
    only_with("--mix", mix, **{"mix-weight": mix_weight})
    wishes = {
        "count": count,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
    }
    drawn = filled(wishes)
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
    """Study how the gradient of a trained recurrent model travels through time.

    Numbers go to probe.json and figures to probe.html in the run's directory; with --step they are
    called probe-STEP.

    Args:
      run_dir: the run of the model.
      step: look at the run as it was after this many updates; or spike: before the update that
        made the loss rise most. If not given, at the parameters that it has kept.
      text: a file to read instead of the run's validation text. Of a run on sequences that are
        drawn, some that it has never read are looked at, and only --lanes says how many.
      sentence: whose words the credit map shows; a line of the text if not given.
      length: T, tokens of the chunk that is looked at; as in training, 64 at most, if not given.
      lanes: B, places of the text that are looked at; 4 if not given.
      seed: of random directions and of the model's own tokens.
    """
    run = lm_jax.load_run(run_dir)
    if text is not None and run.config.data.drawn:
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
    """The command that the arguments ask for, ready to be called."""
    default, asked, given = Config(), None, []
    reads = arguments[:1] in (["train"], ["sweep"], ["verify"]) and len(arguments) > 1
    helped = {"-h", "--help"} & {*arguments}
    if reads and arguments[1].startswith("-") and not helped:
        # Its settings are what the flags change, so it must be known before any of them is read.
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
    if arguments and arguments[0] not in commands and not arguments[0].startswith("-"):
        near = name_meant(COMMANDS, arguments[0])
        said = f"; did you mean {near!r}?" if near else nearest(arguments[0], commands)
        raise UserError(f"there is no command {arguments[0]}{said}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: deferred(command) for name, command in commands.items()},
                prog="run.py",
                description=__doc__,
                args=arguments,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        mistake = None
        if arguments and (command := commands.get(arguments[0])):
            flags = Flags(arguments[0], own_flags(command), default if reads else None)
            mistake = flags.mistake(arguments[1:])
        raise UserError(mistake or in_one_line(said.getvalue())) from None


def own_flags(command: Callable[..., int]) -> dict[str, Any]:
    """The types of the flags that a command has beside those of its settings, by their names."""
    found = inspect.signature(command).parameters.values()
    return {
        one.name: one.annotation
        for one in found
        if one.name != "config" and one.default is not one.empty
    }


def deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The same command, which when called only binds its arguments."""

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
        # The reader of the output has had enough; Python must not complain of it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # no mistake of the user's, but nothing that a traceback would explain
        print(f"error: {error}", file=sys.stderr)
        return 1


def set_up() -> None:
    """Settings of the whole process, which only a program of its own may make."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # which may be ASCII, and a sample is not
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    # Compiled programs are kept between runs, apart for each machine: they suit its processor.
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


if __name__ == "__main__":
    set_up()
    sys.exit(main(sys.argv[1:]))
