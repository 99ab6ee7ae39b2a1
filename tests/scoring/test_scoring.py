"""What a text is worth to a model: read through, by line, learning, remembering."""

import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import models, scoring
from lm_jax.config import RNN
from lm_jax.data import text as texts
from lm_jax.data.batches import batch_at, streams
from lm_jax.data.text import in_memory
from lm_jax.data.vocabulary import BYTES, Vocabulary
from lm_jax.gradients import full_bptt
from lm_jax.report.score_table import show_score
from lm_jax.scoring import line_blocks, lines, parallel_scorer, score
from lm_jax.scoring.score import perplexity_of
from lm_jax.settings import UserError

MODEL = tiny.rnn()
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)), size=1.0)
CHARS = Vocabulary("char", ("<unk>", "\n", "a", "b", "c", "d", " "))
WORDS = Vocabulary("word", ("<unk>", "<eos>", "the", "cat", "sat", "on", "mat"))
STATIC = importlib.import_module("lm_jax.scoring.parallel")
RANDOM = np.random.default_rng(0)
TEXT = "".join(RANDOM.choice(list("abcd \n"), 130, p=[0.2] * 4 + [0.1] * 2))


@jax.jit
def _nats(x):
    _, h = MODEL.hidden(PARAMS, MODEL.init_carry(1), x[:-1, None])
    return MODEL.nats(PARAMS, h, x[1:, None])[:, 0], h[:, 0], MODEL.logits(PARAMS, h)[:, 0]


def read_through(tokens):
    """Nats [n], hidden states [n, H] and logits [n, V] at each token after the boundary."""
    x = np.zeros(200, np.int32)
    x[: len(tokens) + 1] = [1, *tokens]
    return [np.asarray(a)[: len(tokens)] for a in _nats(x)]


def nats_of(scorer, text=TEXT, params=PARAMS):
    return score(MODEL, params, CHARS, text, scorer).nats


def test_the_score_of_a_text_is_the_sum_over_its_tokens():
    text = "the cat sat\non the dog"
    found = score(MODEL, PARAMS, WORDS, text)
    np.testing.assert_array_equal(found.tokens, [2, 3, 4, 1, 5, 2, 0, 1])
    assert found.unknown == 1
    np.testing.assert_allclose(found.nats, read_through(found.tokens)[0], rtol=1e-12)
    assert found.loss.nats == pytest.approx(found.nats.sum(), rel=1e-12)
    assert (found.loss.tokens, found.loss.size.characters) == (8, len(text))


def test_the_probabilities_of_all_texts_of_one_length_add_up_to_one():
    pairs = ["".join(pair) for pair in itertools.product(CHARS.tokens[1:], repeat=2)]
    total = sum(np.exp(-score(MODEL, PARAMS, CHARS, pair).loss.nats) for pair in pairs)
    # What is missing is <unk>: first, or second after each of the others.
    for first in [[], *([token] for token in range(1, tiny.V))]:
        p = np.exp(-read_through([*first, 0])[0])
        total += np.prod(p)
    assert total == pytest.approx(1, rel=1e-12)


def test_a_text_in_blocks_and_chunks_of_any_size_is_the_text_at_once(monkeypatch):
    expected = read_through(CHARS.encode(TEXT))[0]
    for block, length in ((7, 5), (1000, 130), (64, 32), (3, 200)):
        monkeypatch.setattr(texts, "BLOCK", block)
        found = list(
            scoring.blocks(
                parallel_scorer(MODEL, length), PARAMS, CHARS, in_memory("text", TEXT + "é")
            )
        )
        assert max(len(part.tokens) for part in found) <= length
        np.testing.assert_allclose(
            np.concatenate([part.nats for part in found])[:-1], expected, rtol=1e-12
        )
        assert sum(part.size.characters for part in found) == len(TEXT) + 1
        assert sum(part.size.unknown for part in found) == 1


@pytest.fixture
def _four_segments(monkeypatch):
    """Stretches of 512 tokens of `CHARS` in four segments of 128, with 32 tokens before each."""
    for name, value in {"SEGMENTS": 4, "WARM": 32, "FEW": 2}.items():
        monkeypatch.setattr(STATIC, name, value)
    scorer = importlib.import_module("lm_jax.scoring.scorer")
    monkeypatch.setattr(scorer, "LOGITS_AT_ONCE", 32 * len(CHARS.tokens))
    STATIC._reader.cache_clear()
    yield
    STATIC._reader.cache_clear()


@pytest.mark.usefixtures("_four_segments")
@pytest.mark.parametrize("case", ["forgets", "remembers", "one lane"])
def test_a_text_in_lanes_is_the_text_token_after_token(case, monkeypatch):
    """A relu RNN with W_hh = I adds up all it has read, and no lane can begin in its middle."""
    if case == "one lane":
        model = tiny.window()
        params = tiny.moved(model.init(jax.random.key(0)))
    else:
        model = tiny.rnn(cell__activation="tanh" if case == "forgets" else "relu")
        params = tiny.moved(model.init(jax.random.key(0)))
        params["layers"][0]["W_hh"] = jnp.eye(5) * (0.3 if case == "forgets" else 1)
    text = "".join(RANDOM.choice(list("abcd \n"), 1400))
    tokens = CHARS.encode(text)
    x, y = (jnp.asarray(a, jnp.int32)[:, None] for a in ([1, *tokens[:-1]], tokens))

    @jax.jit
    def at_once(params):
        return model.nats(params, model.hidden(params, model.init_carry(1), x)[1], y)[:, 0]

    scorer, states = parallel_scorer(model, 512), []

    def read(params, state, batch):
        state, nats = scorer.score_chunk(params, state, batch)
        states.append(bool(state.forgets))
        return state, nats

    found = score(model, params, CHARS, text, scorer._replace(score_chunk=read))
    np.testing.assert_allclose(found.nats, at_once(params), rtol=1e-11)
    assert states == [case != "remembers"] * 3
    if case == "remembers":  # without a look at the seams it would have been read in lanes
        monkeypatch.setattr(STATIC, "SEAM", np.inf)
        STATIC._reader.cache_clear()
        wrong = score(model, params, CHARS, text, parallel_scorer(model, 512)).nats
        np.testing.assert_allclose(wrong[:128], found.nats[:128], rtol=1e-11)
        assert not np.any(np.isclose(wrong[128:512], found.nats[128:512], rtol=1e-3))


def test_no_more_of_a_text_is_read_than_is_asked_for(monkeypatch):
    """So what is held does not grow with the text."""
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield b"abc\n" * 64

    text = texts.Text("endless", "", endless)
    for found in (
        scoring.blocks(parallel_scorer(MODEL, 32), PARAMS, CHARS, text),
        line_blocks(MODEL, PARAMS, CHARS, text),
    ):
        taken.clear()
        assert len(list(itertools.islice(found, 40))) == 40
        assert len(taken) < 30


def test_each_line_is_scored_as_if_nothing_had_come_before_it(monkeypatch):
    module = importlib.import_module("lm_jax.scoring.blocks")
    long = "ab cd" * 9
    text = f"{TEXT}\n{long}\n\nab\n{TEXT}"
    parts = text.split("\n")
    parts = [part + "\n" for part in parts[:-1]] + [parts[-1]]
    for together, length, waiting in ((3, 4, 1 << 20), (64, 32, 1 << 20), (2, 3, 10)):
        monkeypatch.setattr(module, "LINES_TOGETHER", together)
        monkeypatch.setattr(module, "LINE_LENGTH", length)
        monkeypatch.setattr(module, "LINES_AT_ONCE", waiting)
        found = list(line_blocks(MODEL, PARAMS, CHARS, in_memory("text", text)))
        assert [CHARS.decode(part.tokens) for part in found] == [part for part in parts if part]
        for part in found:
            np.testing.assert_allclose(part.nats, read_through(part.tokens)[0], rtol=1e-12)
        assert sum(part.size.characters for part in found) == len(text)


def test_lines_add_up_whatever_the_blocks():
    tokens, nats = score(MODEL, PARAMS, CHARS, TEXT)[:2]
    ends = [*(np.flatnonzero(tokens == 1) + 1), len(tokens)]
    expected = [nats[a:b].sum() for a, b in itertools.pairwise([0, *ends]) if b > a]
    for length in (3, 50, 200):
        found = list(
            lines(
                CHARS,
                scoring.blocks(
                    parallel_scorer(MODEL, length), PARAMS, CHARS, in_memory("text", TEXT)
                ),
            )
        )
        np.testing.assert_allclose([line.nats for line in found], expected, rtol=1e-12)
        assert [line.number for line in found] == list(range(1, len(found) + 1))
        assert sum(line.tokens for line in found) == len(TEXT)
        shown = [CHARS.decode(line.beginning) for line in found]
        assert shown == [line for line in TEXT.splitlines(keepends=True)]


def test_there_is_nothing_to_score_in_an_empty_text():
    with pytest.raises(UserError, match="empty"):
        score(MODEL, PARAMS, CHARS, "")
    nothing = texts.Text("nothing", "", lambda: iter(()))
    with pytest.raises(UserError, match="nothing: the text is empty"):
        list(line_blocks(MODEL, PARAMS, CHARS, nothing))


def test_bytes_that_begin_no_character_have_infinitely_many_bits_a_character(capsys):
    model = models.make(RNN(embedding_size=4, hidden_size=5), len(BYTES))
    params = model.init(jax.random.key(0))
    text = texts.Text("bytes", "", lambda: iter([b"\x80\x81"]))
    found = score(model, params, BYTES, text).loss
    assert (found.tokens, found.size.characters, found.bits_per_character) == (2, 0, np.inf)
    for as_json in (True, False):
        blocks = scoring.blocks(parallel_scorer(model, 4), params, BYTES, text)
        show_score(BYTES, blocks, by="token", as_json=as_json)
    as_object, _, table = capsys.readouterr().out.partition("      ln P")
    assert json.loads(as_object)["bits_per_character"] is None
    assert table.endswith("bits a character   inf\n")


def test_dynamic_evaluation_scores_a_chunk_before_it_learns_from_it():
    still = score(MODEL, PARAMS, CHARS, TEXT).nats
    none = scoring.sgd(PARAMS, learning_rate=0.0)
    np.testing.assert_allclose(nats_of(scoring.dynamic(MODEL, none, 10)), still, rtol=1e-12)
    learning = nats_of(scoring.dynamic(MODEL, scoring.sgd(PARAMS, learning_rate=0.5), 10))
    np.testing.assert_allclose(learning[:10], still[:10], rtol=1e-12)
    assert np.all(learning[10:] != still[10:])
    # The text itself is left for the next time.
    again = nats_of(scoring.dynamic(MODEL, scoring.sgd(PARAMS, learning_rate=0.5), 10))
    np.testing.assert_array_equal(again, learning)


@pytest.mark.quick("sgd")
@pytest.mark.parametrize("kind", ["sgd", "rms"])
def test_dynamic_evaluation_is_the_paper_s_rule_with_the_estimator_s_gradient(kind):
    length, rate, decay, epsilon = 50, 0.3, 0.02, 0.01
    tokens = CHARS.encode(TEXT)
    lane = streams(tokens, 1, 1)
    estimator = jax.jit(full_bptt(MODEL).estimate)
    batches = [batch_at(lane, step, length) for step in range(3)]
    carry, squares = MODEL.init_carry(1), jax.tree.map(jnp.zeros_like, PARAMS)
    for batch in batches:
        _, carry, g, _ = estimator(PARAMS, carry, batch)
        squares = jax.tree.map(lambda s, g: s + g**2 / 3, squares, g)
    root = jax.tree.map(np.sqrt, squares)
    found = scoring.root_mean_square_gradient(MODEL, PARAMS, tokens, 1, length=length, batch_size=1)
    tiny.assert_trees_close(found, root)

    average = np.mean([leaf.mean() for leaf in jax.tree.leaves(root)])
    if kind == "sgd":
        rule = scoring.sgd(PARAMS, learning_rate=rate, decay=decay)
        divisor = jax.tree.map(np.ones_like, root)
        pull = jax.tree.map(lambda leaf: np.full_like(leaf, decay), root)
    else:
        rule = scoring.rms(root, learning_rate=rate, decay=decay, epsilon=epsilon)
        divisor = jax.tree.map(lambda leaf: leaf + epsilon, root)
        pull = jax.tree.map(lambda leaf: np.minimum(decay * leaf / average, 1), root)
    params, carry, expected = PARAMS, MODEL.init_carry(1), []
    for batch in batches:
        loss, carry, g, _ = estimator(params, carry, batch)
        expected.append(float(loss) * int(batch.mask.sum()))
        params = jax.tree.map(
            lambda now, g, d, first, share: now - rate * g / d + share * (first - now),
            *(params, g, divisor, PARAMS, pull),
        )
    nats = nats_of(scoring.dynamic(MODEL, rule, length))
    sums = [nats[:50].sum(), nats[50:100].sum(), nats[100:].sum()]
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


def test_a_cache_is_its_formula_token_by_token():
    tokens = CHARS.encode(TEXT)
    nats, h, logits = read_through(tokens)
    for size, weight, flatness in ((7, 0.3, 0.6), (500, 0.1, 0.0)):
        found = nats_of(scoring.cache(MODEL, size=size, weight=weight, flatness=flatness))
        assert found[0] == pytest.approx(nats[0], rel=1e-12)  # nothing is remembered yet
        for t in range(1, len(tokens)):
            p_cache = np.zeros(tiny.V)
            for i in range(max(0, t - size), t):
                p_cache[tokens[i]] += np.exp(flatness * h[t] @ h[i])
            p = np.exp(logits[t]) / np.exp(logits[t]).sum()
            p = (1 - weight) * p + weight * p_cache / p_cache.sum()
            assert p.sum() == pytest.approx(1, rel=1e-12)
            assert found[t] == pytest.approx(-np.log(p[tokens[t]]), rel=1e-12)


def test_a_cache_of_the_largest_flatness_looks_at_the_most_similar_state_alone():
    tokens = CHARS.encode(TEXT)
    nats, h, _ = read_through(tokens)
    found = nats_of(scoring.cache(MODEL, size=7, weight=0.3, flatness=1e308))
    for t in range(1, len(tokens)):
        before = range(max(0, t - 7), t)
        nearest = max(before, key=lambda i: h[t] @ h[i])
        p = 0.7 * np.exp(-nats[t]) + 0.3 * (tokens[nearest] == tokens[t])
        assert found[t] == pytest.approx(-np.log(p), rel=1e-12)
    with jax.enable_x64(False):  # 1e39 is finite, but not among its numbers
        scorer = scoring.cache(MODEL, size=7, weight=0.3, flatness=1e39)
        state = scorer.init(MODEL.init(jax.random.key(0)), 1)
        assert state.flatness == np.finfo(np.float32).max


def test_a_cache_of_no_weight_is_the_model_and_chunks_do_not_matter(monkeypatch):
    still = score(MODEL, PARAMS, CHARS, TEXT).nats
    none = scoring.cache(MODEL, size=9, weight=0.0, flatness=1.0)
    np.testing.assert_allclose(nats_of(none), still, rtol=1e-12)
    whole = scoring.cache(MODEL, size=9, weight=0.2, flatness=1.0)
    chunks = whole._replace(length=11)
    np.testing.assert_allclose(nats_of(chunks), nats_of(whole), rtol=1e-12)


def test_a_cache_needs_hidden_states_and_learning_needs_weights():
    counts = tiny.altered(MODEL, hidden=lambda params, carry, x, hook=None: (carry, x))
    with pytest.raises(UserError, match="--cache needs a model with hidden states"):
        score(counts, PARAMS, CHARS, "ab", scoring.cache(counts, size=3, weight=0.1, flatness=0.0))
    rule = scoring.sgd({"n": jnp.zeros(3, int)}, learning_rate=0.1)
    with pytest.raises(UserError, match="a model that is counted"):
        score(MODEL, {"n": jnp.zeros(3, int)}, CHARS, "ab", scoring.dynamic(MODEL, rule, 4))


def test_dynamic_evaluation_holds_no_square_of_a_gradient():
    """The squares of gradients times 1e200 are beyond the largest float, and their sum too."""
    steep = tiny.altered(MODEL, loss=lambda *at: 1e200 * MODEL.loss(*at))
    found, usual = (
        scoring.root_mean_square_gradient(
            model, PARAMS, CHARS.encode(TEXT), 1, length=50, batch_size=1
        )
        for model in (steep, MODEL)
    )
    tiny.assert_trees_close(jax.tree.map(lambda leaf: leaf / 1e200, found), usual)
    steepest = jax.tree.map(lambda leaf: leaf * 1e107, found)
    pulls = [scoring.rms(r, learning_rate=1.0, decay=0.02).pull for r in (steepest, usual)]
    tiny.assert_trees_close(*pulls)
    assert np.isnan(perplexity_of(float("nan")))
    beyond = jax.tree.map(lambda leaf: leaf * np.inf, usual)
    with pytest.raises(UserError, match="the gradient on the training text is beyond"):
        scoring.rms(beyond, learning_rate=1.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: scoring.cache(MODEL, size=0, weight=0.1, flatness=0.1), "cache=0 must"),
        (lambda: scoring.cache(MODEL, size=5, weight=1.0, flatness=0.1), "cache-weight=1.0 must"),
        (lambda: scoring.cache(MODEL, size=5, weight=0.1, flatness=-1.0), "cache-flatness=-1"),
        (lambda: scoring.sgd(PARAMS, learning_rate=-1.0), "dynamic-rate=-1.0 must"),
        (lambda: scoring.sgd(PARAMS, learning_rate=1.0, decay=2.0), "dynamic-decay=2.0 must"),
        (lambda: scoring.rms(PARAMS, learning_rate=1.0, epsilon=0.0), "dynamic-epsilon=0.0"),
        (lambda: scoring.dynamic(MODEL, scoring.Rule({}, {}), 0), "dynamic-length=0 must"),
    ],
)
def test_a_number_out_of_range_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()
