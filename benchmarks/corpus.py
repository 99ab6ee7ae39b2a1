"""Tokenising a large text: megabytes of text a second, and memory.

    python -m benchmarks.corpus --gigabytes 10 --tokenizers char byte

writes a text of the given size into a temporary folder, as lines of CPython's documentation in
random order, in several files. For each tokeniser a fresh process then loads the corpus into an
empty cache: all files are hashed, counted for the vocabulary, cut 90 / 5 / 5, encoded, and the
tokens hashed and written. A row is printed for each:

- MB/s: megabytes of text a second, by the wall clock, without Python's start and the imports;
- cores: CPU time of all processes over the time by the wall clock;
- peak MB: the highest sum of the proportional set sizes of all processes (Linux), in which a page
  that n processes share counts as 1/n in each, sampled ten times a second;
- hashing: the share of the CPU time that SHA-256 of the text and of the tokens takes alone.

The disk needs room for the text and, at one time, the tokens of one tokeniser (for bytes: as much
again). Everything is deleted at the end.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.side_by_side import ROOT
from lm_jax.data import sources

MB, PIECE = 10**6, 1 << 22
TOKENIZERS = ("byte", "char", "word", "bpe")
_LOAD = """
import json, os, sys, time
import lm_jax.config as c
from lm_jax.data import load
tokenizer = {"byte": c.Byte, "char": c.Char, "word": c.Word, "bpe": c.BPE}[sys.argv[2]]()
began, spent = time.perf_counter(), sum(os.times()[:4])
corpus = load(c.Data(source=c.File(train=sys.argv[1]), tokenizer=tokenizer))
wall, spent = time.perf_counter() - began, sum(os.times()[:4]) - spent
size = sum(split.tokens.nbytes for split in (corpus.train, corpus.validation, corpus.test))
print(json.dumps({"seconds": wall, "cpu": spent, "bytes": size, "types": len(corpus.vocabulary)}))
"""


def write_text(folder: Path, size: int, shards: int) -> None:
    """Write a text of about `size` bytes in some files, the same at every call."""
    draw = random.Random(0)
    lines = [line.encode() for line in sources.documentation().splitlines(keepends=True)]
    for number in range(shards):
        with (folder / f"text-{number:05d}-of-{shards:05d}.txt").open("wb") as file:
            while file.tell() < size // shards:
                piece = b"".join(draw.choices(lines, k=PIECE * len(lines) // sum(map(len, lines))))
                file.write(piece[: size // shards - file.tell()].rpartition(b"\n")[0] + b"\n")


def tree(pid: int) -> list[int]:
    """A process and all processes below it."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(inner for child in below for inner in tree(int(child)))]


def memory(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def loaded(pattern: str, tokenizer: str, cache: Path) -> tuple[dict[str, float], int]:
    """Load a corpus in a fresh process; return its report, and the peak of memory in bytes."""
    environment = {**os.environ, "LM_JAX_CACHE": str(cache)}
    command = [sys.executable, "-c", _LOAD, pattern, tokenizer]
    peak = 0
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(memory, tree(process.pid))))
            time.sleep(0.1)
        assert process.stdout is not None
        if process.returncode:
            sys.exit(f"{tokenizer}: the process ended with status {process.returncode}")
        return json.loads(process.stdout.read()), peak


def hash_seconds(size: int) -> float:
    """CPU seconds of SHA-256 of some bytes."""
    content = random.Random(0).randbytes(1 << 26)
    began = time.process_time()
    hashlib.sha256(content).digest()
    return (time.process_time() - began) * size / len(content)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the text")
    parser.add_argument("--shards", type=int, default=16, help="number of files")
    parser.add_argument("--tokenizers", nargs="+", choices=TOKENIZERS, default=TOKENIZERS)
    parser.add_argument("--folder", type=Path, help="place of the temporary folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        write_text(Path(folder), int(chosen.gigabytes * 1000 * MB), chosen.shards)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{size / MB:,.0f} MB of text in {chosen.shards} files", flush=True)
        print(f"{'':6}{'MB/s':>8}{'seconds':>9}{'cores':>7}{'peak MB':>9}{'hashing':>9}{'V':>9}")
        for tokenizer in chosen.tokenizers:
            with tempfile.TemporaryDirectory(dir=chosen.folder) as cache:
                found, peak = loaded(f"{folder}/text-*.txt", tokenizer, Path(cache))
            share = hash_seconds(int(size + found["bytes"])) / found["cpu"]
            print(
                f"{tokenizer:6}{size / MB / found['seconds']:8.1f}{found['seconds']:9.1f}"
                f"{found['cpu'] / found['seconds']:7.2f}{peak / MB:9.0f}{share:9.1%}"
                f"{found['types']:9,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
