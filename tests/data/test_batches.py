"""Batches: every token a target exactly once an epoch, after the token that stands before it."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax.config import Data, Memory
from lm_jax.data.batches import (
    batch_at,
    check_length,
    sentences,
    shuffled,
    steps_per_epoch,
    streams,
)
from lm_jax.data.corpus import load
from lm_jax.settings import UserError

# N, B, T: a tail in the chunk and in the lane; no tail; the last lanes empty; more lanes than
# tokens; one long lane; a chunk longer than the text; a single token.
STREAMS = [(23, 3, 4), (12, 3, 2), (9, 6, 2), (5, 8, 3), (11, 1, 4), (7, 2, 10), (1, 1, 1)]
every_stream = pytest.mark.parametrize(("N", "B", "T"), STREAMS)

# Tokens in each line; 1 is a blank one. The last number: tokens after the last line's end.
LINES = {
    "ended": ([3, 1, 1, 7, 12, 2], 0),
    "unfinished": ([3, 1, 7, 1], 6),
    "one line": ([5], 0),
    "no end": ([], 11),
    "blank": ([1, 1, 1, 1], 0),
}
every_text = pytest.mark.parametrize("name", LINES)
# B, T: lines longer than the chunk; more rows than lines, and chunks longer than they are.
SENTENCES = [(2, 4), (7, 13)]
every_shape = pytest.mark.parametrize(("B", "T"), SENTENCES)
BOUNDARY = 0


def stream_of(N, B, dtype=np.uint8):
    """A text of the tokens 1 … N, each once, so that a token tells its place."""
    return streams(np.arange(1, N + 1, dtype=dtype), BOUNDARY, B)


def lines(name):
    """Tokens of which all but the line ends differ."""
    spans, rest = LINES[name]
    tokens = np.arange(1, sum(spans) + rest + 1, dtype=np.uint8)
    tokens[np.cumsum(spans, dtype=int) - 1] = BOUNDARY
    return tokens


def epoch(source, T, number=0, key=None):
    """An epoch's batches, as NumPy arrays."""
    steps = steps_per_epoch(source, T)
    return [
        jax.tree.map(np.asarray, batch_at(source, number * steps + step, T, key))
        for step in range(steps)
    ]


def pairs(batches):
    """How often each target follows each input."""
    x, y = (np.concatenate([getattr(b, part)[b.mask] for b in batches]) for part in "xy")
    return Counter(zip(x.tolist(), y.tolist(), strict=True))


def rows(batches):
    """The inputs and the targets of each lane of each batch, as far as there are targets."""
    return [
        (b.x[b.mask[:, lane], lane].tolist(), b.y[b.mask[:, lane], lane].tolist())
        for b in batches
        for lane in range(b.mask.shape[1])
    ]


def in_text(tokens):
    """How often each token follows each other one, the first the boundary."""
    before = [BOUNDARY, *tokens[:-1].tolist()]
    return Counter(zip(before, tokens.tolist(), strict=True))


@every_stream
def test_every_token_of_a_stream_is_a_target_once_an_epoch_after_the_one_before_it(N, B, T):
    batches = epoch(stream_of(N, B), T)
    assert pairs(batches) == {(n - 1, n): 1 for n in range(1, N + 1)}
    for batch in batches:
        assert batch.x.shape == batch.y.shape == batch.mask.shape == (T, B)
        np.testing.assert_array_equal(batch.y[:-1], batch.x[1:])


@every_stream
def test_a_lane_goes_on_where_it_stopped_and_the_next_lane_where_it_ends(N, B, T):
    batches = epoch(stream_of(N, B), T)
    x, y, mask = (
        np.concatenate([getattr(b, part) for b in batches]) for part in ("x", "y", "mask")
    )
    for lane in range(B):
        # What is masked comes last, so a carry is never spoilt before a target.
        assert mask[: mask[:, lane].sum(), lane].all()
        np.testing.assert_array_equal(y[mask[:, lane], lane][:-1], x[mask[:, lane], lane][1:])
    np.testing.assert_array_equal(y.T[mask.T], np.arange(1, N + 1))
    lengths = mask.sum(0)
    assert lengths.max() == -(-N // B)
    np.testing.assert_array_equal(lengths, np.sort(lengths)[::-1])


@every_stream
def test_the_carry_is_kept_between_chunks_and_reset_where_the_stream_starts_again(N, B, T):
    source = stream_of(N, B)
    first, second = epoch(source, T), epoch(source, T, number=1)
    assert len(first) == steps_per_epoch(source, T) == math.ceil(math.ceil(N / B) / T)
    for batches in (first, second):
        for step, batch in enumerate(batches):
            np.testing.assert_array_equal(batch.start, np.full(B, step == 0))
    for batch, again in zip(first, second, strict=True):
        tiny.assert_trees_equal(batch, again)


@every_text
@every_shape
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_every_token_of_the_sentences_is_a_target_once_an_epoch(name, B, T, is_shuffled, key):
    tokens = lines(name)
    source = sentences(tokens, BOUNDARY, B, T)
    for number in range(2):
        batches = epoch(source, T, number, key if is_shuffled else None)
        assert pairs(batches) == in_text(tokens)
        for batch in batches:
            assert batch.x.shape == batch.y.shape == batch.mask.shape == (T, B)
            assert batch.start.all()


@every_text
@every_shape
def test_a_row_is_a_line_cut_every_t_tokens_in_the_order_of_the_text(name, B, T):
    spans, _ = LINES[name]
    tokens = lines(name).tolist()
    expected = []
    for line in np.split(np.arange(len(tokens)), np.cumsum(spans, dtype=int)):
        for piece in np.split(line, range(T, len(line), T)):
            if len(piece):
                x = [tokens[n - 1] if n else BOUNDARY for n in piece]
                expected.append((x, [tokens[n] for n in piece]))
    found = rows(epoch(sentences(lines(name), BOUNDARY, B, T), T))
    assert found[: len(expected)] == expected
    # Empty rows fill up the last batch, and no more.
    assert found[len(expected) :] == [([], [])] * (-len(expected) % B)


@every_text
@every_shape
def test_shuffled_sentences_are_the_same_rows_in_another_order(name, B, T, key):
    source = sentences(lines(name), BOUNDARY, B, T)
    in_order = sorted(rows(epoch(source, T)))
    assert sorted(rows(epoch(source, T, 0, key))) == in_order
    assert sorted(rows(epoch(source, T, 1, key))) == in_order


def test_the_order_of_sentences_is_another_one_in_each_epoch_and_for_each_key():
    text = np.arange(100, dtype=np.uint8).repeat(2)
    text[1::2] = 200
    source = sentences(text, 200, 10, 2)
    keys = jax.random.split(jax.random.key(0))
    read = jax.jit(lambda step, key: batch_at(source, step, 2, key).y[0])
    orders = {
        tuple(np.concatenate([read(number * 10 + step, key) for step in range(10)]).tolist())
        for key in keys
        for number in range(3)
    }
    assert len(orders) == 6
    assert tuple(range(100)) not in orders
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(100))}


@pytest.mark.parametrize("B", [1, 4])
def test_the_sentences_of_a_corpus_are_its_lines_for_every_tokeniser(B):
    text = "the cat\n\nsat\r\non the mat"
    for tokenizer in ("char", "byte", "word"):
        data = tiny.changed(Data(source=Memory(), batching="sentences"), tokenizer=tokenizer)
        corpus = load(data, [text, "the\n", "cat\n"])
        tokens, vocabulary = corpus.train.tokens, corpus.vocabulary
        source = sentences(tokens, vocabulary.boundary, B, 12)
        found = [vocabulary.decode(y) for _, y in rows(epoch(source, 12)) if y]
        ends = {"word": "on the mat\n"}.get(tokenizer, "on the mat")
        sat = {"word": "sat\n"}.get(tokenizer, "sat\r\n")
        assert found == ["the cat\n", "\n", sat, ends]
        first_inputs = {x[0] for x, _ in rows(epoch(source, 12)) if x}
        assert first_inputs == {vocabulary.boundary}


SOURCES = {
    "streams": lambda: stream_of(23, 3),
    "sentences": lambda: sentences(lines("ended"), BOUNDARY, 2, 4),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("with_key", [False, True])
def test_a_batch_inside_a_compiled_program_is_the_batch_outside(kind, with_key, key):
    source, key = SOURCES[kind](), key if with_key else None
    steps = 2 * steps_per_epoch(source, 4) + 1

    def scanned(source, key):
        read = lambda step, _: (step + 1, batch_at(source, step, 4, key))  # noqa: E731
        return jax.lax.scan(read, jnp.zeros((), jnp.int32), length=steps)[1]

    inside = jax.jit(scanned)(source, key)
    for step in range(steps):
        outside = batch_at(source, step, 4, key)
        tiny.assert_trees_equal(jax.tree.map(lambda a, n=step: a[n], inside), outside)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_tokens_on_the_device_are_as_small_as_on_the_disk(dtype):
    tokens = np.full(6, np.iinfo(dtype).max, dtype)
    for source in (streams(tokens, BOUNDARY, 2), sentences(tokens, BOUNDARY, 2, 3)):
        assert source.tokens.dtype == dtype
        batch = batch_at(source, 0, 3)
        assert batch.x.dtype == batch.y.dtype == jnp.int32
        assert (batch.y == np.iinfo(dtype).max).all()


def test_shuffled_is_a_permutation_of_any_number_of_items():
    """One shape for all counts, and op by op, so that nothing is compiled for each count."""
    with jax.disable_jit():
        for count in [*range(1, 18), 31, 32, 33, 63, 64, 65, 100, 255, 256, 257]:
            rank = np.arange(257) % count
            order = np.asarray(shuffled(jnp.asarray(rank), count, jax.random.key(count)))
            np.testing.assert_array_equal(np.sort(order[:count]), np.arange(count))
            # The item at a place does not depend on which others are asked for.
            np.testing.assert_array_equal(order, order[rank])


def test_shuffled_is_a_permutation_of_many_items(key):
    count = 70_000
    order = np.asarray(shuffled(jnp.arange(count), count, key))
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_no_item_is_drawn_to_a_place():
    """Over n keys an item stands at a place n p times, p = 1/5, within 5 standard deviations."""
    count, n, p = 5, 3_000, 1 / 5
    keys = jax.random.split(jax.random.key(3), n)
    orders = np.asarray(jax.vmap(lambda key: shuffled(jnp.arange(count), count, key))(keys))
    times = np.array([(orders == item).sum(0) for item in range(count)])
    assert np.abs(times - n * p).max() < 5 * np.sqrt(n * p * (1 - p))
    assert len(np.unique(orders, axis=0)) == 120  # every order that there is


@pytest.mark.parametrize(("N", "B", "T"), [(2000, 2, 9), (61, 3, 5), (23, 1, 5)])
def test_chunks_of_random_lengths_follow_each_other_and_are_others_in_each_epoch(N, B, T, key):
    source, jitter = stream_of(N, B, np.uint16), 2
    steps = steps_per_epoch(source, T)
    lengths = []
    for number in range(2):
        chunks = [batch_at(source, number * steps + n, T, key, jitter) for n in range(steps)]
        read = [np.asarray(chunk.mask[:, 0]).sum() for chunk in chunks]
        assert all(T - 2 * jitter <= length <= T + 2 * jitter for length in read[:-1])
        assert read[-1] >= 1
        x, y, mask, start = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        assert x.shape == (steps * (T + 2 * jitter), B)
        # In the order of the text; an input that is the boundary is the text's first.
        for column in range(B):
            np.testing.assert_array_equal(np.diff(y[mask[:, column], column]), 1)
        assert sorted(y[mask]) == list(range(1, N + 1))
        np.testing.assert_array_equal(x[mask], y[mask] - 1)
        np.testing.assert_array_equal(start, np.repeat(np.arange(steps) == 0, B))
        assert np.all(x[: T + 2 * jitter][read[0] :] == -1)
        lengths.append(read)
    if N == 2000:
        assert lengths[0] != lengths[1]
        np.testing.assert_allclose(np.std(lengths), 2.0, rtol=0.15)  # √(2 + 2) of two borders


def test_a_chunk_longer_than_a_sequence_is_refused_with_the_numbers():
    check_length(30, 3, 10, "data.length")
    check_length(32, 3, 10, "data.length")
    with pytest.raises(UserError) as refusal:
        check_length(3_002, 3, 1_001, "train.gradient.k1")
    assert str(refusal.value) == (
        "train.gradient.k1=1001 is longer than a sequence: 3,002 training tokens over "
        "data.batch_size=3 sequences make 1,000 each"
    )
    with pytest.raises(UserError, match=r"^data\.length=1 is longer than a sequence"):
        check_length(2, 3, 1, "data.length")


def test_a_text_whose_places_do_not_fit_into_32_bits_is_refused():
    endless = np.broadcast_to(np.uint8(1), 2**31)
    with pytest.raises(UserError, match=r"^2,147,483,648 tokens are too many for data\.batching"):
        sentences(endless, BOUNDARY, 2, 4)
