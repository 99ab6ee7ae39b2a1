"""Worker processes: results in order, errors passed on, no process left; few items start none."""

import functools
import operator
import os
import signal
import subprocess

import numpy as np
import pytest

from lm_jax.data import text as texts
from lm_jax.data import workers
from lm_jax.data.encoding import build, encoded, words_in
from lm_jax.data.sizes import TextSize
from lm_jax.data.text import in_memory
from lm_jax.data.workers import map_in_order
from lm_jax.settings import UserError


@pytest.fixture
def started(monkeypatch):
    """The processes that are started, after the first six bytes."""
    popen, found = subprocess.Popen, []

    def start(*arguments, **more):
        found.append(popen(*arguments, **more))
        return found[-1]

    monkeypatch.setattr(workers, "ALONE", 6)
    monkeypatch.setattr(workers.subprocess, "Popen", start)
    return found


UPPER = (operator.methodcaller, "upper")
ITEMS = [b"a%d" % number for number in range(10, 50)]


def test_results_come_in_order_and_an_error_ends_all_processes(started):
    """More items than wait at a time, and the first of them in this process."""
    items = [b"\0" + item for item in ITEMS]
    results = map_in_order(words_in, "", [*items, b"\0\xff"], workers=2)
    expected = [b'{"%s": 1}' % item for item in ITEMS]
    assert [next(results) for _ in range(2)] == expected[:2]
    assert not started
    assert [next(results) for _ in range(38)] == expected[2:]
    assert len(started) == 2
    with pytest.raises(RuntimeError, match="invalid start byte"):
        next(results)
    assert [worker.returncode for worker in started] == [-signal.SIGKILL] * 2


def test_few_items_and_a_single_core_start_no_process(monkeypatch):
    monkeypatch.setattr(workers.subprocess, "Popen", None)
    assert list(map_in_order(*UPPER, [b"a"] * 9, workers=4)) == [b"A"] * 9
    monkeypatch.setattr(workers, "ALONE", 3)
    assert list(map_in_order(*UPPER, [b"a"] * 3, workers=4)) == [b"A"] * 3
    assert list(map_in_order(*UPPER, [b"a"] * 9, workers=1)) == [b"A"] * 9


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_one_that_is_left_is_ended(started):
    results = map_in_order(*UPPER, ITEMS, workers=2)
    assert [next(results) for _ in range(3)] == [b"A10", b"A11", b"A12"]
    for worker in started:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"has died, with status -9; is there memory left\?"):
        list(results)

    results = map_in_order(*UPPER, ITEMS, workers=2)
    assert [next(results) for _ in range(3)] == [b"A10", b"A11", b"A12"]
    results.close()
    assert [worker.returncode for worker in started] == [-signal.SIGKILL] * 4


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_a_text_is_the_same_with_any_number_of_workers(tokenizer, monkeypatch):
    whole = "the cat  sät on\tthe mat\n\n<unk> 漢字 is the end of the line " * 40
    text = in_memory("text", whole)
    monkeypatch.setattr(texts, "BLOCK", 99)
    monkeypatch.setattr(workers, "ALONE", 500)
    found = []
    for cores in (1, 2, 3):
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        vocabulary = build(text, tokenizer, 300)
        numbers, sizes = zip(*encoded(vocabulary, text, np.uint16), strict=True)
        size = functools.reduce(TextSize.plus, sizes)
        found.append((vocabulary, np.concatenate(numbers).tolist(), size))
    assert found[0] == found[1] == found[2]
    assert found[0][2].characters == len(whole)
