"""Text from models and models on text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax.data.vocabulary import Vocabulary
from lm_jax.inference import sample, score
from lm_jax.inference.sample import draw
from lm_jax.settings import UserError

MODEL = tiny.rnn()
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)), size=1.0)
CHARS = Vocabulary("char", ("<unk>", "\n", "a", "b", "c", "d", " "))
WORDS = Vocabulary("word", ("<unk>", "<eos>", "the", "cat", "sat", "on", "mat"))


def drawn(**more):
    return sample(MODEL, PARAMS, CHARS, **{"length": 12, **more})


def test_the_same_seed_gives_the_same_text():
    assert drawn(seed=3) == drawn(seed=3)
    assert len({drawn(seed=seed) for seed in range(5)}) > 1
    assert len(drawn()) == 12


def test_temperature_zero_takes_the_likeliest_token_each_time():
    text = drawn(temperature=0.0, prompt="ab")
    assert text.startswith("ab")
    tokens = [CHARS.boundary, *CHARS.encode(text)]
    _, h = MODEL.hidden(PARAMS, MODEL.init_carry(1), jnp.asarray(tokens)[:, None].astype(jnp.int32))
    likeliest = np.argmax(MODEL.logits(PARAMS, h), -1)[:, 0]
    np.testing.assert_array_equal(likeliest[2:-1], tokens[3:])


def test_tokens_are_drawn_with_the_model_s_probabilities():
    """First tokens after a prompt, against softmax(logits / τ), within four standard errors."""
    tokens, count = jnp.array([1, 2, 3], jnp.int32), 4000
    program = draw(MODEL, 1, 3)
    keys = jax.random.split(jax.random.key(0), count)
    for temperature in (1.0, 0.5):
        first = jax.vmap(lambda k, t=temperature: program(PARAMS, tokens, k, jnp.asarray(t)))(keys)
        shares = np.bincount(np.asarray(first)[:, 0], minlength=tiny.V) / count
        _, h = MODEL.hidden(PARAMS, MODEL.init_carry(1), tokens[:, None])
        p = np.asarray(jax.nn.softmax(MODEL.logits(PARAMS, h[-1, 0]) / temperature))
        assert np.all(np.abs(shares - p) <= 4 * np.sqrt(p * (1 - p) / count) + 1e-9)


def test_the_prompt_changes_what_follows():
    assert drawn(prompt="ab", temperature=0.0)[2:] != drawn(prompt="cd", temperature=0.0)[2:]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"length": 0}, "length=0 must be from 1"),
        ({"length": 10**11}, "length=100000000000 must be"),
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"seed": 2**32}, "seed=4294967296 must be"),
        ({"temperature": -0.1}, "temperature=-0.1 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature=nan must be 0 or more"),
        ({"prompt": "abz"}, "the model has never seen 'z'"),
    ],
)
def test_a_wrong_wish_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        drawn(**wrong)


def test_a_prompt_that_is_not_utf_8_is_refused():
    """What a shell hands over for the byte 0xff is half a surrogate pair."""
    from lm_jax.data.vocabulary import BYTES

    with pytest.raises(UserError, match="is not UTF-8"):
        sample(MODEL, PARAMS, BYTES, length=2, prompt="a\udcff")
    with pytest.raises(UserError, match="never seen"):
        drawn(prompt="a\udcff")


def test_a_prompt_of_words_does_not_end_its_line():
    with pytest.raises(UserError, match="never seen 'dog'"):
        sample(MODEL, PARAMS, WORDS, length=2, prompt="the dog")
    on = [
        sample(MODEL, PARAMS, WORDS, length=3, prompt=p, temperature=0.0) for p in ("the", "the\n")
    ]
    assert all(text.startswith("the") for text in on)
    assert on[0] != on[1]


def test_the_score_of_a_text_is_the_sum_over_its_tokens():
    text = "the cat sat\non the dog"
    found = score(MODEL, PARAMS, WORDS, text)
    np.testing.assert_array_equal(found.tokens, [2, 3, 4, 1, 5, 2, 0, 1])
    assert found.unknown == 1
    x = jnp.asarray([1, *found.tokens[:-1]], jnp.int32)[:, None]
    _, h = MODEL.hidden(PARAMS, MODEL.init_carry(1), x)
    expected = MODEL.nats(PARAMS, h, jnp.asarray(found.tokens, jnp.int32)[:, None])[:, 0]
    np.testing.assert_allclose(found.nats, expected, rtol=1e-12)
    assert found.loss.nats == pytest.approx(float(jnp.sum(expected)), rel=1e-12)
    assert (found.loss.tokens, found.loss.characters) == (8, len(text))


def test_the_probabilities_of_all_texts_of_one_length_add_up_to_one():
    pairs = [a + b for a in CHARS.tokens[1:] for b in CHARS.tokens[1:]]
    total = sum(np.exp(-score(MODEL, PARAMS, CHARS, pair).loss.nats) for pair in pairs)
    # What is missing is <unk>: first, or second after each of the others.
    _, h = MODEL.hidden(PARAMS, MODEL.init_carry(1), jnp.array([[1]], jnp.int32))
    p_first = np.asarray(jax.nn.softmax(MODEL.logits(PARAMS, h[0, 0])))
    missing = p_first[0]
    for token in range(1, tiny.V):
        x = jnp.array([[1], [token]], jnp.int32)
        _, h = MODEL.hidden(PARAMS, MODEL.init_carry(1), x)
        p_second = jax.nn.softmax(MODEL.logits(PARAMS, h[1, 0]))
        missing += p_first[token] * float(p_second[0])
    assert total + missing == pytest.approx(1, rel=1e-12)


def test_there_is_nothing_to_score_in_an_empty_text():
    with pytest.raises(UserError, match="empty"):
        score(MODEL, PARAMS, CHARS, "")
