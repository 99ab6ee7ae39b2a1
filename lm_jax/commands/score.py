"""The command `score`."""

from pathlib import Path
from typing import Any, Literal

import lm_jax
from lm_jax import generation, scoring
from lm_jax.commands.shared import (
    Flag,
    RunDir,
    TextFile,
    filled,
    mixed,
    only_with,
    reading_text,
    text_of,
)
from lm_jax.config import Memory, NGram
from lm_jax.data.corpus import load
from lm_jax.report.score_table import show_exposure, show_score
from lm_jax.settings import UserError
from lm_jax.training import directory


def score(
    run_dir: RunDir,
    file: TextFile,
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
        gap = generation.exposure(*trained, text, length=exposure, greedy=greedy, seed=seed or 0)
        show_exposure(gap, as_json=json)
        return 0
    if sentences:
        blocks = scoring.line_blocks(*trained, text)
    else:
        if dynamic is not None:
            learning["epsilon"] = dynamic_epsilon
            scorer = scoring.dynamic(run.model, *learning_rule(run, dynamic, learning))
        elif cache is not None:
            weight, flatness = filled(remembering, weight=0.1, flatness=0.1).values()
            scorer = scoring.cache(run.model, size=cache, weight=weight, flatness=flatness)
        else:
            scorer = scoring.parallel_scorer(run.model, scoring.stretch_length(len(run.vocabulary)))
        blocks = scoring.blocks(scorer, run.params, run.vocabulary, text)
    show_score(run.vocabulary, blocks, by=by or "token", as_json=json)
    return 0


def learning_rule(run: lm_jax.Run, kind: str, given: dict[str, Any]) -> tuple[scoring.Rule, int]:
    """Update rule of dynamic evaluation according to the flags, and tokens per chunk."""
    if isinstance(run.config.model, NGram):
        raise UserError("--dynamic needs a model that learns by gradient descent")
    rate, decay = {"sgd": (0.03, 0.0), "rms": (3e-5, 0.003)}[kind]
    asked = filled(given, rate=rate, decay=decay, length=20, epsilon=2e-5)
    length = asked["length"]
    numbers = {"learning_rate": asked["rate"], "decay": asked["decay"]}
    if kind == "sgd":
        return scoring.sgd(run.params, **numbers), length
    if isinstance(run.config.data.source, Memory):
        raise UserError(
            "--dynamic=rms reads the training text, which a run of data.source=memory has not kept"
        )
    corpus = load(run.config.data)
    directory.known(run.path, run.config, corpus.digest)
    train = corpus.train.tokens
    roots = scoring.root_mean_square_gradient(
        run.model, run.params, train, run.vocabulary.boundary, length=length
    )
    return scoring.rms(roots, **numbers, epsilon=asked["epsilon"]), length
