"""Output of the commands `score` and `sample`: tables for people, strict JSON for programs.

Results are printed during the computation, and a text may be larger than memory. A JSON object is
written in parts: first the long list, then the sums, known only at the end.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from lm_jax.data.vocabulary import UNKNOWN, Vocabulary
from lm_jax.files import as_json as object_as_json
from lm_jax.generation import BeamResult, Exposure, Sample
from lm_jax.report.terminal import NONE, UNPAID
from lm_jax.report.wording import FIGURES, SPACED
from lm_jax.scoring import Block, Line, Tally, lines

FAR = 1e9  # figures from here on have three digits
READ: Mapping[str | float, str] = {
    "sentences": "sentences, each from a fresh state",
    "stream": "one stream, the state carried from line to line",
}


def show_score(
    vocabulary: Vocabulary,
    blocks: Iterable[Block],
    *,
    by: str,
    as_json: bool,
    told: Mapping[str, str | float] | None = None,
) -> None:
    """Print the scored blocks of a text during scoring, and then the totals.

    Args:
      vocabulary: the vocabulary of the tokens.
      blocks: scored blocks, from `lm_jax.scoring.blocks` or `line_blocks`.
      by: "token", "sentence" or "none": print a row per token, a row per sentence, or no rows.
      as_json: if True, print a JSON object instead of a table.
      told: how the text was read, printed with the totals.
    """
    told = told or {}
    tally = Tally()
    passing = tally.over(blocks)
    if by == "sentence":
        found = lines(vocabulary, passing)
        rows = (_line(vocabulary, line, as_json) for line in found)
    else:
        shown = by == "token"
        rows = (
            row
            for block in passing
            for row in (_tokens(vocabulary, block, as_json) if shown else ())
        )
    if as_json:
        _print_object(f"by_{by}", rows, tally, told)
        return
    headings = {"token": "      ln P  token", "sentence": "      ln P   tokens  line"}
    for number, row in enumerate(rows):
        if number == 0:  # only once a row exists: an error must come without a heading
            print(headings[by])
        print(row)
    if by != "none":
        print()
    for name, value in told.items():
        print(f"{name:19}{READ.get(value, value)}")
    loss, row = tally.loss, tally.loss.row()
    print(f"ln P of the text   {-loss.nats:.4f}")
    print(f"tokens             {loss.tokens:,}, of them unknown {loss.size.unknown:,}")
    for name, (heading, _) in FIGURES.items():
        if (value := row[name]) is not None:
            note = f"   {SPACED}" if name == "bits_per_character" and loss.size.spaced else ""
            print(f"{heading:19}{format(value, '.4f' if value < FAR else '.3g')}{note}")
    if row["bits_per_character"] is None:
        print(f"bits a character   {NONE}   {UNPAID}")


def _print_object(
    name: str, rows: Iterator[str], tally: Tally, told: Mapping[str, str | float]
) -> None:
    """Print the rows, if any, and then the totals, as a single JSON object."""
    opened = False
    for row in rows:
        print(",\n" if opened else f'{{"{name}": [', row, sep="", end="")
        opened = True
    named = {name.replace(" ", "_"): value for name, value in told.items()}
    sums = {**named, "log_p": -tally.loss.nats, **tally.loss.row()}
    print("], " if opened else "{", object_as_json(sums)[1:], sep="")


def _tokens(vocabulary: Vocabulary, block: Block, as_json: bool) -> Iterator[str]:
    unknown = iter(block.written)
    for token, nats in zip(block.tokens.tolist(), block.nats.tolist(), strict=True):
        written = next(unknown) if token == vocabulary.unknown else None
        if as_json:
            # A token that the vocabulary lacks has a third entry, the token as written.
            own = [] if written in (None, UNKNOWN) else [written]
            finite = nats if math.isfinite(nats) else None
            yield json.dumps([vocabulary.tokens[token], finite, *own])
        elif written in (None, UNKNOWN):
            yield f"{-nats:10.4f}  {vocabulary.show(token)}"
        else:
            yield f"{-nats:10.4f}  {repr(written)[1:-1]}   unknown, scored as {UNKNOWN}"


def _line(vocabulary: Vocabulary, line: Line, as_json: bool) -> str:
    if as_json:
        return object_as_json({"line": line.number, "tokens": line.tokens, "nats": line.nats})
    more = "…" if line.tokens > len(line.beginning) else ""
    return f"{-line.nats:10.4f}  {line.tokens:7,}  {_beginning(vocabulary, line)}{more}"


def _beginning(vocabulary: Vocabulary, line: Line) -> str:
    """The text of a line's first tokens, unknown ones as written, without the line's end."""
    if vocabulary.unknown is None:
        return vocabulary.decode(line.beginning).rstrip("\n")
    unknown = iter(line.written)
    pieces = [
        next(unknown) if token == vocabulary.unknown else vocabulary.tokens[token]
        for token in line.beginning.tolist()
        if token != vocabulary.boundary
    ]
    return (" " if vocabulary.tokenizer == "word" else "").join(pieces)


def show_exposure(found: Exposure, *, as_json: bool) -> None:
    """Print the nats by position, under teacher forcing and in free running."""
    forced, free = found.mean(found.forced), found.mean(found.free)
    if as_json:
        by_position = {name: np.asarray(value).tolist() for name, value in found._asdict().items()}
        sums = {"nats_forced": forced, "nats_free": free, "gap": found.gap}
        print(object_as_json({**sums, "by_position": by_position}))
        return
    print("position  reads the text  reads its own       gap  tokens")
    last = len(found.tokens) - 1
    doubling = (1 << power for power in range(last.bit_length()))
    for place in sorted({0, *(p for p in doubling if p < last), last}):
        _print_gap(
            str(place),
            float(found.forced[place]),
            float(found.free[place]),
            int(found.tokens[place]),
        )
    _print_gap("all", forced, free, int(found.tokens.sum()))
    print("nats a token")


def _print_gap(place: str, forced: float, free: float, tokens: int) -> None:
    print(f"{place:>8}{forced:16.4f}{free:15.4f}{free - forced:10.4f}  {tokens:,}")


def show_samples(samples: list[Sample], vocabulary: Vocabulary, *, as_json: bool) -> None:
    """Print samples, each after a line with the number and ln P of the sample."""
    for number, sample in enumerate(samples, 1):
        log_p = -float(np.sum(sample.nats, dtype=np.float64))
        if as_json:
            by_token = [
                [vocabulary.tokens[token], nats]
                for token, nats in zip(sample.tokens.tolist(), sample.nats.tolist(), strict=True)
            ]
            row = {"text": sample.text, "log_p": log_p, "stop": sample.stop}
            row["stopped"] = sample.stopped
            print(object_as_json({**row, "by_token": by_token}))
        else:
            print(f"=== {number} of {len(samples)}, ln P {log_p:.4f}\n{sample.text}")


def show_stream(pieces: Iterable[str]) -> None:
    """Print a text piece by piece during sampling."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def show_beam(found: BeamResult, vocabulary: Vocabulary, *, as_json: bool) -> None:
    """Print the text found by a beam search, and ln P of the continuation."""
    if as_json:
        tokens = [vocabulary.tokens[token] for token in found.tokens.tolist()]
        print(object_as_json({"text": found.text, "log_p": found.log_p, "tokens": tokens}))
    else:
        print(f"{found.text}\n=== ln P {found.log_p:.4f}")
