"""Settings: values that check themselves, go to JSON and back, and say what they are."""

import ast
import dataclasses
import hashlib
import inspect
import itertools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny

from lm_jax import config as c
from lm_jax import fields
from lm_jax import settings as s
from lm_jax.config import (
    BPE,
    GRU,
    LSTM,
    RNN,
    TFDS,
    AdamW,
    Builtin,
    Byte,
    Char,
    Config,
    Cosine,
    CustomCell,
    CustomOptimizer,
    Data,
    Datasets,
    Elman,
    Explicit,
    File,
    Group,
    LiveProbe,
    Memory,
    Plateau,
    Train,
    Truncated,
    Window,
    Word,
)
from lm_jax.settings import UserError

CLASSES = [
    value
    for _, value in inspect.getmembers(c, inspect.isclass)
    if dataclasses.is_dataclass(value) and value.__module__.startswith(c.__name__)
]
OTHERS = [
    Config(),
    Config(model=Window(embedding_size=None), seed=2**32 - 1),
    Config(train=Train(clip_norm=math.inf, learning_rate=0.1 + 0.2, schedule=Plateau())),
    Config(train=Train(optimizer=AdamW(weight_decay=1e-300), schedule=Cosine(steps=7))),
    Config(data=Data(source=File(train="a/ü b.txt")), model=RNN(layers=3)),
    Config(
        model=RNN(cell=CustomCell("a.py:b", "0" * 64, {"heads": 2, "gain": 0.5, "f": "tanh"})),
        train=Train(
            optimizer=CustomOptimizer("optax:lion", arguments={"b1": 0.8, "nesterov": True}),
            groups=(
                Group("*W_hh", optimizer=CustomOptimizer("optax:sgd")),
                Group("*b_h", optimizer=None),
                Group("embedding.*", learning_rate=0.0, weight_decay=0.1, optimizer=AdamW()),
            ),
        ),
    ),
]


@pytest.mark.parametrize("config", OTHERS)
def test_json_gives_the_equal_config_back(config):
    text = s.to_json(config)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = s.from_json(Config, text, "there")
    assert again == config
    assert hash(again) == hash(config)
    assert s.digest(again) == s.digest(config)


def test_configs_that_differ_differ_in_their_digest_unless_adjustable():
    base = Config()
    assert s.digest(base) != s.digest(dataclasses.replace(base, seed=1))
    assert s.digest(base) != s.digest(Config(train=Train(learning_rate=0.0030000000000000005)))
    assert s.digest(base) == s.digest(Config(train=Train(steps=9, log_every=1)))


def leaves(config):
    """The numbers of a config by their dotted paths, as a compiled function takes them."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(config)
    }


def test_the_leaves_of_a_config_are_the_numbers_that_change_no_shape():
    config = Config(
        model=RNN(cell=Elman(gain=0.9)),
        train=Train(clip_norm=2.0, schedule=c.Epochs(factor=0.7)),
        seed=5,
    )
    numbers = leaves(config)
    assert numbers["model.cell.gain"] == 0.9
    assert numbers["train.clip_norm"] == 2.0
    assert numbers["train.schedule.factor"] == 0.7
    assert numbers["train.schedule.constant_epochs"] == 4
    assert numbers["seed"] == 5
    assert "train.clip_value" not in numbers  # None is off, and a matter of structure
    assert not any(path.startswith("data.") for path in numbers)


def test_configs_of_equal_structure_differ_in_numbers_only():
    base = tiny.config(train={"clip_norm": 1.0})
    same = tiny.config(train={"clip_norm": 3.0, "learning_rate": 0.5, "steps": 9}, seed=3)
    structure = jax.tree.structure
    assert structure(base) == structure(same)
    assert hash(structure(base)) == hash(structure(same))
    assert structure(base) != structure(tiny.config())  # clip_norm=None
    clipped = {"clip_norm": 1.0}
    assert structure(base) != structure(tiny.config(model=RNN(hidden_size=6), train=clipped))


def test_a_compiled_function_takes_the_numbers_of_a_config_as_arguments():
    traced = []

    @jax.jit
    def read(config):
        traced.append(config)
        numbers = config.train.learning_rate, config.model.cell.gain, config.train.schedule.factor
        assert not any(number.weak_type for number in numbers)
        return *numbers, config.seed

    for rate, seed in ((0.003, 5), (0.5, 2**32 - 1)):
        train = Train(schedule=c.Epochs(), learning_rate=rate, steps=7 + seed % 2)
        assert read(Config(train=train, seed=seed)) == (rate, 1.0, 0.5, seed)
    assert len(traced) == 1


def test_a_function_of_a_config_is_mapped_over_stacked_configs():
    configs = [tiny.config(train={"learning_rate": rate}) for rate in (0.1, 0.2, 0.4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *configs)
    assert jax.vmap(lambda config: config.train.learning_rate)(stacked).tolist() == [0.1, 0.2, 0.4]


def test_a_settings_pytree_is_put_together_again_without_its_adjustable_fields():
    config = Config(train=Train(steps=9, clip_norm=2.0))
    again = jax.tree.map(lambda leaf: leaf, config)
    assert again.train.steps is None
    assert again.train.clip_norm == 2.0
    assert jax.tree.structure(again) == jax.tree.structure(config)


def test_differences_name_each_field_and_pass_over_the_adjustable_ones():
    old, new = Config(), Config(model=Window(), train=Train(steps=9, learning_rate=0.1))
    lines = fields.differences(old, new, adjustable=False)
    assert "train.learning_rate: 0.003 -> 0.1" in lines
    assert "model: rnn -> window" in lines
    assert "model.order: (no such field) -> 5" in lines
    assert not any("steps" in line for line in lines)
    assert "train.steps: 2000 -> 9" in fields.differences(old, new)
    assert fields.differences(old, Config()) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: RNN(hidden_size=-1), "hidden_size=-1: input should be greater than 0"),
        (lambda: RNN(hidden_size=2**31), "hidden_size=2147483648: input should be less than"),
        (lambda: Window(order=10**20), "order=100000000000000000000: input should be less than"),
        (lambda: Train(steps=10**20), "steps=100000000000000000000: input should be less than"),
        (lambda: RNN(hidden_size="9"), "hidden_size='9': input should be a valid integer"),
        (lambda: RNN(hidden_size=(3, 0), layers=2), "hidden_size.1=0: input should be greater"),
        (lambda: RNN(hiden_size=9), "there is no field hiden_size; did you mean 'hidden_size'?"),
        (lambda: RNN(cell="lstm"), "cell='lstm' is LSTM() in a program"),
        (lambda: RNN(cell="lstn"), "cell='lstn': choose from Elman(), LSTM(), GRU(), MinGRU()"),
        (lambda: RNN(cell="lstn"), "CustomCell(); did you mean LSTM()?"),
        (lambda: c.Group(3), "pattern=3: input should be a valid string"),
        (lambda: Window(order=1), "order=1: input should be greater than or equal to 2"),
        (lambda: Train(learning_rate=0.0), "learning_rate=0.0: input should be greater than 0"),
        (lambda: Train(learning_rate=math.nan), "learning_rate=nan: input should be greater"),
        (lambda: c.Adam(eps=1e-300), "eps=1e-300: in float32 it is 0 or infinite"),
        (lambda: RNN(cell=Elman(gain=1e39)), "gain=1e+39: in float32 it is 0 or infinite"),
        (lambda: Plateau(patience=0), "patience=0: input should be greater than 0"),
        (lambda: Config(seed=-1), "seed=-1"),
        (lambda: Config(seed=2**32), "seed=4294967296"),
        (
            lambda: Train(
                probe=LiveProbe(deltas=False, by_lag=False, spectra=False, lyapunov=False)
            ),
            "train.probe=live asks nothing: set one of deltas, by_lag",
        ),
        (lambda: Explicit(k1=3), "there is no field k1"),
        (lambda: Train(gradient=Truncated()), "train.gradient=truncated needs train.gradient.k2"),
        (lambda: Data(source=TFDS()), "data.source=tfds needs data.source.name"),
        (lambda: Data(source=Datasets()), "data.source=datasets needs data.source.folder"),
        (lambda: Data(source=File()), "got none of them"),
        (lambda: Data(source=File(train="a", test="b")), "got train, test"),
        (lambda: Byte(size=9), "there is no field size"),
        (lambda: Char(size=2), "size=2: input should be greater than or equal to 3"),
        (lambda: BPE(size=255), "size=255: input should be greater than or equal to 256"),
        (
            lambda: BPE(size=999, file="a"),
            "data.tokenizer.size is not read with data.tokenizer.file",
        ),
        (
            lambda: Config(model=Window(), train=Train(gradient=Truncated(k2=3))),
            "train.gradient=truncated has no meaning with model=window",
        ),
        (
            lambda: Config(model=Window(), train=Train(gradient=Explicit(clip_delta=3.0))),
            "train.gradient.clip_delta=3.0 has no meaning with model=window",
        ),
        (
            lambda: Config(
                data=Data(batching="sentences", length=4), train=Train(gradient=Truncated(k2=5))
            ),
            "train.gradient.k2=5 does not fit data.batching=sentences with data.length=4",
        ),
        (
            lambda: RNN(dropout=c.RecurrentDropout(zoneout_cell=0.5)),
            "model.dropout.zoneout_cell is read only with model.cell=lstm",
        ),
        (
            lambda: RNN(cell=c.MinGRU(), recurrence="pallas"),
            "model.recurrence=pallas is read only with model.cell=elman or lstm or gru or slstm",
        ),
        (
            lambda: RNN(cell=c.LSTM(layer_norm=True), recurrence="pallas"),
            "model.recurrence=pallas does not go with model.cell.layer_norm=True",
        ),
        (
            lambda: RNN(cell=c.GRU(reset="before"), recurrence="pallas"),
            "model.recurrence=pallas does not go with model.cell.reset=before",
        ),
        (
            lambda: Config(model=RNN(recurrence="pallas"), train=Train(gradient=c.RTRL())),
            "model.recurrence=pallas is read only with train.gradient=explicit or truncated, and",
        ),
        (
            lambda: Config(
                model=RNN(recurrence="pallas"), train=Train(gradient=c.Explicit(clip_delta=1.0))
            ),
            "model.recurrence=pallas is read only with train.gradient=explicit or truncated, and",
        ),
        (
            lambda: RNN(cell=c.Mogrifier(), embedding_size=None),
            "model.cell=mogrifier gates learned vectors: model.embedding_size is None",
        ),
        (
            lambda: RNN(cell=c.Mogrifier(), dropout=c.RecurrentDropout(zoneout=0.5)),
            "model.dropout.zoneout is read only with model.cell=elman or lstm or gru",
        ),
        (
            lambda: Config(model=RNN(cell=c.Mogrifier()), train=Train(gradient=c.SnAp1())),
            "model.cell=mogrifier does not go with train.gradient=snap1",
        ),
        (
            lambda: Config(data=Data(source=c.Adding()), model=RNN(embedding=c.AdaptiveInputs())),
            "model.embedding=adaptive is not read with data.source=adding, which has no words",
        ),
        (lambda: Data(length=8, jitter=4), "data.jitter=4 must be below half of data.length=8"),
        (lambda: Data(batching="sentences", jitter=4), "data.jitter is read only with data.batch"),
        (lambda: Data(jitter=4, window_updates=9), "data.jitter does not go with data.window_up"),
        (
            lambda: Config(data=Data(jitter=4), model=Window()),
            "of different lengths, does not go with model=window",
        ),
        (
            lambda: Config(data=Data(jitter=4), train=Train(gradient=Truncated(k2=5))),
            "of different lengths, does not go with train.gradient=truncated",
        ),
        (
            lambda: Config(data=Data(length=1), model=RNN(change_penalty=2.0)),
            "model.change_penalty=2.0 looks from one step to the next, and data.length=1",
        ),
        (
            lambda: Config(
                model=RNN(change_penalty=2.0), train=Train(gradient=Truncated(k1=1, k2=5))
            ),
            "model.change_penalty=2.0 looks from one step to the next, and train.gradient.k1=1",
        ),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(wrong, said):
    with pytest.raises(UserError) as refusal:
        wrong()
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "there is not JSON"),
        ("[]", "there does not hold settings of version 4"),
        ('{"version": 1}', "there does not hold settings of version 4"),
        (
            '{"version": 4, "model": {"kind": "rnn", "hiden_size": 3}}',
            "there: there is no field model.hiden_size; did you mean 'model.hidden_size'?",
        ),
        (
            '{"version": 4, "train": {"optimizer": {"kind": "adm"}}}',
            "there: train.optimizer='adm': choose from asgd, sgd, momentum",
        ),
        ('{"version": 4, "train": {"steps": 0}}', "there: train.steps=0: input should be greater"),
        (
            '{"version": 4, "train": {"k1": 3}}',
            "there: there is no field train.k1; did you mean 'train.gradient.k1'?",
        ),
        (
            '{"version": 4, "data": {"source": {"kind": "file", "train": 3}}}',
            "there: data.source.train=3: input should be a valid string",
        ),
        (
            '{"version": 4, "train": {"groups": [{"pattern": "*", "optimizer": {"kind": "mom"}}]}}',
            "there: train.groups.0.optimizer='mom': choose from sgd, momentum",
        ),
    ],
)
def test_wrong_json_is_refused_in_one_line_that_names_the_key(text, said):
    with pytest.raises(UserError) as refusal:
        s.from_json(Config, text, "there")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_resolve_fills_in_what_follows_another_field():
    config = Config(
        data=Data(length=9),
        train=Train(steps=70, schedule=Cosine(), gradient=Truncated(k2=3)),
    )
    resolved = c.resolve(config)
    assert resolved.train.schedule == Cosine(steps=70)
    assert resolved.train.gradient.k1 == 9
    assert c.resolve(resolved) == resolved
    assert c.resolve(Config()) == Config(data=Data(source=Builtin(), tokenizer=c.Char()))


def test_alternatives_are_told_apart_by_their_kind():
    assert fields.alternatives(Config, "model") == {
        "window": Window,
        "convolution": c.Convolution,
        "rnn": RNN,
        "ngram": c.NGram,
    }
    assert set(fields.alternatives(Config, "train.schedule")) == {
        "constant",
        "cosine",
        "epochs",
        "plateau",
        "range",
    }
    assert fields.alternatives(Config, "train") == {}
    assert fields.alternatives(Config, "seed") == fields.alternatives(Config, "no.such") == {}


def test_every_field_is_explained():
    """The help text is the string below each field; a field of settings is explained by these."""
    others = {c.custom.Arguments.__name__, c.layouts.KnownCorpus.__name__}
    files = Path(c.__file__).parent.glob("*.py")
    bodies = [ast.parse(file.read_text(encoding="utf-8")).body for file in files]
    classes = [
        node
        for body in bodies
        for node in body
        if isinstance(node, ast.ClassDef) and node.name not in others
    ]
    bases = {own for kind in CLASSES for own in kind.__mro__}
    known = {own.__name__ for own in bases if own.__module__.startswith(c.__name__)}
    assert {node.name for node in classes} == known
    parts = {"data", "model", "train", "schedule", "optimizer", "feeding", "readout", "dropout"}
    parts |= {"probe", "kind"}
    for node in classes:
        for field, after in itertools.pairwise([*node.body, ast.Pass()]):
            if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
                continue
            if field.target.id not in parts:
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert explained, f"{node.name}.{field.target.id}"


def home(kind, name):
    """The class that a class has a field from."""
    bases = reversed(kind.__mro__)
    return next(b for b in bases if name in vars(b).get("__annotations__", ())).__name__


def recorded(monkeypatch):
    """The fields that are read from here on, by anything but the settings' own machinery."""
    read = set()
    own = {str(file) for file in Path(c.__file__).parent.glob("*.py")} | {s.__file__}
    for kind in CLASSES:
        names = {field.name for field in dataclasses.fields(kind)}

        def get(self, name, kind=kind, names=names):
            if name in names and inspect.currentframe().f_back.f_code.co_filename not in own:
                read.add((home(kind, name), name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", get)
    return read


@pytest.mark.slow
def test_each_field_is_read_somewhere(monkeypatch, tmp_path):
    """No option is parsed and ignored. What is compiled is traced only, which is enough to read."""
    from lm_jax.data import corpus, sources
    from lm_jax.training import loop, step, trainer

    pieces = sources.splits(Memory(), "char", tiny.TEXT)
    monkeypatch.setattr("lm_jax.data.tfds.tfds_splits", lambda name, key: pieces)
    monkeypatch.setattr(sources, "table_splits", lambda folder, key: pieces)
    (tmp_path / "a.txt").write_text(tiny.TEXT)
    own = tmp_path / "own.py"
    own.write_text("import flax.linen\n\ncell = flax.linen.SimpleCell\n")
    known = hashlib.sha256(own.read_bytes()).hexdigest()
    (tmp_path / "vectors.txt").write_text("t 1 2 3 4\n")
    small = {"embedding_size": 4, "hidden_size": 4}
    noise = {"inputs": 0.1, "between": 0.1, "outputs": 0.1, "embedding": 0.1, "locked": True}
    groups = (Group("*W_xh", learning_rate=0.1, weight_decay=0.1, optimizer=c.SGD()),)
    runs = [
        tiny.config(train={"optimizer": optimizer, "schedule": schedule, **more}, model=model)
        for optimizer, schedule, more, model in [
            (
                c.SGD(),
                c.Constant(),
                {"clip_norm": 1.0, "clip_value": 1.0, "weight_decay": 0.1},
                Window(skip_connections=True, layers=2, dropout=c.Dropout(**noise)),
            ),
            (
                c.Momentum(),
                c.Epochs(),
                {"gradient": Truncated(k1=4, k2=9)},
                RNN(**small, cell=LSTM(), readout=c.NoiseContrastive(samples=4)),
            ),
            (
                c.Adam(),
                c.Plateau(),
                {"gradient": Explicit(clip_delta=1.0), "feeding": c.ScheduledSampling(steps=4)},
                RNN(
                    **small,
                    layers=2,
                    cell=GRU(),
                    activation_penalty=0.1,
                    change_penalty=0.1,
                    dropout=c.RecurrentDropout(recurrent=0.1, zoneout=0.1),
                ),
            ),
            (
                c.AdamW(),
                c.Cosine(steps=9),
                {"gradient": c.ARTBP(cut_rate=0.1), "accumulate": 2, "ema_decay": 0.9},
                RNN(**small, uniform=0.1, readout=c.SampledSoftmax(samples=4)),
            ),
            (
                c.RMSprop(),
                c.Constant(),
                {},
                RNN(**small, readout=c.AdaptiveSoftmax(cutoffs=(2, 4))),
            ),
            (c.Adan(), c.Constant(), {"groups": groups}, RNN(**small, cell=c.LRU())),
            (
                c.Adafactor(),
                c.Constant(),
                {"omega": 0.1},
                RNN(**small, cell=c.Mogrifier(rank=2), embedding=c.AdaptiveInputs(cutoffs=(2, 4))),
            ),
            (c.Lion(), c.Constant(), {"flossing": 0.1, "flossing_exponents": 2}, RNN(**small)),
            (c.Muon(), c.Constant(), {}, RNN(**small, block=c.GLUBlock())),
            (
                c.Adam(),
                c.RangeTest(steps=9),
                {},
                RNN(**small, cell=c.MLSTM(heads=2), block=c.MLPBlock()),
            ),
            (
                CustomOptimizer("optax:sgd"),
                c.Constant(),
                {},
                Window(readout=c.MixtureOfSoftmaxes()),
            ),
            (c.ASGD(), c.Constant(), {}, c.Convolution(**small, width=2)),
            (
                c.SGD(),
                c.Constant(),
                {},
                RNN(**small, cell=CustomCell(f"{own}:cell", sha256=known)),
            ),
        ]
    ]
    read = recorded(monkeypatch)
    for config in runs:
        jax.clear_caches()  # which would hide what tracing reads
        state = step.init.eval_shape(config, 9)
        text = corpus.load(config.data, tiny.TEXT)
        source, _ = trainer.pipeline_of(config, text).at(0)
        step.run_until.eval_shape(config, state, source, 1, 9)
        step.after_validation.eval_shape(config, state, jnp.zeros(()))
    corpus.load(Data(source=TFDS(name="any")))
    corpus.load(Data(source=Datasets(folder="any")))
    for task in (c.Copy(symbols=7, items=2), c.Memorisation(symbols=7, items=2)):
        corpus.load(Data(source=task, length=9))
    corpus.load(Data(source=c.Permutation(symbols=7), length=9))
    markov = c.Markov(symbols=7, order=1, sharpness=0.7, characters=900, seed=7)
    corpus.load(Data(source=markov))
    corpus.load(Data(source=File(train=str(tmp_path / "a.txt")), tokenizer=Word()))
    corpus.load(Data(source=Memory(), tokenizer=BPE()), tiny.TEXT)
    vectors = {
        "vectors": str(tmp_path / "vectors.txt"),
        "init_from": str(tmp_path / "first"),
        "init_parts": ("layers.*",),
    }
    plain = tiny.config(train={"steps": 1}, model=RNN(**small))
    loop.train(plain, tmp_path / "first", text=tiny.TEXT)
    for rule in (c.RestoreCheckpoint(limit=1), c.SkipBatch(limit=2)):
        wild = {"steps": 4, "learning_rate": 1e308, "checkpoint_every": 1, "on_divergence": rule}
        loop.train(
            tiny.config(train=wild, model=RNN(**small)), tmp_path / rule.kind, text=tiny.TEXT
        )
    model = RNN(**small, **vectors)
    probed = tiny.config(train={"steps": 1, "probe": c.LiveProbe(every=1)}, model=model)
    loop.train(probed, tmp_path / "run", text=tiny.TEXT)
    words = {"source": Memory(), "tokenizer": Word(), "batch_size": 1, "length": 4}
    characters = c.CharacterInputs(character_size=2, widths=(1, 2), filters=(2, 3))
    spelt = RNN(**small, embedding=characters)
    spelt = Config(data=Data(**words), model=spelt, train=Train(steps=1))
    loop.train(spelt, tmp_path / "words", text=tiny.TEXT)
    counted = Config(data=Data(source=Memory()), model=c.NGram(order=2, smoothing="add-k", k=0.1))
    loop.train(counted, tmp_path / "counted", text=tiny.TEXT)
    known_fields = {
        (home(kind, field.name), field.name)
        for kind in CLASSES
        for field in dataclasses.fields(kind)
    }
    unread = known_fields - read
    # Which alternative a `kind` names is told by its class; a file's SHA-256 tells runs apart.
    assert {name for _, name in unread} <= {"kind", "sha256", "vectors_sha256"}
