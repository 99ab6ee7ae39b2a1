"""Train, score and sample language models from experiment files: `python run.py --help`."""

import contextlib
import functools
import io
import os
import platform
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

import lm_jax
from lm_jax import inference
from lm_jax.config import Config, NGram, Train, resolve
from lm_jax.data.corpus import cache_folder
from lm_jax.data.text import file_text
from lm_jax.report.terminal import Display, show_result
from lm_jax.settings import UserError, alternatives, bind, digest, nearest
from lm_jax.training import journal

EXPERIMENTS = Path(__file__).parent / "experiments"
SAMPLE_LENGTH = 300  # tokens shown at the end of training


def load_experiment(name: str) -> Config:
    """The config of an experiment: a path to a Python file, or the name of one in experiments/."""
    path = Path(name)
    if path.suffix != ".py":
        path = EXPERIMENTS / f"{name}.py"
    if not path.is_file():
        known = sorted(file.stem for file in EXPERIMENTS.glob("*.py"))
        raise UserError(
            f"there is no experiment {name!r}{nearest(name, known)} "
            f"(experiments/ holds {', '.join(known)}; or give a path to a .py file)"
        )
    try:
        names = runpy.run_path(str(path))
        if "config" not in names:
            raise UserError(f"{path}: it has no function config()")
        config = names["config"]()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"{path}: config() gives a {type(config).__name__}, not a Config")
    return config


def with_kinds(config: Config, arguments: list[str]) -> Config:
    """The config with the alternatives that flags such as `--model.kind window` ask for.

    What flags there are beside them depends on it, so it must be known before any is parsed.
    """
    chosen = {}
    for place, argument in enumerate(arguments):
        flag, equals, kind = argument.partition("=")
        path = flag.removeprefix("--").removesuffix(".kind")
        known = alternatives(Config, path) if flag.endswith(".kind") else {}
        if not known:
            continue
        kind = kind if equals else (arguments[place + 1 :] or [""])[0]
        if kind not in known:
            raise UserError(f"{flag}={kind}: choose from {', '.join(known)}{nearest(kind, known)}")
        chosen[path] = known[kind]()
        if path == "model":
            # A counted model is not trained, and any other is.
            counted = isinstance(chosen[path], NGram)
            chosen["train"] = None if counted else config.train or Train()
    return bind(config, chosen)


def train_command(default: Config) -> Callable[..., int]:
    """The command `train`, its flags standing at an experiment's settings."""

    def train(
        experiment: tyro.conf.Positional[str],
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
    ) -> int:
        """Train a model, or go on where it stopped.

        Args:
          experiment: a path to a Python file, or the name of one in experiments/.
          config: what to train.
          run_dir: where the run lives; runs/EXPERIMENT-DIGEST if not given, so that the same
            command goes on with the same run.
        """
        name = Path(experiment).stem
        config = resolve(config)
        run_dir = run_dir or Path("runs") / f"{name}-{digest(config)}"
        with Display(name, config.train.steps if config.train else 0) as display:
            run = lm_jax.train(config, run_dir, watch=display.watch)
        show_result(run)
        if run.result and run.result["status"] == "diverged":
            print(f"the loss was not finite at step {run.result['step']:,}: {run_dir}")
            return 1
        text = inference.sample(run.model, run.params, run.vocabulary, length=SAMPLE_LENGTH)
        print(f"\na sample:\n\n{text.strip()}\n\n{run_dir}")
        return 0

    return train


def score(
    run_dir: tyro.conf.Positional[Path],
    file: tyro.conf.Positional[Path],
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> int:
    """The log-probability of a text under a trained model, in all and by token.

    Args:
      run_dir: the run of the model.
      file: the text, UTF-8.
      json: print one JSON object, with nats (-ln P) in all and for each token.
    """
    run = lm_jax.load_run(run_dir)
    found = inference.score(run.model, run.params, run.vocabulary, file_text(str(file), str(file)))
    print(as_json(run, found) if json else as_table(run, found))
    return 0


def as_json(run: lm_jax.Run, found: inference.Score) -> str:
    by_token = [
        [run.vocabulary.tokens[token], float(nats)]
        for token, nats in zip(found.tokens, found.nats, strict=True)
    ]
    summary = {"log_p": -found.loss.nats, **found.loss.row(), "unknown": found.unknown}
    return journal.as_json({**summary, "by_token": by_token})


def as_table(run: lm_jax.Run, found: inference.Score) -> str:
    lines = [
        f"{-nats:10.4f}  {run.vocabulary.show(int(token))}"
        for token, nats in zip(found.tokens, found.nats, strict=True)
    ]
    loss = found.loss
    return "\n".join(
        ["      ln P  token", *lines, ""]
        + [f"ln P of the text  {-loss.nats:.4f}"]
        + [f"tokens            {loss.tokens:,}, of them unknown {found.unknown:,}"]
        + [f"nats a token      {loss.nats_per_token:.4f}"]
        + [f"perplexity        {loss.perplexity:.4f}"]
        + [f"bits a character  {loss.bits_per_character:.4f}"]
    )


def sample(
    run_dir: tyro.conf.Positional[Path],
    prompt: str = "",
    length: int = SAMPLE_LENGTH,
    temperature: float = 1.0,
    seed: int = 0,
) -> int:
    """Text from a trained model.

    Args:
      run_dir: the run of the model.
      prompt: what the text begins with; without one it begins as the training text does.
      length: tokens to draw.
      temperature: below 1 the likely becomes likelier; 0 always takes the most likely token.
      seed: of the draws; the same seed gives the same text.
    """
    run = lm_jax.load_run(run_dir)
    text = inference.sample(
        run.model,
        run.params,
        run.vocabulary,
        prompt=prompt,
        length=length,
        temperature=temperature,
        seed=seed,
    )
    print(text)
    return 0


def parse(arguments: list[str]) -> Callable[[], int]:
    """The command that the arguments ask for, ready to be called."""
    default = Config()
    if arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        default = with_kinds(load_experiment(arguments[1]), arguments[2:])
    commands = {"train": train_command(default), "score": score, "sample": sample}
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
        if stop.code:
            raise UserError(in_one_line(said.getvalue())) from None
        raise


def deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The same command, which when called only binds its arguments."""

    @functools.wraps(command)
    def bound(*args: Any, **values: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **values)

    return bound


def in_one_line(box: str) -> str:
    """What a framed message of the flag parser says, up to its first suggestion, in one line."""
    rule = re.compile(r"\W*[─-]{5,}\W*")  # the frame is drawn with ASCII where it must be
    lines = ["" if rule.fullmatch(line) else line.strip("│| ") for line in box.splitlines()[1:]]
    parts = [" ".join(part.split()) for part in "\n".join(lines).split("\n\n")]
    message = parts[0]
    suggestion = re.search(r"Perhaps you meant: (--\S+)", " ".join(parts[1:]))
    if suggestion:
        message += f"; did you mean {suggestion[1]}?"
    # A refused setting: `Error parsing (…).config.model: hidden_size=-3: …`.
    refused = re.match(r"Error parsing \S*?config\.?(\S*): (.*)", message)
    if refused:
        where, message = refused.groups()
        field = re.match(r"(\w+)=", message)
        if field:
            flag = "--" + f"{where}.{field[1]}".strip(".").replace("_", "-")
            message = flag + message[field.end() - 1 :]
    return message


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
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    # Compiled programs are kept between runs, apart for each machine: they suit its processor.
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


if __name__ == "__main__":
    set_up()
    sys.exit(main(sys.argv[1:]))
