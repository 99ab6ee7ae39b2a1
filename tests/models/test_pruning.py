"""Pruned n-gram models: what is left out, and that the rest is a distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.models.backoff import BackoffModel
from lm_jax.models.counts import count
from lm_jax.models.ngram import NGramModel
from lm_jax.models.nodes import Nodes, pack, unpack
from lm_jax.models.pruning import backed_off, by_entropy, perplexity_rise
from lm_jax.models.smoothing import fit
from lm_jax.settings import UserError

V, BOUNDARY, ORDER = 9, 1, 3  # token 0, as <unk>, does not occur
TEXT = np.random.default_rng(5).choice(
    np.arange(1, V), 400, p=np.array([8, 7, 6, 5, 4, 3, 2, 1]) / 36
)


def counted(order=ORDER, text=TEXT):
    return count(text, order=order, vocab_size=V, boundary=BOUNDARY, sentence_boundaries=True)


def log_p(kind, params, order=ORDER, seed=0):
    """ln P of every token after every step of random sentences, by logits and by nats."""
    model = kind(order=order, sentence_boundaries=True)
    x = jnp.asarray(np.random.default_rng(seed).integers(0, V, (6, 20)))

    @jax.jit
    def read(params):
        _, h = model.hidden(params, model.init_carry(x.shape[1]), x)
        each = jnp.broadcast_to(h[:, :, None], (*x.shape, V, order - 1))
        y = jnp.broadcast_to(jnp.arange(V), (*x.shape, V))
        return model.logits(params, h), -model.nats(params, each, y)

    return read(params)


def spellings(params):
    """{tokens: (alpha, gamma of the context)} of each order from 2 on."""
    found, below = [], [(token,) for token in range(V)]
    for level in unpack(params)[1]:
        below = [
            (*below[node], int(token))
            for node, token in zip(level.context, level.token, strict=True)
        ]
        gammas = level.gamma[level.context]
        found.append(dict(zip(below, zip(level.alpha, gammas, strict=True), strict=True)))
    return found


@pytest.mark.parametrize("smoothing", ["kneser-ney", "none", "add-k", "interpolated"])
def test_cut_offs_leave_out_what_is_rare_and_the_rest_sums_to_one(smoothing):
    counts = counted()
    more = {"weights": [0.9, 0.7, 0.5]} if smoothing == "interpolated" else {}
    whole = fit(counts, smoothing=smoothing, **more)
    cut = fit(counts, smoothing=smoothing, cutoffs=(0, 1, 2), **more)
    for most, level, before, after in zip(
        (1, 2), counts.levels[1:], spellings(whole), spellings(cut), strict=True
    ):
        often = dict(zip(before, level.occurrences > most, strict=True))
        assert after.keys() == {gram for gram, kept in often.items() if kept}
        assert 0 < len(after) < len(before)
        for gram, (alpha, gamma) in after.items():
            assert alpha == before[gram][0]
            # The context's share that no n-gram holds any more leads to the order below.
            lost = sum(before[other][0] for other in before if other[:-1] == gram[:-1])
            lost -= sum(after[other][0] for other in after if other[:-1] == gram[:-1])
            np.testing.assert_allclose(gamma, before[gram][1] + lost, rtol=1e-12)
    by_logits, by_nats = log_p(NGramModel, cut)
    np.testing.assert_allclose(np.sum(np.exp(by_logits), -1), 1, rtol=1e-12)
    np.testing.assert_allclose(by_nats, by_logits, rtol=1e-12)


def test_the_last_cut_off_holds_for_all_further_orders():
    one, other = (spellings(fit(counted(4), cutoffs=cutoffs)) for cutoffs in [(0, 1), (0, 1, 1, 1)])
    assert one == other
    assert spellings(fit(counted(4), cutoffs=(0, 0))) == spellings(fit(counted(4)))


def test_an_interpolated_model_is_the_back_off_model_of_its_own_probabilities():
    unigram, levels = unpack(fit(counted()))
    logs = [
        level._replace(alpha=np.log(level.alpha), gamma=np.log(level.gamma))
        for level in backed_off(unigram, levels)
    ]
    params = pack(np.log(unigram), logs, BOUNDARY, absent=(-np.inf, 0.0))
    expected, _ = log_p(NGramModel, fit(counted()))
    for found in log_p(BackoffModel, params):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_rise_of_the_perplexity_is_the_relative_entropy_of_the_two_models():
    """For each trigram h w: D = P(h) Σ_v p(v | h) ln (p / p'), with p' from its definition."""
    unigram, levels = unpack(fit(counted()))
    two, three = backed_off(unigram, levels)
    lower = np.tile(unigram, (V, 1)) * two.gamma[:, None]  # [u, v]: P(v | u)
    lower[two.context, two.token] = two.alpha
    histories = unigram[two.context] * two.alpha
    rises = perplexity_rise(three, two.alpha, histories)
    assert np.all(rises >= -1e-15)
    for node, token, rise in zip(three.context, three.token, rises, strict=True):
        children = three.token[three.context == node]
        p = lower[two.token[node]] * three.gamma[node]
        p[children] = three.alpha[three.context == node]
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)
        kept = children[children != token]
        others = np.setdiff1d(np.arange(V), kept)
        q = lower[two.token[node]].copy()
        q[others] *= (1 - p[kept].sum()) / q[others].sum()
        q[kept] = p[kept]
        D = histories[node] * np.sum(p * np.log(p / q))
        np.testing.assert_allclose(rise, np.expm1(D), rtol=1e-6, atol=1e-16)


@pytest.mark.parametrize("order", [2, 4])
def test_a_model_pruned_by_entropy_is_a_distribution_and_keeps_its_contexts(order):
    unigram, levels = unpack(fit(counted(order)))
    P = backed_off(unigram, levels)
    sizes = []
    for threshold in (1e-12, 1e-4, 1e-3):
        params = fit(counted(order), entropy_threshold=threshold)
        if threshold == 1e-4:
            by_logits, by_nats = log_p(BackoffModel, params, order)
            np.testing.assert_allclose(np.sum(np.exp(by_logits), -1), 1, rtol=1e-9)
            np.testing.assert_allclose(by_nats, by_logits, rtol=1e-12)
        found = spellings(params)
        sizes.append(sum(map(len, found)))
        for above, below in zip(found[1:], found, strict=False):
            assert {gram[:-1] for gram in above} <= below.keys()
        for level, grams in zip(P, found, strict=True):  # what is kept has its old P
            assert np.all(
                np.isin(
                    np.round([value for value, _ in grams.values()], 9),
                    np.round(np.log(level.alpha), 9),
                )
            )
    assert sizes[0] > sizes[1] > sizes[2]


def test_the_highest_order_loses_exactly_what_rises_less_than_the_threshold():
    unigram, levels = unpack(fit(counted()))
    two, three = backed_off(unigram, levels)
    rises = perplexity_rise(three, two.alpha, unigram[two.context] * two.alpha)
    threshold = float(np.median(rises))
    _, (_, kept) = by_entropy(unigram, levels, threshold)
    np.testing.assert_allclose(kept.alpha, np.log(three.alpha[rises >= threshold]), rtol=1e-12)


def test_a_vocabulary_that_an_order_covers_needs_no_weight():
    """After 0 both tokens are known: nothing is left out, and bow(0) weighs nothing, and is 1."""
    unigram = np.array([0.5, 0.5])
    node = Nodes(*(np.array(one) for one in ([0, 0], [0, 1], [0, 1], [0.7, 0.3], [0.0, 1.0])))
    logs, (level,) = by_entropy(unigram, [node], 1e-9)
    np.testing.assert_array_equal(level.gamma, [0.0, 0.0])
    np.testing.assert_allclose(np.exp(level.alpha), [0.7, 0.3], rtol=1e-15)
    np.testing.assert_allclose(np.exp(logs), unigram)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"cutoffs": (0, 0, 999)},
            r"prune=\(0, 0, 999\) leaves no 3-grams: prune less, or take",
        ),
        ({"entropy_threshold": 9.0}, "entropy_threshold=9.0 leaves no 2-grams"),
        ({"entropy_threshold": 0.1, "smoothing": "add-k"}, "needs a smoothing that backs off"),
    ],
)
def test_mistakes_are_told_in_one_line(given, said):
    with pytest.raises(UserError, match=said) as caught:
        fit(counted(), **given)
    assert "\n" not in str(caught.value)
