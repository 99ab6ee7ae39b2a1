"""Generated data: what each task asks, at what chance, and that training on it is training."""

import itertools
import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import lm_jax
from lm_jax import generation, gradients, models, scoring
from lm_jax.config import (
    RNN,
    Adding,
    Char,
    Config,
    Convolution,
    Copy,
    Data,
    Dropout,
    Markov,
    Memorisation,
    Multiplication,
    NGram,
    Permutation,
    RecurrentDropout,
    SampledSoftmax,
    ScheduledSampling,
    TemporalOrder,
    Train,
    Truncated,
    Window,
    Word,
    override,
)
from lm_jax.data import batch_at, load, markov, tasks
from lm_jax.settings import UserError
from lm_jax.sweeps import plan
from lm_jax.training import journal

SEQUENCES = 4000
TASKS = {
    "temporal-order": (TemporalOrder(), 20),
    "adding": (Adding(), 20),
    "multiplication": (Multiplication(), 7),
    "copy": (Copy(symbols=4, items=3), 9),
    "memorisation": (Memorisation(symbols=2, items=2), 5),
    "permutation": (Permutation(symbols=6), 4),
}


@pytest.fixture(scope="module")
def drawn():
    """A large batch of every task, in NumPy."""
    return {
        name: jax.tree.map(
            np.asarray, jax.jit(tasks.task(config, SEQUENCES, T).batch)(jax.random.key(7), 3)
        )
        for name, (config, T) in TASKS.items()
    }


def answer_of(name, x):
    """What is asked for at the end of one sequence, from its inputs alone, and how many answers."""
    T = len(x)
    if name == "temporal-order":
        places = [t for t in range(T) if x[t] in (0, 1)]
        assert len(places) == 2
        assert T // 10 <= places[0] < 2 * (T // 10)
        assert T // 2 <= places[1] < T // 2 + T // 10
        assert all(x[t] in (0, 1, 2, 3, 4, 5) for t in range(T))
        return [{(0, 0): 6, (0, 1): 7, (1, 0): 8, (1, 1): 9}[tuple(x[t] for t in places)]]
    if name in ("adding", "multiplication"):
        numbers, marks = x[:, 0], x[:, 1]
        places = np.flatnonzero(marks)
        assert set(marks) == {0.0, 1.0}
        assert places[0] < max(T // 10, 1) <= places[1] < T // 2
        a, b = numbers[places]
        assert 0 <= numbers.min()
        assert numbers.max() < 1
        return [a + b if name == "adding" else a * b]
    if name == "permutation":
        assert x[0] in (0, 1)
        assert np.all(x[1:] >= 2)
        assert np.all(x < 6)
        return [x[0]]
    symbols, items = (4, 3) if name == "copy" else (2, 2)
    assert np.all(x[:items] < symbols)
    gap = [symbols] * (T - 2 * items - 1)
    assert list(x[items:]) == [*gap, symbols + 1, *[symbols] * items]
    return list(x[:items])


@pytest.mark.parametrize("name", TASKS)
def test_the_targets_follow_from_the_inputs(name, drawn):
    batch = drawn[name]
    assert batch.start.all()
    for lane in range(200):
        answers = answer_of(name, batch.x[:, lane])
        asked = batch.mask[:, lane]
        assert list(np.flatnonzero(asked)) == list(range(len(asked) - len(answers), len(asked)))
        np.testing.assert_allclose(batch.y[asked, lane], answers, rtol=1e-15)


@pytest.mark.parametrize("name", TASKS)
def test_shorter_sequences_are_the_task_and_then_ask_for_nothing(name):
    """Of every length that there is room for, by one compiled program."""
    config, T = TASKS[name]
    read = jax.jit(tasks.task(config, 50, 2 * T + 1).batch)
    for length in (T, T + 1, 2 * T, 2 * T + 1):
        batch = jax.tree.map(np.asarray, read(jax.random.key(7), 3, length))
        assert not batch.mask[length:].any()
        for lane in range(50):
            answers = answer_of(name, batch.x[:length, lane])
            asked = np.flatnonzero(batch.mask[:, lane])
            assert list(asked) == list(range(length - len(answers), length))
            np.testing.assert_allclose(batch.y[asked, lane], answers, rtol=1e-15)
    assert read._cache_size() == 1


@pytest.mark.slow
def test_the_room_after_a_sequence_changes_no_gradient():
    model = tiny.rnn(cell="gru", embedding_size=None)
    params = tiny.moved(model.init(jax.random.key(0)))
    whole = tasks.task(Permutation(symbols=tiny.V), 4, 9).batch(jax.random.key(1), 0, 6)
    cut = jax.tree.map(lambda leaf: leaf[:6] if leaf.ndim == 2 else leaf, whole)
    estimate = jax.jit(gradients.full_bptt(model))
    carry = model.init_carry(4)
    (loss, _, grads, _), (other, _, others, _) = (estimate(params, carry, b) for b in (whole, cut))
    np.testing.assert_allclose(loss, other, rtol=1e-13)
    tiny.assert_trees_close(grads, others)


@pytest.mark.slow
def test_trials_of_several_lengths_are_lanes_of_one_program(tmp_path):
    """Each is what the run of that length is alone."""
    base = Config(
        data=Data(source=Copy(symbols=3, items=2), length=9, batch_size=4),
        model=RNN(embedding_size=None, hidden_size=5),
        train=Train(steps=20, validate_every=10, log_every=10, checkpoint_every=20),
    )
    points = {f"L={steps}": {"data.source.length": steps} for steps in (5, 7, 9)}
    (group,) = plan(base, points).groups
    assert group.vectorised
    rows = lm_jax.sweep(base, points, tmp_path / "sweep")
    for row in rows:
        alone = lm_jax.train(override(base, row["point"]), tmp_path / row["name"]).result
        np.testing.assert_allclose(row["test"], alone["splits"]["test"]["nats"], rtol=1e-9)
    assert len({row["test"] for row in rows}) == 3


@pytest.mark.parametrize(
    ("length", "why"),
    [
        (4, "data.source.length=4 is too short"),
        (10, "data.source.length=10 is more than data.length"),
    ],
)
def test_a_length_that_does_not_fit_is_refused(length, why):
    with pytest.raises(UserError, match=why):
        Data(source=Copy(symbols=3, items=2, length=length), length=9)


@pytest.mark.parametrize("name", TASKS)
def test_chance_is_the_loss_of_the_best_predictor_without_memory(name, drawn):
    """It may see the step and its input; of answers that are even, all that does not help it."""
    config, T = TASKS[name]
    task, batch = tasks.task(config, SEQUENCES, T), drawn[name]
    if task.real:
        x, y = batch.x[-1], batch.y[-1]
        assert np.all(x[:, 1] == 0)
        errors = (y - y.mean()) ** 2
        assert abs(errors.mean() - task.chance) < 4 * errors.std() / math.sqrt(SEQUENCES)
        assert abs(np.corrcoef(x[:, 0], y)[0, 1]) < 4 / math.sqrt(SEQUENCES)
        return
    for t in np.flatnonzero(batch.mask.all(axis=1)):
        pairs = np.zeros((len(task.symbols),) * 2)
        np.add.at(pairs, (batch.x[t], batch.y[t]), 1)
        p = pairs / SEQUENCES
        rows = p.sum(axis=1, keepdims=True)
        shares = np.where(p > 0, p / np.where(rows > 0, rows, 1), 1)
        found = -np.sum(p * np.log(shares))
        # Fitted shares look better than they are, by half a nat a cell over the sequences.
        assert task.chance - np.sum(pairs > 0) / SEQUENCES < found <= task.chance + 1e-12


@pytest.mark.quick("copy")
@pytest.mark.parametrize("name", ["copy", "adding"])
def test_a_batch_is_a_function_of_the_key_and_the_step_alone(name):
    config, T = TASKS[name]
    task = tasks.task(config, 3, T)
    assert tasks.task(config, 3, T) is task  # or every run would compile anew
    one = task.batch(jax.random.key(1), 5)
    tiny.assert_trees_equal(one, jax.jit(task.batch)(jax.random.key(1), jnp.asarray(5)))
    tiny.assert_trees_equal(one, batch_at(task, 5, T, jax.random.key(1)))
    steps = jax.vmap(task.batch, (None, 0))(jax.random.key(1), jnp.arange(7))
    tiny.assert_trees_equal(one, jax.tree.map(lambda a: a[5], steps))
    for other in (task.batch(jax.random.key(1), 6), task.batch(jax.random.key(2), 5)):
        assert not np.array_equal(other.x, one.x)
    for a, b in itertools.combinations(range(3), 2):
        assert not np.array_equal(one.x[:, a], one.x[:, b])


def test_held_out_sequences_are_the_same_for_every_batch_size_and_are_never_trained_on():
    data = Data(source=Adding(), length=20, batch_size=3)
    validation = [read() for read in tasks.held_out(data, "validation")]
    test = [read() for read in tasks.held_out(data, "test")]
    other = [read() for read in tasks.held_out(Data(source=Adding(), length=20), "validation")]
    tiny.assert_trees_equal(validation, other)
    sets = [{float(n) for batch in split for n in batch.x[0, :, 0]} for split in (validation, test)]
    assert len(sets[0]) == len(sets[1]) == 1000
    assert not sets[0] & sets[1]


def test_a_sequence_is_right_when_all_that_is_asked_for_is():
    task = tasks.task(*[TASKS["copy"][0], 3, 9])
    batch = task.batch(jax.random.key(0), 0)
    said = jax.nn.one_hot(batch.y, 6, dtype=float)
    wrong = said.at[-1, 1].set(jnp.roll(said[-1, 1], 1)).at[0, 2].set(jnp.roll(said[0, 2], 1))
    assert task.right(said, batch).tolist() == [True] * 3
    assert task.right(wrong, batch).tolist() == [True, False, True]
    adding = tasks.task(Adding(), 3, 20)
    batch = adding.batch(jax.random.key(0), 0)
    off = batch.y + jnp.broadcast_to(jnp.array([[0.0399, -0.0401, jnp.nan]]), batch.y.shape)
    assert adding.right(off[..., None], batch).tolist() == [True, False, False]


def test_real_inputs_stand_where_the_one_hot_vectors_stood():
    """Numbers that are one-hot make the hidden states of the tokens, with and without a table."""
    x = jnp.array([[0, 1], [1, 1], [0, 0]])
    for size in (None, 4):
        config = RNN(embedding_size=size, hidden_size=5)
        tokens, real = models.make(config, 2), models.make(config, 2, regression=True)
        params = real.init(jax.random.key(0))
        carry = real.init_carry(2)
        same = tokens.hidden(params, carry, x)
        tiny.assert_trees_close(
            same, real.hidden(params, carry, jax.nn.one_hot(x, 2, dtype=float)), 1e-14
        )
        h, y = same[1], jnp.full((3, 2), 0.5)
        predicted = h @ params["readout"]["W_hy"][:, 0] + params["readout"]["b_y"][0]
        np.testing.assert_allclose(real.nats(params, h, y), (predicted - 0.5) ** 2, rtol=1e-13)
        np.testing.assert_allclose(real.logits(params, h)[..., 0], predicted, rtol=1e-13)


RUN = {"steps": 6, "validate_every": 4, "checkpoint_every": 5, "log_every": 3}
CELL = RNN(embedding_size=None, hidden_size=5)
RUNS = {
    "copy": Config(
        data=Data(source=Copy(symbols=4, items=3), length=9, batch_size=3),
        model=CELL,
        train=Train(**RUN, omega=1.0),
    ),
    "adding": Config(
        data=Data(source=Adding(), length=20, batch_size=3),
        model=RNN(embedding_size=4, hidden_size=5),
        train=Train(**RUN, gradient=Truncated(k2=6)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_task_resumes_bit_for_bit_and_tells_its_success(name, tmp_path):
    config = RUNS[name]
    whole = lm_jax.train(config, tmp_path / "whole")

    def stop(step, row):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        lm_jax.train(config, tmp_path / "parts", watch=stop)
    parts = lm_jax.train(config, tmp_path / "parts")
    tiny.assert_trees_equal(whole.params, parts.params)
    assert parts.result["splits"] == whole.result["splits"]
    for split in ("validation", "test"):
        row = whole.result["splits"][split]
        task = tasks.task_of(config.data)
        assert row["chance"] == task.chance
        assert row["sequences"] == 1000
        assert row["tokens"] == 1000 * (3 if name == "copy" else 1)
        loss, right = brute_force(whole, split)
        np.testing.assert_allclose(row["nats"], loss, rtol=1e-10)
        assert row["success"] == right
        assert row["perplexity"] == (None if name == "adding" else math.exp(row["nats"]))
    rows = journal.read_rows(tmp_path / "parts" / "metrics.jsonl")
    assert [row["step"] for row in rows if "success" in row] == [4, 6]
    assert all(row["tokens"] % 3 == 0 for row in rows if row["kind"] == "train")
    symbols = json.loads((tmp_path / "parts" / "vocabulary.json").read_text())["tokens"]
    assert symbols == (
        ["number", "mark"] if name == "adding" else ["0", "1", "2", "3", "blank", "cue"]
    )


def brute_force(run, split):
    """The mean loss and the share of right sequences, one sequence after another."""
    losses, right = [], []
    for read in tasks.held_out(run.config.data, split):
        batch = read()
        _, h = run.model.hidden(run.params, run.model.init_carry(batch.mask.shape[1]), batch.x)
        said = np.asarray(run.model.logits(run.params, h))
        for lane, t in itertools.product(range(said.shape[1]), range(said.shape[0])):
            if not batch.mask[t, lane]:
                continue
            z, y = said[t, lane], np.asarray(batch.y)[t, lane]
            if run.config.data.regression:
                losses.append((z[0] - y) ** 2)
                good = abs(z[0] - y) < 0.04
            else:
                losses.append(np.log(np.sum(np.exp(z))) - z[y])
                good = np.argmax(z) == y
            if t == np.flatnonzero(batch.mask[:, lane])[0]:
                right.append(True)
            right[-1] = bool(right[-1] and good)
    return np.mean(losses), np.mean(right)


@pytest.mark.slow
def test_a_task_s_model_neither_scores_nor_samples(tmp_path):
    run = lm_jax.train(RUNS["copy"], tmp_path / "run")
    trained = (run.model, run.params, run.vocabulary)
    with pytest.raises(UserError, match="a model of a task reads no text"):
        generation.sample(*trained, length=5)
    with pytest.raises(UserError, match="a model of a task reads no text"):
        scoring.score(*trained, "0 1 2")
    with pytest.raises(UserError, match=r"text is read only with data\.source=memory, not copy"):
        lm_jax.train(RUNS["copy"], tmp_path / "other", text="abc")
    changed = override(RUNS["copy"], {"data.length": 10})
    with pytest.raises(UserError, match=r"data\.length: 9 -> 10"):
        lm_jax.train(changed, tmp_path / "run")


CHAIN = Markov(symbols=3, order=2, sharpness=1.5, characters=60_000)


def test_the_entropy_rate_is_the_limit_of_the_entropy_of_the_next_symbol():
    """From an even start, the distribution of contexts is followed context by context."""
    found = markov.chain(CHAIN)
    contexts = list(itertools.product(range(3), repeat=2))
    rows = {context: found.table[3 * context[0] + context[1]] for context in contexts}
    here = dict.fromkeys(contexts, 1 / 9)
    for _ in range(300):
        there = dict.fromkeys(contexts, 0.0)
        for (old, new), share in here.items():
            for symbol in range(3):
                there[new, symbol] += share * rows[old, new][symbol]
        here = there
    entropy = -sum(here[c] * p * math.log(p) for c in contexts for p in rows[c])
    assert found.entropy_rate == pytest.approx(entropy, rel=1e-12)
    np.testing.assert_allclose(found.stationary, [here[c] for c in contexts], rtol=1e-10)
    even = markov.chain(Markov(symbols=5, order=1, sharpness=0.0))
    assert even.entropy_rate == pytest.approx(math.log(5), rel=1e-14)


def test_the_text_costs_the_true_model_its_entropy_rate():
    found, text = markov.chain(CHAIN), markov.symbols(CHAIN)
    contexts = 3 * text[:-2] + text[1:-1]
    nats = -np.log(found.table[contexts, text[2:]])
    blocks = nats[: len(nats) // 100 * 100].reshape(100, -1).mean(axis=1)
    assert abs(nats.mean() - found.entropy_rate) < 4 * blocks.std() / math.sqrt(100)
    np.testing.assert_allclose(
        np.bincount(contexts, minlength=9) / len(contexts), found.stationary, atol=0.01
    )


@pytest.mark.slow
def test_a_markov_source_is_a_text_like_any_other_with_a_floor(tmp_path):
    data = Data(source=CHAIN, batch_size=4, length=16)
    corpus = load(data)
    assert set(corpus.vocabulary.tokens) == {"<unk>", "\n", "a", "b", "c"}
    assert len(corpus.train.tokens) == 54_000
    model = NGram(order=3, smoothing="add-k", k=0.01, sentence_boundaries=False)
    counted = lm_jax.train(Config(data=data, model=model), tmp_path / "n-gram")
    floor = counted.result["entropy_rate"]
    assert floor == markov.chain(CHAIN).entropy_rate
    test = counted.result["splits"]["test"]["nats"]
    assert floor - 0.05 < test < floor + 0.05
    assert generation.sample(counted.model, counted.params, counted.vocabulary, length=5)
    train = Train(**{**RUN, "steps": 2})
    trained = lm_jax.train(Config(data=data, model=CELL, train=train), tmp_path / "rnn").result
    assert trained["entropy_rate"] == floor
    assert "success" not in trained["splits"]["test"]


SENTENCES = {"batching": "sentences", "length": 64}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda: Data(source=Copy(), length=20),
            "data.length=20 is too short for data.source=copy, which takes 21 steps or more",
        ),
        (
            lambda: Data(source=TemporalOrder(), length=9),
            "data.source=temporal-order, which takes 10",
        ),
        (
            lambda: Data(source=Permutation(), length=1),
            "data.source=permutation, which takes 2 steps",
        ),
        (
            lambda: Data(source=Adding(), length=3),
            "data.length=3 is too short for data.source=adding",
        ),
        (lambda: Data(source=Multiplication(), length=3), "takes 4 steps or more"),
        (lambda: Data(source=Memorisation(), length=20), "takes 21 steps or more"),
        (
            lambda: Data(source=Copy(), tokenizer=Word()),
            "data.tokenizer=word is not read with data.source=copy, which is no text",
        ),
        (
            lambda: Data(source=Adding(), tokenizer=Char(min_count=2)),
            "data.tokenizer.min_count=2 is not read with",
        ),
        (lambda: Data(source=Markov(), **SENTENCES), "data.batching=sentences is not read with"),
        (lambda: Copy(symbols=1), "symbols=1: input should be greater than or equal to 2"),
        (lambda: Markov(symbols=9, order=4), "data.source.order=4 make 6,561 contexts; 4,096 are"),
        (lambda: Config(data=Data(source=Copy()), model=NGram()), "data.source=copy is none"),
        (
            lambda: Config(data=Data(source=Copy()), train=Train(gradient=Truncated(k2=65))),
            "train.gradient.k2=65 does not fit data.source=copy with data.length=64: a sequence is",
        ),
        (
            lambda: Config(data=Data(source=Copy()), train=Train(feeding=ScheduledSampling())),
            "train.feeding=own is not read with data.source=copy",
        ),
        (lambda: Config(data=Data(source=Copy()), model=RNN(vectors="a")), "are no words"),
        (
            lambda: Config(data=Data(source=Adding()), model=Window()),
            "data.source=adding reads real numbers, which model=window does not",
        ),
        (lambda: Config(data=Data(source=Adding()), model=Convolution()), "take model=rnn"),
        (
            lambda: Config(
                data=Data(source=Multiplication()), model=RNN(readout=SampledSoftmax(samples=1))
            ),
            "model.readout is not read with data.source=multiplication",
        ),
        (
            lambda: Config(
                data=Data(source=Adding()), model=RNN(dropout=RecurrentDropout(embedding=0.1))
            ),
            "model.dropout.embedding is not read with data.source=adding",
        ),
    ],
)
def test_mistakes_are_told(wrong, said):
    with pytest.raises(UserError) as caught:
        wrong()
    assert said in str(caught.value)


def test_a_task_is_a_source_by_its_name():
    config = override(Config(), {"data.source": "copy", "data.source.items": 4})
    assert config.data.source == Copy(items=4)
    assert override(config, {"data.source": "adding"}).data.source == Adding()
    assert lm_jax.settings.from_json(Config, lm_jax.settings.to_json(config), "there") == config
    window = Config(data=Data(source=Copy()), model=Window(dropout=Dropout(embedding=0.1)))
    assert window.data.generated
