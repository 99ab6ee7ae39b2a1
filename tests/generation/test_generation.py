"""Text from models: draws, cuts, streams and the beam."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax.data.encoding import build
from lm_jax.data.text import in_memory
from lm_jax.data.vocabulary import BYTES, Vocabulary
from lm_jax.generation import beam, sample, samples, stream
from lm_jax.generation.drawing import Cuts, cuts, divisor, drawing, draws, kept
from lm_jax.generation.sampling_options import prompt_tokens, stop_tokens
from lm_jax.generation.stops import Ending, Speller, stops_of
from lm_jax.settings import UserError

MODEL = tiny.rnn()
PARAMS = tiny.moved(MODEL.init(jax.random.key(0)), size=1.0)
PARAMS["readout"]["b_y"] = PARAMS["readout"]["b_y"].at[0].set(-40.0)  # no <unk> is ever drawn
CHARS = Vocabulary("char", ("<unk>", "\n", "a", "b", "c", "d", " "))
WORDS = Vocabulary("word", ("<unk>", "<eos>", "the", "cat", "sat", "on", "mat"))
TRAINED = (MODEL, PARAMS, CHARS)


def drawn(**more):
    return sample(*TRAINED, **{"length": 12, **more})


@jax.jit
def _log_p(x):
    _, h = MODEL.hidden(PARAMS, MODEL.init_carry(1), x[:, None])
    return jax.nn.log_softmax(MODEL.logits(PARAMS, h)[:, 0])


def log_p(tokens):
    """ln P [n + 1, V] of what comes after the boundary and each of the n tokens."""
    x = np.zeros(160, np.int32)  # one length for all, for later inputs do not matter
    x[: len(tokens) + 1] = [CHARS.boundary, *tokens]
    return np.asarray(_log_p(x))[: len(tokens) + 1]


def test_the_same_seed_gives_the_same_text():
    assert drawn(seed=3) == drawn(seed=3)
    assert len({drawn(seed=seed) for seed in range(5)}) > 1
    assert len(drawn()) == 12


def test_temperature_zero_takes_the_likeliest_token_each_time():
    text = drawn(temperature=0.0, prompt="ab")
    assert text.startswith("ab")
    tokens = CHARS.encode(text)
    np.testing.assert_array_equal(np.argmax(log_p(tokens), -1)[2:-1], tokens[2:])


@pytest.mark.parametrize("limits", [None, (4, 0.8, 0.2)])
def test_tokens_are_drawn_with_the_probabilities_that_are_left(limits):
    """Tokens after a prompt, against the cut softmax(z / τ), within four standard errors."""
    count, prompt = 2000, np.array([2, 3], np.int32)
    z = log_p(prompt)[-1]
    for temperature in (1.0, 0.5):
        chosen = cuts(tiny.V, *limits) if limits else None
        chunks = draws(
            MODEL, PARAMS, len(CHARS), CHARS.boundary, prompt, 1, count, temperature, chosen, 0, 3
        )
        (tokens, nats), *_ = chunks
        shares = np.bincount(tokens[0], minlength=tiny.V) / count
        p = np.exp(z / temperature)
        if limits:
            p = left(p / p.sum(), *limits)
        p /= p.sum()
        assert np.all(np.abs(shares - p) <= 4 * np.sqrt(p * (1 - p) / count) + 1 / count)
        # What is told of them is the model's own, before temperature and cuts.
        np.testing.assert_allclose(nats[0], -z[tokens[0]], rtol=1e-12)


def left(p, top_k, top_p, min_p):
    """The cuts one after another, token by token."""
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    order = order[:top_k]
    total, reached, nucleus = sum(p[token] for token in order), 0.0, []
    for token in order:
        nucleus.append(token)
        reached += p[token] / total
        if reached >= top_p:
            break
    best = p[order[0]]
    return np.array([p[t] if t in nucleus and p[t] >= min_p * best else 0 for t in range(len(p))])


def test_cuts_are_the_cuts_one_after_another():
    logits = np.random.default_rng(0).normal(size=(40, tiny.V)) * 2
    logits[0] = 0  # ties: the lower numbers stay
    for limits in itertools.product((1, 3, tiny.V), (0.05, 0.6, 1.0), (0.0, 0.3)):
        found = kept(jnp.asarray(logits), cuts(tiny.V, *limits))
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = np.stack([left(row, *limits) > 0 for row in p])
        np.testing.assert_array_equal(found, expected, err_msg=str(limits))


def test_the_token_that_reaches_top_p_exactly_is_the_last():
    """Eight equal tokens: each has exactly 1/8, and four of them exactly 1/2."""
    found = kept(jnp.zeros(8), cuts(8, None, 0.5, None))
    np.testing.assert_array_equal(found, np.arange(8) < 4)


def test_cuts_that_leave_all_change_nothing_and_top_1_is_greedy():
    assert (
        drawn(top_k=tiny.V)
        == drawn(top_k=10**12)
        == drawn(top_p=1.0)
        == drawn(min_p=0.0)
        == drawn()
    )
    assert drawn(top_k=1, seed=5) == drawn(top_p=1e-9, seed=6) == drawn(temperature=0.0)


def test_numbers_too_small_or_large_for_the_device_are_taken_as_their_limits():
    greedy = drawn(temperature=0.0)
    # At 1e-306 there is a z / τ for each small logit, but no room for one of 400.
    shifted = {**PARAMS, "readout": {**PARAMS["readout"], "b_y": PARAMS["readout"]["b_y"] + 400}}
    for small in (5e-324, 1e-310, 1e-306):
        assert drawn(top_p=small, seed=5) == drawn(temperature=small, seed=5) == greedy
        options = {"length": 12, "temperature": small, "top_k": 3, "seed": 5}
        assert sample(MODEL, shifted, CHARS, **options) == greedy
    assert drawn(min_p=1e-310) == drawn()
    with jax.enable_x64(False):
        assert [divisor(τ) for τ in (0.0, 1e-45, 1e-37)] == [0, 0, 0]
        assert [divisor(τ) for τ in (0.01, 1.0)] == [np.float32(0.01), 1]
        assert (
            divisor(1e39) == np.finfo(np.float32).max
        )  # and not infinite: -inf / inf is no number


def test_numbers_are_arguments_of_one_compiled_program():
    compiled = set()
    for number in (0.3, 0.9):
        drawn(
            temperature=number, top_p=number, min_p=number, top_k=3, prompt="a" * int(10 * number)
        )
        drawn(temperature=number, length=int(100 * number), seed=3)
        compiled.add(drawing(MODEL)._cache_size())
    assert len(compiled) == 1


def test_a_sample_is_the_same_whatever_is_drawn_beside_it():
    three = samples(*TRAINED, length=70, count=3, seed=7)
    assert [found.text for found in samples(*TRAINED, length=70, count=2, seed=7)] == [
        found.text for found in three[:2]
    ]
    assert three[0].text == sample(*TRAINED, length=70, seed=7)
    assert len({found.text for found in three}) == 3


def test_a_prompt_is_read_as_if_it_had_been_drawn():
    """Also where it ends within a chunk, at its end, and after several."""
    whole = samples(*TRAINED, length=140, seed=1)[0]
    for read in (1, 63, 64, 65, 130):
        prompt = whole.text[:read]
        on = samples(*TRAINED, length=140 - read, seed=1, prompt=prompt)[0]
        assert on.text == whole.text
        np.testing.assert_allclose(on.nats, whole.nats[read:], rtol=1e-9)
    np.testing.assert_allclose(
        whole.nats, -np.take_along_axis(log_p(whole.tokens)[:-1], whole.tokens[:, None], 1)[:, 0]
    )


def test_a_stop_token_ends_a_sample_and_is_no_part_of_it():
    free = samples(*TRAINED, length=150, count=4, seed=2)
    ended = samples(*TRAINED, length=150, count=4, seed=2, stop="c")
    assert any(found.stopped for found in ended)
    for a, b in zip(free, ended, strict=True):
        before, met, _ = a.text.partition("c")
        assert (b.text, b.stopped) == (before, bool(met))
        assert len(b.tokens) == len(b.text)
        np.testing.assert_array_equal(b.nats, a.nats[: len(b.tokens)])
    assert "".join(stream(*TRAINED, length=150, seed=2, stop="c")) == ended[0].text
    at_line_end = samples(*TRAINED, length=150, seed=2, stop="\\n")[0]
    assert at_line_end.text == free[0].text.partition("\n")[0]


@pytest.mark.parametrize("vocabulary", [CHARS, WORDS], ids=["char", "word"])
def test_a_text_in_pieces_is_the_text_at_once(vocabulary):
    options = {"length": 300, "prompt": "\n", "seed": 4}
    pieces = list(stream(MODEL, PARAMS, vocabulary, **options))
    assert len(pieces) >= 3
    assert "".join(pieces) == sample(MODEL, PARAMS, vocabulary, **options)


def spelled(vocabulary, chunks, errors="replace"):
    speller = Speller(vocabulary, errors)
    return [piece for piece in (*map(speller.push, chunks), speller.rest()) if piece]


def test_no_character_is_shown_before_all_its_bytes_are_there():
    """Whole and broken UTF-8, cut at every place into pieces of one, two and three tokens."""
    for content in ("aé…😀b\n".encode(), b"\xe2\x82a\xff\xf0\x9f\x98\xe2\x82\xac\xc3"):
        numbers = np.frombuffer(content, np.uint8).astype(np.int32)
        for size in (1, 2, 3):
            pieces = list(spelled(BYTES, np.split(numbers, range(size, len(numbers), size))))
            assert "".join(pieces) == BYTES.decode(numbers)
    assert list(spelled(BYTES, [np.array([0xC3]), np.array([0xA9])])) == ["é"]


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
        ({"top_k": 0}, "top-k=0 must be 1 or more"),
        ({"top_p": 0.0}, "top-p=0.0 must be above 0"),
        ({"top_p": 1.1}, "top-p=1.1 must be above 0 and at most 1"),
        ({"min_p": 1.0}, "min-p=1.0 must be 0 or more and below 1"),
        ({"min_p": float("nan")}, "min-p=nan must be"),
        ({"stop": "ab z"}, "stop='ab z' cannot be written with the 7 tokens of the .* has 'z'"),
        ({"stop": ["a", ""]}, "stop='' must hold a character"),
        ({"prompt": "abz"}, "the prompt holds 'z': the model has never seen it"),
    ],
    ids=str,
)
def test_a_wrong_wish_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        drawn(**wrong)
    with pytest.raises(UserError, match=said):
        stream(*TRAINED, **{"length": 12, **wrong})


def test_there_is_at_least_one_sample():
    with pytest.raises(UserError, match="count=0 must be from 1"):
        samples(*TRAINED, length=2, count=0)


def test_a_prompt_that_is_not_utf_8_is_refused():
    """What a shell hands over for the byte 0xff is half a surrogate pair."""
    with pytest.raises(UserError, match="is not UTF-8"):
        sample(MODEL, PARAMS, BYTES, length=2, prompt="a\udcff")
    with pytest.raises(UserError, match="never seen"):
        drawn(prompt="a\udcff")


def test_a_byte_order_mark_at_the_head_of_a_prompt_is_none_of_its_tokens():
    for known in (WORDS, BYTES):
        bare = prompt_tokens(known, "the cat").tolist()
        assert prompt_tokens(known, "\ufeffthe cat").tolist() == bare
    with pytest.raises(UserError, match="never seen"):
        prompt_tokens(WORDS, "the \ufeffcat")


def test_a_prompt_of_words_does_not_end_its_line():
    with pytest.raises(UserError, match="'dog': the model has never seen it"):
        sample(MODEL, PARAMS, WORDS, length=2, prompt="the dog")
    on = [
        sample(MODEL, PARAMS, WORDS, length=3, prompt=p, temperature=0.0) for p in ("the", "the\n")
    ]
    assert all(text.startswith("the") for text in on)
    assert on[0] != on[1]


def everything(length, stop=None):
    """ln P of every continuation of "ab": those of `length` tokens, and those that stop before."""
    texts = np.array(list(itertools.product(range(tiny.V), repeat=length)), np.int32)
    x = np.concatenate([np.tile(np.array([1, 2, 3], np.int32), (len(texts), 1)), texts], axis=1)
    read = jax.jit(lambda x: MODEL.hidden(PARAMS, MODEL.init_carry(len(texts)), x)[1])
    after = jax.nn.log_softmax(MODEL.logits(PARAMS, read(x.T)))[2:-1]
    each = np.take_along_axis(np.asarray(after), texts.T[:, :, None], 2)[:, :, 0].T
    found = {}
    for tokens, nats in zip(texts.tolist(), each, strict=True):
        end = tokens.index(stop) + 1 if stop in tokens else length
        found[tuple(tokens[:end])] = float(nats[:end].sum())
    return found


@pytest.mark.parametrize("stop", [None, "c", " "], ids=["none", "late", "at once"])
def test_a_beam_that_holds_all_texts_finds_the_likeliest(stop):
    every = everything(3, stop and CHARS.numbers[stop])
    best = max(every, key=every.get)
    found = beam(*TRAINED, length=3, width=tiny.V**2, prompt="ab", stop=stop)
    assert tuple(found.tokens) == best
    assert found.log_p == pytest.approx(every[best], rel=1e-12)
    kept_tokens = [token for token in best if stop is None or token != CHARS.numbers[stop]]
    assert found.text == "ab" + CHARS.decode(kept_tokens)


def test_a_beam_of_one_is_greedy_and_what_any_beam_tells_is_true():
    greedy = samples(*TRAINED, length=9, prompt="ab", temperature=0.0)[0]
    found = beam(*TRAINED, length=9, width=1, prompt="ab")
    assert found.text == greedy.text
    assert found.log_p == pytest.approx(-greedy.nats.sum(), rel=1e-12)
    wide = beam(*TRAINED, length=9, width=5, prompt="ab")
    after = log_p([2, 3, *wide.tokens])[2:-1]
    assert wide.log_p == pytest.approx(sum(after[range(9), wide.tokens]), rel=1e-12)
    assert wide.log_p >= found.log_p - 1e-12
    with pytest.raises(UserError, match="beam=0 must be"):
        beam(*TRAINED, length=2, width=0)


def test_a_model_without_a_recurrent_state_is_sampled_by_the_same_code():
    model = tiny.window()
    params = tiny.moved(model.init(jax.random.key(0)), size=1.0)
    whole = samples(model, params, CHARS, length=70, count=2, seed=1)[1]
    assert len(whole.text) == 70
    found = beam(model, params, CHARS, length=2, width=tiny.V, prompt="ab")
    greedy = samples(model, params, CHARS, length=2, prompt="ab", temperature=0.0)[0]
    assert found.log_p >= -greedy.nats.sum() - 1e-12
    assert isinstance(cuts(7, 1, None, None), Cuts)


def test_an_unknown_word_may_be_written_in_a_prompt_of_words():
    words = build(in_memory("text", "the cat sat\n"), "word")
    assert prompt_tokens(words, "the <unk>").tolist() == [words.numbers["the"], words.unknown]
    with pytest.raises(UserError, match="the prompt holds 'dog'"):
        prompt_tokens(words, "the <unk> dog")


def test_a_stop_token_is_a_character_and_not_the_byte_of_its_number():
    """Among bytes, 漢 and é are several tokens; `\\xe9` is one, as tables show it."""
    known = build(in_memory("text", "é\xa0é\xa0 漢 é\n\xa0\n" * 3), "bpe", 260)
    for character in "é\xa0":
        assert stop_tokens(known, character) == known.encode(character).tolist()
    assert stop_tokens(known, r"\xa0") == [known.numbers["\xa0"]]
    for vocabulary in (known, BYTES):
        assert stop_tokens(vocabulary, r"\xe9") == [vocabulary.numbers["\xe9"]]
        assert stop_tokens(vocabulary, [r"\n", "\n"]) == [vocabulary.boundary] * 2
        assert stop_tokens(vocabulary, "a") == [vocabulary.numbers["a"]]
    for wrong in ("é", "漢", "\udcff"):
        with pytest.raises(UserError, match="is not one of the 256 tokens"):
            stop_tokens(BYTES, wrong)


def test_unk_is_drawn_only_if_asked():
    params = {**PARAMS, "readout": {**PARAMS["readout"]}}
    params["readout"]["b_y"] = params["readout"]["b_y"].at[0].set(40.0)  # <unk> is the likeliest
    trained = (MODEL, params, CHARS)
    unknown = "\N{REPLACEMENT CHARACTER}"
    for options in ({"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5, "min_p": 0.1}):
        found = samples(*trained, length=12, count=2, **options)
        assert all(len(one.text) == 12 and unknown not in one.text for one in found)
        assert found[0].text == "".join(stream(*trained, length=12, **options))
        raw = samples(*trained, length=12, **options, raw=True)[0]
        assert raw.text == unknown * 12 == "".join(stream(*trained, length=12, **options, raw=True))
    # ln P remains that of the model.
    assert samples(*trained, length=3)[0].nats.min() > 30
    assert beam(*trained, length=3, width=2, raw=True).text == unknown * 3
    best = beam(*trained, length=3, width=2)
    assert CHARS.unknown not in best.tokens
    assert best.log_p < -90


def test_bytes_that_are_no_characters_are_left_out_of_a_text():
    spoilt = np.frombuffer("aé\N{GRINNING FACE}b".encode()[:-2] + b"\xff\xa9c\xe2\x82", np.uint8)
    for vocabulary in (BYTES, Vocabulary("bpe", BYTES.tokens)):
        assert vocabulary.decode(spoilt, "ignore") == "aéc"
        for size in (1, 2, 3):
            chunks = [spoilt[at : at + size].astype(np.int32) for at in range(0, len(spoilt), size)]
            assert "".join(spelled(vocabulary, chunks, "ignore")) == "aéc"
            assert "".join(spelled(vocabulary, chunks)) == vocabulary.decode(spoilt)


def first_end(text, stops):
    """The text before the stop that is complete first, and the stop, by trying every length."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_a_string_ends_a_sample_wherever_it_appears_in_the_drawn_text():
    """Across tokens and chunks, in each sample alone, and not in the prompt."""
    free = samples(*TRAINED, length=150, count=4, seed=2, prompt="ab")
    chosen = [free[0].text[n : n + 3] for n in (5, 63, 130)] + ["dddd"]
    for stops in ([chosen[0]], [chosen[1]], [chosen[2], chosen[3]], chosen, ["b", *chosen], ["ab"]):
        ended = samples(*TRAINED, length=150, count=4, seed=2, prompt="ab", stop=stops)
        for a, b in zip(free, ended, strict=True):
            before, stop = first_end(a.text[2:], stops)
            assert (b.text, b.stop) == ("ab" + before, stop)
            assert len(b.tokens) == len(before)
            np.testing.assert_array_equal(b.nats, a.nats[: len(b.tokens)])
        streamed = stream(*TRAINED, length=150, seed=2, prompt="ab", stop=stops)
        assert "".join(streamed) == ended[0].text


def test_a_beginning_of_a_stop_is_held_back_until_more_is_known():
    def shown(vocabulary, prompt, stop, chunks, errors="replace"):
        read = vocabulary.encode(prompt, ended=False)
        ending = Ending(vocabulary, read, stops_of(vocabulary, stop), errors)
        pieces = [ending.push(np.array(chunk, np.int32)) for chunk in chunks]
        return [*pieces, ending.rest()], ending.stop and ending.stop.written

    letters = [CHARS.encode(chunk) for chunk in ("a", "b", "a", "bc", "d")]
    assert shown(CHARS, "ab", "abc", letters) == (["ab", "", "ab", "", "", ""], "abc")
    assert shown(CHARS, "", "abd", letters) == (["", "", "ab", "abc", "d", ""], None)
    assert shown(CHARS, "", ["abab", r"c\n"], letters)[0] == ["", "", "", "", "", ""]
    euros = [[byte] for byte in "a€€b".encode()]
    assert "".join(shown(BYTES, "€", "€b", euros)[0]) == "€a€"
    spoilt = ["a", "", "", "\N{REPLACEMENT CHARACTER}", *[""] * 5]
    assert shown(BYTES, "", r"\xac", euros) == (spoilt, r"\xac")
    assert "".join(shown(BYTES, "", r"\xac", euros, "ignore")[0]) == "a"
    words = [[2, 3], [4, 1], [2]]  # the cat, sat <eos>, the
    assert shown(WORDS, "the", "<eos>", words)[0] == ["the the cat", " sat", "", ""]
    assert shown(WORDS, "the", "at sat", words)[0] == ["the the c", "", "", ""]
    assert shown(WORDS, "", r"\nthe", words) == (["the cat", " sat", "", ""], r"\nthe")
    assert shown(WORDS, "", "the", words)[0] == ["", "", "", ""]
    with pytest.raises(UserError, match="no token has 'EOS'"):
        stops_of(WORDS, ["the", "EOS"])


def test_a_beam_ends_at_any_of_several_tokens():
    every = everything(3, CHARS.numbers["c"])
    found = beam(*TRAINED, length=3, width=tiny.V**2, prompt="ab", stop=["c", "c"])
    assert tuple(found.tokens) == max(every, key=every.get)
    first = beam(*TRAINED, length=5, width=1, prompt="ab")
    after = first.text[2:]
    ended = beam(*TRAINED, length=5, width=1, prompt="ab", stop=[after[3], after[1]])
    cut = min(after.index(after[3]), after.index(after[1]))
    assert ended.text == "ab" + after[:cut]
    with pytest.raises(UserError, match="a beam ends at tokens only"):
        beam(*TRAINED, length=5, width=1, stop="ab")
