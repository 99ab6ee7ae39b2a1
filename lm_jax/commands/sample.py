"""The command `sample`."""

from pathlib import Path

from lm_jax import generation
from lm_jax.commands.shared import (
    SAMPLE_LENGTH,
    Flag,
    RunDir,
    Words,
    filled,
    mixed,
    only_with,
    reading_text,
)
from lm_jax.report.score_table import show_beam, show_samples, show_stream
from lm_jax.settings import UserError


def sample(
    run_dir: RunDir,
    prompt: str = "",
    length: int = SAMPLE_LENGTH,
    count: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Words = (),
    beam: int | None = None,
    raw: Flag = False,
    json: Flag = False,
    seed: int | None = None,
    mix: Path | None = None,
    mix_weight: str | None = None,
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
      top_k: draw from this many most likely tokens; from all, if the vocabulary has fewer.
      top_p: draw from the smallest set of most likely tokens with at least this total probability.
      min_p: draw from the tokens with at least this share of the largest probability.
      stop: end the text before the first of these strings of the drawn text, or tokens; for example
        . or \\n\\n or <eos>.
      beam: search for the most likely text with a beam of this width, instead of drawing.
      raw: let the model draw <unk>, too, and show bytes that are not UTF-8 as U+FFFD; left out if
        not given.
      json: print a JSON object for each sample, with the nats (-ln P) of each drawn token under
        the model, before temperature, top-k, top-p and min-p.
      seed: seed of the draws; the same seed gives the same text; 0 if not given.
      mix: mix in the probabilities of another run with the same vocabulary.
      mix_weight: share of the first run in the mixture, 0.5 if not given; fit: the share that gives
        the validation text of the first run the fewest nats.
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
    common = {"prompt": prompt, "length": length, "stop": sum(stop, ()), "raw": raw}
    if beam is not None:
        show_beam(generation.beam(*trained, **common, width=beam), run.vocabulary, as_json=json)
    elif json or count is not None:
        show_samples(generation.samples(*trained, **common, **drawn), run.vocabulary, as_json=json)
    else:
        show_stream(generation.stream(*trained, **common, **drawn))
    return 0
