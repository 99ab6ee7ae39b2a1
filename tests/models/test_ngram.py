"""N-gram models, against dictionaries written from the formulas and numbers worked out by hand."""

import functools
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax import models
from lm_jax.generation.drawing import draws
from lm_jax.models.counts import continuations, count, discounts, locate, statistics
from lm_jax.models.ngram import NGramModel
from lm_jax.models.smoothing import fit, held_out_weights
from lm_jax.settings import UserError

V, BOUNDARY, ORDER = 5, 1, 4
WEIGHTS = [0.9, 0.7, 0.5, 0.3]
SMOOTHINGS = {
    "none": {},
    "add-k": {"add": 0.3},
    "interpolated": {"weights": WEIGHTS},
    "kneser-ney": {},
}
every_smoothing = pytest.mark.parametrize("smoothing", SMOOTHINGS)
both_modes = pytest.mark.parametrize("bounded", [False, True], ids=["stream", "bounded"])

# Token 4 never occurs. Sentences of 0 to 6 words and more, so contexts are cut at every length.
SHORT = np.array([0, 2, 3, 2, 1, 1, 3, 0, 2, 1, 0, 2, 3, 2, 0, 3, 1, 2, 1, 3, 3, 0, 2, 1, 0, 2, 2])
TEXT = np.append(SHORT, np.random.default_rng(5).choice(4, 120, p=[0.4, 0.2, 0.25, 0.15]))


def counted(text=TEXT, order=ORDER, sentence_boundaries=False, vocab_size=V):
    return count(
        text,
        order=order,
        vocab_size=vocab_size,
        boundary=BOUNDARY,
        sentence_boundaries=sentence_boundaries,
    )


@functools.cache
def model_of(order, bounded):
    return NGramModel(order=order, sentence_boundaries=bounded)


@functools.cache
def reader(order, bounded):
    """(params, x[T, B]) -> ln P of every token after each one read, twice: logits and -nats."""
    model = model_of(order, bounded)

    def read(params, x):
        _, h = model.hidden(params, model.init_carry(x.shape[1]), x)
        assert h.shape == (*x.shape, order - 1)
        each = jnp.broadcast_to(h[:, :, None], (*x.shape, V, order - 1))
        y = jnp.broadcast_to(jnp.arange(V), (*x.shape, V))
        return model.logits(params, h), -model.nats(params, each, y)

    return jax.jit(read)


def questions(seed=0, length=6, lanes=30):
    """Contexts as the text has them, and as it has not; lane 0 begins as the text does."""
    x = np.random.default_rng(seed).integers(0, V, (length, lanes)).astype(np.int32)
    x[:, 0] = [BOUNDARY, *TEXT[: length - 1]]
    for lane in range(1, lanes // 2):
        x[:, lane] = TEXT[lane : lane + length]
    return x


# The same models, from dictionaries.


def spelt(text, bounded):
    """The text as lists of symbols, each of them predicted but the first."""
    if not bounded:
        return [[BOUNDARY, *text.tolist()]]
    sentences = [["<s>"]]
    for token in text.tolist():
        sentences[-1].append(token)
        if token == BOUNDARY:
            sentences.append(["<s>"])
    return [sentence for sentence in sentences if len(sentence) > 1]


def spelt_context(context, bounded):
    """What may be context of the tokens read so far."""
    for at in reversed(range(len(context))):
        if bounded and context[at] == BOUNDARY:
            return ("<s>", *context[at + 1 :])
    return tuple(context)


def grams(text, order, bounded):
    """Counter of k-grams for k = 1 … n."""
    found = {k: Counter() for k in range(1, order + 1)}
    for sentence in spelt(text, bounded):
        for k in found:
            for end in range(max(k, 2), len(sentence) + 1):
                found[k][tuple(sentence[end - k : end])] += 1
    return found


def grouped(counter):
    """{context: {token: count}}."""
    groups = defaultdict(dict)
    for gram, times in counter.items():
        groups[gram[:-1]][gram[-1]] = times
    return groups


def adjusted(text, order, bounded):
    raw, (first, *_) = grams(text, order, bounded), spelt(text, bounded)
    for k in range(1, order):
        for gram in raw[k]:
            before = {longer[0] for longer in raw[k + 1] if longer[1:] == gram}
            alone = not bounded and list(gram) == first[:k] and k > 1  # the beginning of the text
            raw[k][gram] = raw[k][gram] if gram[0] == "<s>" else len(before) + alone
    return raw


def discount(counter):
    """Chen & Goodman's equation 26, and the rule for what it does not define."""
    n = Counter(counter.values())
    table, below = [0.0], 0.5
    for j in (1, 2, 3):
        if n[1] > 0 and n[j] > 0 and n[j + 1] > 0:
            D = j - (j + 1) * (n[1] / (n[1] + 2 * n[2])) * n[j + 1] / n[j]
            below = D if 0 < D < j else below
        table.append(below)
    return lambda times: table[min(times, 3)]


def by_dictionary(smoothing, text, order, bounded):
    """context -> P of every token."""
    raw = (
        adjusted(text, order, bounded) if smoothing == "kneser-ney" else grams(text, order, bounded)
    )
    tables = {k: grouped(raw[k]) for k in raw}
    D = {k: discount(raw[k]) for k in raw}

    def probabilities(context):
        context = spelt_context(context, bounded)
        longest = min(order, len(context) + 1)
        p = np.full(V, 1 / V)
        if smoothing == "add-k":
            here = tables[longest].get(context[len(context) - longest + 1 :], {})
            k = SMOOTHINGS["add-k"]["add"]
            return np.array([(here.get(w, 0) + k) / (sum(here.values()) + k * V) for w in range(V)])
        for k in range(1, longest + 1):
            here = tables[k].get(context[len(context) - k + 1 :])
            if here is None:
                continue
            total = sum(here.values())
            frequency = np.array([here.get(w, 0) / total for w in range(V)])
            if smoothing == "none":
                p = frequency
            elif smoothing == "interpolated":
                p = WEIGHTS[k - 1] * frequency + (1 - WEIGHTS[k - 1]) * p
            else:
                kept = [max(here.get(w, 0) - D[k](here.get(w, 0)), 0) / total for w in range(V)]
                p = np.array(kept) + sum(D[k](times) for times in here.values()) / total * p
        return p

    return probabilities


@both_modes
@every_smoothing
def test_every_probability_is_the_dictionaries(smoothing, bounded):
    params = fit(counted(sentence_boundaries=bounded), smoothing=smoothing, **SMOOTHINGS[smoothing])
    x = questions()
    p = np.exp(reader(ORDER, bounded)(params, x)[0])
    expected = by_dictionary(smoothing, TEXT, ORDER, bounded)
    for t, lane in np.ndindex(x.shape):
        exact = expected(tuple(x[: t + 1, lane].tolist()))
        np.testing.assert_allclose(p[t, lane], exact, rtol=1e-12, atol=1e-15)


@both_modes
@every_smoothing
@pytest.mark.parametrize("order", [1, 2, ORDER])
def test_probabilities_sum_to_one_and_nats_are_minus_their_logs(smoothing, bounded, order):
    given = {"weights": WEIGHTS[:order]} if smoothing == "interpolated" else SMOOTHINGS[smoothing]
    params = fit(counted(order=order, sentence_boundaries=bounded), smoothing=smoothing, **given)
    log_p, minus_nats = reader(order, bounded)(params, questions(1))
    np.testing.assert_allclose(np.sum(np.exp(log_p), -1), 1, rtol=1e-13)
    np.testing.assert_allclose(minus_nats, log_p, rtol=1e-13, atol=1e-15)


@both_modes
def test_reading_in_chunks_is_reading_at_once(bounded):
    params, model = fit(counted(sentence_boundaries=bounded)), model_of(ORDER, bounded)
    hidden = jax.jit(model.hidden)
    x = jnp.asarray(questions(2))
    carry = model.init_carry(x.shape[1])
    whole_carry, whole = hidden(params, carry, x)
    pieces, after = [], carry
    for token in x:
        after, piece = hidden(params, after, token[None])
        pieces.append(piece)
    np.testing.assert_array_equal(jnp.concatenate(pieces), whole)
    np.testing.assert_array_equal(after, whole_carry)
    assert after.dtype == carry.dtype == whole.dtype == jnp.int32


def test_a_restarted_lane_knows_nothing():
    carry = jnp.array([[2, 3], [0, 1]], jnp.int32)
    mixed = models.restart(model_of(ORDER, False), carry, jnp.array([True, False]))
    np.testing.assert_array_equal(mixed, [[-1, -1], [0, 1]])


# NGramRun.


@both_modes
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_counts_are_those_of_a_dictionary(bounded, dtype, tmp_path):
    path = tmp_path / "tokens"
    TEXT.astype(dtype).tofile(path)
    counts = counted(np.memmap(path, dtype, "r"), sentence_boundaries=bounded)
    expected = grams(TEXT, ORDER, bounded)
    for k, level in enumerate(counts.levels, 1):
        spellings = [()] if k == 1 else spellings
        spellings = [
            (*spellings[node], int(token))
            for node, token in zip(level.context, level.token, strict=True)
        ]
        assert spellings == sorted(set(spellings))
        found = dict(zip(spellings, level.occurrences.tolist(), strict=True))
        # A context's boundary token is the dictionary's <s>.
        named = Counter()
        for gram, times in expected[k].items():
            named[tuple(BOUNDARY if symbol == "<s>" else symbol for symbol in gram)] += times
        assert {gram: times for gram, times in found.items() if times} == named


def test_a_large_vocabulary_and_a_high_order_do_not_overflow():
    """V^order is 10^54 here; a key of the whole n-gram would need 180 bits."""
    kinds = np.array([0, 1, 3, 999_998, 999_999, 500_000])
    text = kinds[np.random.default_rng(0).integers(0, 6, 300)]
    counts = counted(text, order=9, vocab_size=1_000_000)
    raw = grams(text, 9, False)
    assert [len(level.token) for level in counts.levels[1:]] == [len(raw[k]) for k in range(2, 10)]
    for found, level in zip(list(locate(counts, text)), counts.levels, strict=True):
        np.testing.assert_array_equal(
            np.bincount(found.nodes, minlength=len(level.token)), level.occurrences
        )


def test_discounts_are_equation_26():
    """n_1 … n_4 = 10, 4, 2, 1: Y = 5/9."""
    D = discounts(np.repeat([0, 1, 2, 3, 4, 9], [3, 10, 4, 2, 1, 2]))
    np.testing.assert_allclose(D, [0, 5 / 9, 2 - 5 / 6, 3 - 10 / 9], rtol=1e-15)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([5, 7, 9], [0, 1 / 2, 1 / 2, 1 / 2]),  # no small count at all
        ([1, 1, 7], [0, 1 / 2, 1 / 2, 1 / 2]),  # Y = 1 would take all of every count of one
        ([2, 3, 4], [0, 1 / 2, 1 / 2, 1 / 2]),  # Y = 0 would take all of counts of two
        ([1, 1, 2, 7], [0, 1 / 2, 1 / 2, 1 / 2]),
        ([1, 1, 1, 2, 3, 3, 3], [0, 3 / 5, 3 / 5, 3 / 5]),  # D_2 = 2 - 27 / 5 is negative
    ],
)
def test_discounts_where_counts_of_counts_are_missing(times, expected):
    np.testing.assert_allclose(discounts(np.array(times)), expected, rtol=1e-15)


def test_a_context_may_have_more_children_than_are_looked_at_in_one_go():
    """0 is followed by each of 299 others, and by 7 twice more."""
    after = np.append(np.arange(1, 300), [7, 7])
    text = np.stack([np.zeros_like(after), after]).T.ravel()
    params = fit(counted(text, order=2, vocab_size=300), smoothing="none")
    p = np.exp(jax.jit(model_of(2, False).logits)(params, jnp.zeros((1, 1), jnp.int32)))[0]
    np.testing.assert_allclose(p, np.bincount(after) / 301, rtol=1e-14)


def test_maximum_likelihood_gives_nothing_to_what_was_not_seen():
    """0 2 3 0 2 2: after 0 always 2; after 2 once 3, once 2; 4 never."""
    text = np.array([0, 2, 3, 0, 2, 2])
    params = fit(counted(text, order=2), smoothing="none")
    log_p, minus_nats = reader(2, False)(params, jnp.array([[0, 2, 4]]))
    np.testing.assert_array_equal(np.exp(log_p[0, 0]), [0, 0, 1, 0, 0])
    np.testing.assert_allclose(np.exp(log_p[0, 1]), [0, 0, 0.5, 0.5, 0])
    np.testing.assert_allclose(np.exp(log_p[0, 2]), [2 / 6, 0, 3 / 6, 1 / 6, 0])  # from p_1
    np.testing.assert_array_equal(np.isneginf(minus_nats), np.isneginf(log_p))


def test_samples_of_maximum_likelihood_are_made_of_seen_n_grams():
    params, model = fit(counted(order=3), smoothing="none"), model_of(3, False)
    none = np.zeros(0, np.int32)
    chunks = draws(model, params, V, BOUNDARY, none, 100, 1, 1.0, None, 0, 64)
    drawn = np.concatenate([tokens for tokens, _ in chunks])[:, 0]
    seen = grams(TEXT, 3, False)[3]
    text = [BOUNDARY, *drawn.tolist()]
    ends = [tuple(text[t : t + 3]) for t in range(99)]
    # The text breaks off in a context of its own, after which one token follows from a shorter one.
    broken = tuple(TEXT[-2:])
    assert all(gram in seen for gram in ends if gram[:2] != broken)
    assert len(set(ends)) > 5


def with_memory(seed, length):
    """Tokens drawn from none, one, or two before, or anew, so that each order has a say."""
    rng, text = np.random.default_rng(seed), [0, 0]
    for _ in range(length):
        rules = ((2 * text[-1]) % V, (text[-1] + 3 * text[-2] + 1) % V, 0, 3, rng.integers(V))
        text.append(int(rng.choice(rules, p=[0.25, 0.35, 0.1, 0.1, 0.2])))
    return np.array(text)


def test_em_finds_weights_up_to_1_on_a_text_that_never_surprises():
    """What comes down to an order is a difference that rounding may leave a little below 0."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        line = np.append(rng.integers(1, V, rng.integers(5, 30)), BOUNDARY)
        counts = counted(np.tile(line, 20), order=5, sentence_boundaries=True)
        weights = held_out_weights(counts, np.tile(line, 4))
        assert all(0 <= weight <= 1 for weight in weights)


def test_em_finds_the_likeliest_weights():
    held_out = with_memory(1, 200)
    counts = counted(with_memory(3, 100), order=3, sentence_boundaries=True)
    weights = held_out_weights(counts, held_out)
    model = model_of(3, True)
    x = jnp.asarray(np.concatenate([[BOUNDARY], held_out])[:, None])

    @jax.jit
    def loss_of(params):
        _, h = model.hidden(params, model.init_carry(1), x[:-1])
        return jnp.sum(model.nats(params, h, x[1:]))

    def loss(weights):
        return float(loss_of(fit(counts, smoothing="interpolated", weights=weights)))

    assert len(weights) == 3
    assert all(0.1 < weight < 0.9 for weight in weights)
    best = loss(weights)
    for k in range(3):
        for shift in (-0.02, 0.02):
            other = np.array(weights) + shift * (np.arange(3) == k)
            assert loss(other.tolist()) > best


# Bounded by sentences.


def test_bounded_counts_do_not_depend_on_the_order_of_sentences():
    cuts = np.flatnonzero(TEXT == BOUNDARY) + 1
    sentences = np.split(TEXT[: cuts[-1]], cuts[:-1])
    shuffled = np.concatenate(sentences[::-1])
    for one, other in zip(
        counted(TEXT[: cuts[-1]], sentence_boundaries=True),
        counted(shuffled, sentence_boundaries=True),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    one, other = (counted(text).levels[2] for text in (TEXT[: cuts[-1]], shuffled))
    assert one.occurrences.tolist() != other.occurrences.tolist()


def test_nothing_before_a_sentence_moves_it():
    params = {mode: fit(counted(sentence_boundaries=mode)) for mode in (True, False)}
    x = questions(3)
    x[2] = BOUNDARY
    other = x.copy()
    other[:2] = (x[:2] + 1) % V
    same, moved = (
        np.all(
            np.equal(*(reader(ORDER, mode)(params[mode], tokens)[0][2:] for tokens in (x, other)))
        )
        for mode in (True, False)
    )
    assert same
    assert not moved


def test_the_start_of_a_sentence_is_not_predicted_and_its_end_is():
    """0 | 0 | | : three ends in five tokens, though four sentences could begin."""
    text = np.array([0, 1, 0, 1, 1])
    counts = counted(text, order=3, sentence_boundaries=True)
    assert counts.levels[0].occurrences.tolist() == [2, 3, 0, 0, 0]
    two, three = counts.levels[1:]
    # <s> 0 twice, <s> </s> once, 0 </s> twice; <s> 0 </s> twice.
    assert list(zip(two.context, two.token, two.occurrences, strict=True)) == [
        (0, 1, 2),
        (1, 0, 2),
        (1, 1, 1),
    ]
    assert list(zip(three.context, three.token, three.occurrences, strict=True)) == [(1, 1, 2)]
    # Different tokens before: 0 after <s> only; </s> after 0 and <s>. What begins with <s>: counts.
    assert continuations(counts, 1).tolist() == [1, 2, 0, 0, 0]
    assert continuations(counts, 2).tolist() == [1, 2, 1]
    assert continuations(counts, 3).tolist() == [2]


def test_one_sentence_is_one_stream():
    text = np.array([0, 2, 3, 2, 0, 2, 1])
    for one, other in zip(counted(text), counted(text, sentence_boundaries=True), strict=True):
        if isinstance(one, tuple):
            jax.tree.map(np.testing.assert_array_equal, one, other)


def test_statistics_by_hand():
    """0 2 0 2 3 | after the boundary; the test text is 0 2 3 3."""
    params = fit(counted(np.array([0, 2, 0, 2, 3]), order=3))
    counts = counted(np.array([0, 2, 0, 2, 3]), order=3)
    rows = statistics(counts, np.array([0, 2, 3, 3]), params)
    # 2-grams: 10 02 20 02 23; 3-grams: 102 020 202 023. Of the test: 10 02 23 33; 102 023 233.
    assert [row[:6] for row in rows] == [
        (1, 5, 3, 1, 4, 0),
        (2, 25, 4, 3, 4, 1),
        (3, 125, 4, 4, 3, 1),
    ]
    assert [row.unseen_share for row in rows] == [0, 1 / 4, 1 / 3]
    # p_1, a bool, a number; 4 tokens, 5 alphas, and of 5 or 4 contexts beginnings and gammas.
    assert [row.bytes for row in rows] == [
        8 * V + 1 + 4,
        4 * 4 + 8 * 5 + 4 * 7 + 8 * 6,
        4 * 4 + 8 * 5 + 4 * 6 + 8 * 5,
    ]
    assert np.isnan(statistics(counts, np.array([4]), params)[2].unseen_share)
    assert statistics(counts, np.array([4]), params)[0].unseen == 1


MISTAKES = {
    "order=0": lambda: counted(order=0),
    "order=-1": lambda: NGramModel(order=-1),
    "order=7.*its 5 tokens.*more than 6": lambda: counted(SHORT[:5], order=7),
    "order=9.*its 27 tokens.*more than 8": lambda: counted(
        SHORT, order=9, sentence_boundaries=True
    ),
    "no tokens": lambda: counted(TEXT[:0], order=1),
    "token 5.*V=5": lambda: counted(np.array([0, 5, 2]), order=1),
    "token -1.*V=5": lambda: counted(np.array([0, -1, 2]), order=1),
    "token 4294967296.*V=5": lambda: counted(np.array([0, 2**32]), order=1),
    "count a text": lambda: model_of(2, False).init(jax.random.key(0)),
    "kneser-nay.*did you mean 'kneser-ney'": lambda: fit(counted(), smoothing="kneser-nay"),
    "add=0.0": lambda: fit(counted(), smoothing="add-k", add=0.0),
    "order=4 takes 4 weights; got none": lambda: fit(counted(), smoothing="interpolated"),
    "order=4 takes 4 weights; got 1": lambda: fit(
        counted(), smoothing="interpolated", weights=[0.5]
    ),
    "from 0 to 1": lambda: fit(counted(), smoothing="interpolated", weights=[0.5, 0.5, 0.5, 1.1]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_in_one_line(message):
    with pytest.raises(UserError, match=message) as caught:
        MISTAKES[message]()
    assert "\n" not in str(caught.value)


def test_an_order_as_long_as_the_text_is_counted():
    assert [len(level.token) for level in counted(SHORT[:5], order=6).levels[1:]] == [5, 4, 3, 2, 1]
