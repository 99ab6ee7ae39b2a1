r"""ARPA files: scores by the file's own numbers, back again unchanged, and each mistake's line."""

import gzip
import itertools
import math

import jax
import numpy as np
import pytest

import lm_jax
from lm_jax.commands import main
from lm_jax.config import Config, Data, Memory, NGram, Word
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.exchange.arpa import write_arpa
from lm_jax.exchange.arpa_reader import read_arpa
from lm_jax.models.backoff import BackoffModel
from lm_jax.models.counts import count
from lm_jax.models.ngram import NGramModel
from lm_jax.models.smoothing import fit
from lm_jax.scoring import score
from lm_jax.settings import UserError

WORDS = Vocabulary("word", ("<unk>", "<eos>", "the", "cat", "é", "sat"))
LINES = ["the cat sat", "the cat", "", "é sat the cat the <unk>", "cat sat sat", "the é the é sat"]
TEXT = "".join(f"{line}\n" for line in LINES * 3)
NEW = "sat the cat\nthe é é\n\n<unk> dog the cat sat\n"
FILE = r"""\data\
ngram 1=5
ngram 2=4
ngram 3=1

\1-grams:
-1.5	<unk>
-99	<s>	-0.5
-0.7	</s>
-0.4	a	-0.25
-0.9	b	0.125

\2-grams:
-0.2	<s> a	-0.0625
-0.3	a b	-0.5
-0.6	b </s>
-0.45	b a

\3-grams:
-0.1	<s> a b

\end\
"""


def model_of(order, kind=NGramModel, bounded=True):
    return kind(order=order, sentence_boundaries=bounded)


def fitted(order, text=TEXT, **how):
    tokens = WORDS.encode(text)
    counts = count(tokens, order=order, vocab_size=len(WORDS), boundary=1, sentence_boundaries=True)
    return fit(counts, **how)


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def log10_p(content, text):
    """log10 P of each word and line's end, by dictionaries, from the format's definition."""
    grams, order = {}, 0
    for line in content.splitlines():
        if line.endswith("-grams:"):
            order = int(line[1:].split("-")[0])
        elif line.strip() and not line.startswith(("\\", "ngram")):
            fields = line.split()
            bow = float(fields[order + 1]) if len(fields) > order + 1 else 0.0
            grams[tuple(fields[1 : order + 1])] = (float(fields[0]), bow)

    def p(context, word):
        if (*context, word) in grams:
            return grams[*context, word][0]
        return grams.get(context, (0, 0.0))[1] + p(context[1:], word)

    found = []
    for line in text.splitlines():
        known = [word if (word,) in grams else "<unk>" for word in line.split()]
        words = ["<s>", *known, "</s>"]
        for place in range(1, len(words)):
            found.append(p(tuple(words[max(0, place - order + 1) : place]), words[place]))
    return np.array(found)


def scored(arpa, text):
    """log10 P of each token."""
    return -score(arpa.model, arpa.params, arpa.vocabulary, text).nats / math.log(10)


def test_a_file_is_scored_by_its_own_numbers(tmp_path):
    text = "a b\nb a b\n\nc b b\na a a b\n"
    arpa = read_arpa(written(tmp_path / "a", FILE), "a")
    assert arpa.vocabulary.tokens == ("<unk>", "<eos>", "a", "b")
    found, expected = scored(arpa, text), log10_p(FILE, text)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # <s> a b: -0.2; the trigram; after "a b" the weight -0.5, and b </s>.
    np.testing.assert_allclose(found[:3], [-0.2, -0.1, -0.5 - 0.6], rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "how",
    [{}, {"cutoffs": (0, 1)}, {"entropy_threshold": 1e-3}, {"smoothing": "none"}],
    ids=["whole", "cut off", "pruned", "none"],
)
def test_a_model_written_and_read_back_scores_the_same(order, how, tmp_path):
    if order == 1 and how:
        return
    kind = BackoffModel if "entropy_threshold" in how else NGramModel
    model, params = model_of(order, kind), fitted(order, **how)
    path = tmp_path / "a.arpa"
    write_arpa(path, model, params, WORDS)
    content = path.read_text()
    back = read_arpa(str(path), "a")
    assert back.model == model_of(order, BackoffModel)
    assert back.vocabulary == WORDS
    before = score(model, params, WORDS, NEW).nats
    after = score(back.model, back.params, back.vocabulary, NEW).nats
    finite = np.isfinite(before)  # maximum likelihood knows an impossible word, as 10^-99
    np.testing.assert_allclose(after[finite], before[finite], rtol=2e-7, atol=2e-7)
    assert np.all(after[~finite] >= 99 * math.log(10) - 1e-6)
    np.testing.assert_allclose(-after / math.log(10), log10_p(content, NEW), rtol=1e-12)
    write_arpa(tmp_path / "b.arpa.gz", back.model, back.params, back.vocabulary)
    assert gzip.decompress((tmp_path / "b.arpa.gz").read_bytes()).decode() == content
    again = read_arpa(str(tmp_path / "b.arpa.gz"), "b")
    jax.tree.map(np.testing.assert_array_equal, back.params, again.params)


def test_the_file_is_as_kenlm_writes_it(tmp_path):
    """The names and places of <s>, </s> and <unk>, and no weight at the highest order."""
    write_arpa(tmp_path / "a", model_of(2), fitted(2), WORDS)
    lines = (tmp_path / "a").read_text().splitlines()
    sentences = [["<s>", *line.split(), "</s>"] for line in LINES]
    pairs = {" ".join(pair) for line in sentences for pair in itertools.pairwise(line)}
    assert lines[:5] == ["\\data\\", "ngram 1=7", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    ones = [line.split("\t") for line in lines[5:12]]
    assert [fields[1] for fields in ones] == "<unk> <s> </s> the cat é sat".split()
    assert ones[1][0] == ones[2][2] == "0"
    seconds = [line.split("\t") for line in lines[14:-2]]
    assert lines[12:14] == ["", "\\2-grams:"]
    assert {fields[1] for fields in seconds} == pairs
    assert all(len(fields) == 2 for fields in seconds)
    assert lines[-2:] == ["", "\\end\\"]


def test_a_file_without_unk_or_weights_or_with_an_empty_order_is_read(tmp_path):
    text = FILE.replace("ngram 1=5", "ngram 1=4").replace("-1.5\t<unk>\n", "")
    text = text.replace("ngram 3=1\n", "ngram 3=0\n").replace("-0.1\t<s> a b\n", "")
    arpa = read_arpa(written(tmp_path / "a", "# a comment\n\n" + text), "a")
    assert arpa.model.order == 2
    np.testing.assert_allclose(scored(arpa, "zebra\n")[0], -100.5, rtol=1e-12)


def changed(old, new, count=1):
    assert old in FILE
    return FILE.replace(old, new, count)


MISTAKES = {
    "plain text\n": "line 1: \\data\\ is expected here: no ARPA file, it seems",
    "": "line 1: the file ends before \\end\\: it is cut short",
    "\n" + FILE[:27]: "line 5: the file ends before \\end\\: it is cut short",
    FILE[: FILE.index("-0.45")]: "line 17: the file ends before \\end\\: it is cut short",
    FILE[: FILE.index("\\end")]: "line 22: the file ends before \\end\\: it is cut short",
    changed("ngram 2=4", "ngram 3=4"): "line 3: ngram 2=… is expected here",
    changed("ngram 2=4", "ngram 2=x"): "line 3: ngram 2=… is expected here",
    changed("ngram 2=4", "ngram 2=0"): "line 4: there are n-grams without their contexts",
    changed("ngram 2=4", "ngram 2=99999999999999"): "line 18: the 2-grams end after 4 of ",
    changed("ngram 2=4", "ngram 2=3"): "line 17: more 2-grams than the 3 that the head says",
    changed("\\2-grams", "\\3-grams"): "line 13: \\2-grams: is expected here",
    changed("-0.4\ta", "0.4\ta"): "line 10: log10 P is above 0: a probability above 1",
    changed("-0.3\ta b", "0.1\ta b"): "line 15: log10 P is above 0: a probability above 1",
    changed("-0.3\ta b", "nan\ta b"): "line 15: log10 P is no number",
    changed("-0.3\ta b", "x\ta b"): "line 15: 'x' is no number",
    changed("a b\t-0.5", "a b\tinf"): "line 15: the back-off weight is no finite number",
    changed("<s> a b", "<s> a b\t-1"): "line 20: an n-gram of the highest order has no back-off",
    changed("-0.9\tb", "-0.9\ta"): "line 11: 'a' stands twice, first in line 10",
    changed("-0.9\tb", "-0.9\t<UNK>"): "line 11: '<UNK>' stands twice, first in line 7",
    changed("b a\n", "a b\n"): "line 17: 'a b' stands twice, first in line 15",
    changed("b a\n", "b zebra\n"): "line 17: 'zebra' is no 1-gram",
    changed("b a\n", "b <s>\n"): "line 17: <s> stands after another word",
    changed("b a\n", "</s> a\n"): "line 17: </s> stands before another word",
    changed("b a\n", "b a a a\n"): "line 17: a number, 2 words and at most another number are",
    changed("-0.45\tb a\n", "-0.45\tb\n"): "line 17: a number, 2 words and at most another",
    changed("<s> a b", "<s> b b"): "line 20: the context '<s> b' is no 2-gram",
    changed("</s>\n", "<e>\n"): "line 7: the 1-grams have no </s>",
    changed("\ta\t-0.25", "\t<eos>\t-0.25"): "line 10: the word <eos> has the name of a line's end",
    changed("\\end\\", "\\4-grams:"): "line 22: \\end\\ is expected here",
    FILE.encode().replace(b"\tb\t", b"\t\xff\t", 1): "line 11: a word is not UTF-8",
    "\\data\\\n" + "n" * (1 << 20): "line 2: the line is longer than 1 MiB",
}


@pytest.mark.parametrize("content", MISTAKES, ids=MISTAKES.values())
def test_a_mistake_in_a_file_is_told_with_its_line(content, tmp_path):
    path = written(tmp_path / "a", content)
    with pytest.raises(UserError) as caught:
        read_arpa(path, "a.arpa")
    assert str(caught.value).startswith(f"a.arpa: {MISTAKES[content]}")
    assert "\n" not in str(caught.value)


def test_a_packed_file_cut_short_is_told_in_one_line(tmp_path):
    path = written(tmp_path / "a.gz", gzip.compress(FILE.encode())[:-30])
    with pytest.raises(UserError, match=r"^a\.arpa\.gz: a damaged gzip file: "):
        read_arpa(path, "a.arpa.gz")


REFUSED = {
    "holds sentences": lambda: (model_of(2, bounded=False), fitted(2), WORDS),
    "model.smoothing=add-k does not": lambda: (model_of(2), fitted(2, smoothing="add-k"), WORDS),
    "data.tokenizer=byte has others": lambda: (
        model_of(2),
        fitted(2),
        Vocabulary("byte", tuple(map(chr, range(256)))),
    ),
    "a word <s>, which": lambda: (
        model_of(2),
        fitted(2),
        Vocabulary("word", ("<unk>", "<eos>", "<s>")),
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_no_file_can_hold_is_refused_and_leaves_no_file(said, tmp_path):
    with pytest.raises(UserError, match=said):
        write_arpa(tmp_path / "a.arpa", *REFUSED[said]())
    assert not [*tmp_path.iterdir()]


def run_command(words):
    return main.main(words, "python run.py")


def test_a_run_is_exported_and_imported_by_the_commands(tmp_path, capsys):
    run = lm_jax.train(
        Config(data=Data(source=Memory(), tokenizer=Word()), model=NGram(order=3)),
        tmp_path / "run",
        text=(TEXT, TEXT, NEW),
    )
    path, back = tmp_path / "a.arpa.gz", tmp_path / "back"
    assert run_command(["export", str(tmp_path / "run"), str(path)]) == 0
    assert run_command(["import", str(path), str(back)]) == 0
    assert capsys.readouterr().out == f"{path}\n{back}\n"
    other = lm_jax.load_run(back)
    assert other.config.model == NGram(order=3, smoothing="backoff")
    found = score(other.model, other.params, other.vocabulary, NEW).nats
    expected = score(run.model, run.params, run.vocabulary, NEW).nats
    np.testing.assert_allclose(found, expected, rtol=2e-7)
    assert run_command(["export", str(back), str(tmp_path / "b.arpa")]) == 0
    assert (tmp_path / "b.arpa").read_bytes() == gzip.decompress(path.read_bytes())
    for words, said in (
        (["export", str(back), str(path)], f"{path} is there already"),
        (["import", str(path), str(back)], f"{back} holds"),
        (["import", str(path), str(tmp_path / "c"), "--unknown", "x"], "--unknown is read only"),
        (
            ["export", str(back), str(tmp_path / "c.gz")],
            "the name must end in .safet",
        ),
    ):
        capsys.readouterr()
        assert run_command(words) == 2
        assert said in capsys.readouterr().err
