"""What those type who know other libraries, and the flag, field or value that is answered."""

from pathlib import Path

import pytest
import tiny

from lm_jax.commands.completion import completion_command
from lm_jax.commands.export import export
from lm_jax.commands.flags import Flags, own_flags
from lm_jax.commands.import_ import import_
from lm_jax.commands.lecture import lecture
from lm_jax.commands.lists import compare, list_experiments
from lm_jax.commands.mistakes import mistake
from lm_jax.commands.parser import parse
from lm_jax.commands.probe import probe
from lm_jax.commands.report import report
from lm_jax.commands.sample import sample
from lm_jax.commands.score import score
from lm_jax.commands.sweep import sweep_command
from lm_jax.commands.train import train_command
from lm_jax.commands.verify import verify_command
from lm_jax.config import RNN, Config, Data, Group, Momentum, Train, override
from lm_jax.fields import CODE, alternatives, paths, words_at
from lm_jax.settings import UserError, from_json
from lm_jax.sweeps import lanes, plan
from lm_jax.sweeps.executors import executor_called
from lm_jax.synonyms import (
    COMMANDS,
    ELSEWHERE,
    FLAG_VALUES,
    FLAGS,
    NOTES,
    SETTINGS,
    VALUES,
    assigned,
    plainly,
)


def refusal(action):
    with pytest.raises(UserError) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def answered(words):
    return refusal(lambda: parse(words.split(), "python run.py"))


CELLS = alternatives(Config, "model.cell")

TYPED = {
    # With another group, or none.
    "train quickstart --train.lr 0.1": "--train.learning-rate 0.1",
    "train quickstart --train.lr=0.1": "--train.learning-rate 0.1",
    "train quickstart --lr 0.1": "--train.learning-rate 0.1",
    "train quickstart --model.lr 0.1": "--train.learning-rate 0.1",
    "train quickstart -lr 0.1": "--train.learning-rate 0.1",
    "train quickstart --batch-size 20": "--data.batch-size 20",
    "train quickstart --batch_size 20": "--data.batch-size 20",
    "train quickstart --epochs 3": "--train.epochs 3",
    "train quickstart --model.epochs 3": "--train.epochs 3",
    "train quickstart --Seed 3": "--seed 3",
    "train quickstart --train.run-dir a": "--run-dir a",
    # PyTorch's word_language_model and nn modules.
    "train quickstart --model LSTM": "--model.cell lstm",
    "train quickstart --emsize 200": "--model.embedding-size 200",
    "train quickstart --nhid 200": "--model.hidden-size 200",
    "train quickstart --hidden 200": "--model.hidden-size 200",
    "train quickstart --model.num-layers 2": "--model.layers 2",
    "train quickstart --nlayers 2": "--model.layers 2",
    "train quickstart --clip 0.25": "--train.clip-norm 0.25",
    "train quickstart --bptt 35": "--data.length 35",
    "train quickstart --dropout 0.2": "--model.dropout.outputs 0.2",
    "train quickstart --tied": "--model.readout.tied",
    "train quickstart --log-interval 200": "--train.log-every 200",
    "train quickstart --save out": "--run-dir out",
    "train quickstart --data penn": "--data.source file --data.source.train penn",
    "train quickstart --nonlinearity relu": "--model.cell.activation relu",
    # The AWD-LSTM.
    "train quickstart --dropouth 0.2": "--model.dropout.between 0.2",
    "train quickstart --dropouti 0.2": "--model.dropout.inputs 0.2",
    "train quickstart --wdrop 0.5": "--model.dropout.recurrent 0.5",
    "train quickstart --wdecay 1e-6": "--train.weight-decay 1e-6",
    "train quickstart --alpha 2": "--model.activation-penalty 2",
    "train quickstart --nonmono 5": "--train.optimizer asgd --train.optimizer.patience 5",
    # Keras.
    "train quickstart --units 64": "--model.hidden-size 64",
    "train quickstart --recurrent-dropout 0.1": "--model.dropout.recurrent 0.1",
    "train quickstart --optimizer Adam": "--train.optimizer adam",
    "train quickstart --optimizer adam": "--train.optimizer adam",
    "train quickstart --clipnorm 1": "--train.clip-norm 1",
    "train quickstart --use-bias False": "--model.readout.no-bias",
    "train quickstart --num-words 100": "--data.tokenizer.size 100",
    # nanoGPT, Flax, Optax.
    "train quickstart --n_embd 64": "--model.embedding-size 64",
    "train quickstart --n_layer 2": "--model.layers 2",
    "train quickstart --block_size 64": "--data.length 64",
    "train quickstart --max_iters 100": "--train.steps 100",
    "train quickstart --adam-beta1 0.8": "--train.optimizer.beta1 0.8",
    "train quickstart --beta2 0.99": "--train.optimizer.beta2 0.99",
    "train quickstart --grad_clip 1": "--train.clip-norm 1",
    "train quickstart --out runs/a": "--run-dir runs/a",
    "train quickstart --eval_interval 10": "--train.validate-every 10",
    "train quickstart --dtype bfloat16": "--model.precision bfloat16",
    "train quickstart --remat": "--train.gradient.recompute sqrt",
    # What another alternative brings.
    "train quickstart --momentum 0.9": "--train.optimizer momentum --train.optimizer.momentum 0.9",
    "train quickstart --nesterov": "--train.optimizer momentum --train.optimizer.nesterov",
    "train quickstart --warmup-iters 9": "--train.schedule.warmup-steps 9",
    "train quickstart --kernel-size 5": "--model convolution --model.width 5",
    "train quickstart --tbptt 70": "--train.gradient truncated --train.gradient.k2 70",
    "train quickstart --model window --cell lstm": "--model rnn --model.cell lstm",
    # Values.
    "train quickstart --model cnn": "--model convolution",
    "train quickstart --model bigram": "--model ngram --model.order 2",
    "train quickstart --cell lstm": "--model.cell lstm",
    "train quickstart --model.cell rnn": "--model.cell elman",
    "train quickstart --model.cell LSTM": "--model.cell lstm",
    "train quickstart --model.cell cnn": "--model convolution",
    "train quickstart --train.optimizer Adam": "--train.optimizer adam",
    "train quickstart --train.optimizer adm": "--train.optimizer adam",
    "train quickstart --train.optimizer cosine": "--train.schedule cosine",
    "train quickstart --train.schedule StepLR": "--train.schedule epochs",
    "train quickstart --data.tokenizer words": "--data.tokenizer word",
    "train quickstart --data.tokenizer chars": "--data.tokenizer char",
    "train quickstart --data.tokenizer characters": "--data.tokenizer char",
    "train quickstart --tokenizer words": "--data.tokenizer word",
    "train quickstart --task Copy": "--data.source copy",
    "train quickstart --train.gradient bptt": "--train.gradient explicit",
    "train quickstart --model.readout.tied true": "--model.readout.tied",
    "train quickstart --model.readout.tied=False": "--model.readout.no-tied",
    # Letters, too.
    "train quickstart --model.hiden-size 3": "--model.hidden-size 3",
    "train quickstart --train.learning-rte 3": "--train.learning-rate 3",
    "train quickstart --embeding-dim 3": "--model.embedding-size 3",
    "train quickstart --no-model.readout.tied": "--model.readout.no-tied",
    "train quickstart --no-dropout": "--model.dropout.outputs None",
    "train quickstart --factor 0.5": "--train.schedule epochs --train.schedule.factor 0.5",
    "train quickstart --train.learning-rte=-inf": "--train.learning-rate -inf",
    "train quickstart --validation_file b.txt": "--data.source file --data.source.validation b.txt",
    "train quickstart --bptt-steps 70": "--train.gradient truncated --train.gradient.k2 70",
    "train quickstart --forget-bias 1": "--model.cell lstm --model.cell.forget-bias 1",
    "train quickstart --tokenizer-json a.json": "--data.tokenizer bpe --data.tokenizer.file a.json",
    "train quickstart --precision bf16-mixed": "--model.precision bfloat16",
    # The flags of other commands.
    "sweep clip_sweep --n-jobs 4": "--workers 4",
    "sweep clip_sweep --search": "--suggest optuna",
    "sweep clip_sweep --train.lr 4": "--train.learning-rate 4",
    "verify quickstart --hidden 4": "--model.hidden-size 4",
    "sample a --temp 0.5": "--temperature 0.5",
    "sample a --num-samples 3": "--count 3",
    "sample a --max-tokens 50": "--length 50",
    "sample a --max_new_tokens=50": "--length 50",
    "sample a --greedy": "--temperature 0",
    "sample a --temprature 2": "--temperature 2",
    "score a b --by line": "--by sentence",
    "score a b --theta 0.3": "--cache-flatness 0.3",
    "score a b --json true": "--json",
    "sweep clip_sweep --pruner hyperband": "--halving-first",
    "sweep clip_sweep --scheduler asha": "--train.schedule",
    "verify quickstart --dtype float64": "--model.precision float32",
    "probe a --bptt 7": "--length 7",
}


EARLIER = {
    "--data.name lm1b": "--data.source tfds --data.source.name lm1b",
    "--data.text-key text": "--data.source tfds --data.source.text-key text",
    "--data.train a.txt": "--data.source file --data.source.train a.txt",
    "--data.validation a.txt": "--data.source file --data.source.validation a.txt",
    "--data.test a.txt": "--data.source file --data.source.test a.txt",
    "--data.source task": "--data.source copy",
    "--data.source.kind copy": "--data.source copy",
    "--data.task copy": "--data.source copy",
    "--data.task.kind copy": "--data.source copy",
    "--data.task.items 3": "--data.source copy --data.source.items 3",
    "--data.source copy --data.task.items 3": "--data.source.items 3",
    "--data.vocabulary-size 100": "--data.tokenizer.size 100",
    "--data.min-count 2": "--data.tokenizer.min-count 2",
    "--data.tokenizer-file a.json": "--data.tokenizer bpe --data.tokenizer.file a.json",
    "--model.kind window": "--model window",
    "--model.cell.kind lstm": "--model.cell lstm",
    "--model.cell diagonal": "--model.cell lru",
    "--model.activation relu": "--model.cell.activation relu",
    "--model.forget-bias 2": "--model.cell lstm --model.cell.forget-bias 2",
    "--model.cell lstm --model.forget-bias 2": "--model.cell.forget-bias 2",
    "--model.peepholes": "--model.cell lstm --model.cell.peepholes",
    "--model.layer-norm": "--model.cell lstm --model.cell.layer-norm",
    "--model.reset before": "--model.cell gru --model.cell.reset before",
    "--model.init identity": "--model.cell.init identity",
    "--model.gain 0.9": "--model.cell.gain 0.9",
    "--model.readout.kind adaptive": "--model.readout adaptive",
    "--model.direct": "--model window --model.skip-connections",
    "--model.bounded": "--model ngram --model.sentence-boundaries",
    "--model ngram --model.no-bounded": "--model.no-sentence-boundaries",
    "--model.dropout.words 0.1": "--model.dropout.embedding 0.1",
    "--train.k1 3": "--train.gradient truncated --train.gradient.k1 3",
    "--train.k2 3": "--train.gradient truncated --train.gradient.k2 3",
    "--train.gradient truncated --train.k2 3": "--train.gradient.k2 3",
    "--train.cut-rate 0.1": "--train.gradient artbp --train.gradient.cut-rate 0.1",
    "--train.clip-delta 1": "--train.gradient.clip-delta 1",
    "--train.recompute sqrt": "--train.gradient.recompute sqrt",
    "--train.gradient.kind full": "--train.gradient full",
    "--train.optimizer.kind sgd": "--train.optimizer sgd",
    "--train.optimizer.b1 0.8": "--train.optimizer.beta1 0.8",
    "--train.optimizer.b2 0.99": "--train.optimizer.beta2 0.99",
    "--train.schedule.kind cosine": "--train.schedule cosine",
    "--train.feeding.kind own": "--train.feeding own",
    "--train.probe.kind live": "--train.probe live",
    "--train.probe.lanes 3": "--train.probe live --train.probe.sequences 3",
}


def test_a_spelling_of_earlier_versions_is_answered_with_the_flag_ready_to_type():
    for typed, meant in EARLIER.items():
        said = answered(f"train quickstart {typed}")
        assert said.endswith(f"; did you mean {meant}?"), (typed, said)
    assert answered("probe a --lanes 3").endswith("; did you mean --sequences 3?")


def parsed(words):
    called = parse(words.split(), "python run.py")
    values = [*called.args, *called.keywords.values()]
    return next(value for value in values if isinstance(value, Config))


def test_groups_are_typed_as_patterns_and_set_by_their_numbers():
    typed = (
        "train quickstart --train.groups embedding.* *W_hh --train.groups.0.learning-rate 0.1 "
        "--train.groups.1.optimizer momentum --train.groups.1.optimizer.momentum 0.5"
    )
    groups = Group("embedding.*", 0.1), Group("*W_hh", optimizer=Momentum(momentum=0.5))
    assert parsed(typed).train.groups == groups
    assert parsed("train quickstart --train.groups None").train.groups == ()


OWN = "train quickstart --model.cell own.py:cell --train.optimizer own.py:rule "


def test_hyperparameters_of_custom_code_are_flags_with_the_types_of_their_defaults(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def cell(inputs, hidden_size, heads=2, scale=0.5): pass\n"
        "def rule(learning_rate, decay=0.9): pass\n"
    )
    config = parsed(OWN + "--model.cell.heads 4 --model.cell.scale 2 --train.optimizer.decay 0.5")
    assert config.model.cell.arguments == {"heads": 4, "scale": 2.0}
    assert config.train.optimizer.arguments == {"decay": 0.5}
    said = answered(OWN + "--model.cell.head 4")
    assert said == "there is no flag --model.cell.head; did you mean --model.cell.heads 4?"
    assert "--model.cell.heads" in answered(OWN + "--model.cell.heads many")
    assert "own.py has no sell; did you mean 'cell'?" in answered(
        "train quickstart --model.cell own.py:sell"
    )


def test_the_flag_that_is_meant_is_answered_with_the_value_that_was_typed():
    for typed, meant in TYPED.items():
        said = answered(typed)
        assert said.endswith(f"; did you mean {meant}?"), (typed, said)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train quickstart --model.order 3", "--model.order with model=rnn: it is read with "),
        ("train quickstart --model.order 3", "it is read with model=window or ngram"),
        (
            "train quickstart --data.source.items 3",
            "read with data.source=copy or memorisation",
        ),
        (
            "train quickstart --model ngram --lr 3",
            "--lr with model=ngram, which is not trained",
        ),
        (
            "train quickstart --model ngram --train.gradient.k2 3",
            "model=ngram, which is not trained",
        ),
        ("train quickstart --1 3", "Unrecognized options: --1, 3"),
        (
            "train quickstart --train.groups.² 3",
            "no flag --train.groups.²: train.groups lists 0 patterns",
        ),
        (
            "train quickstart --train.groups.0.learning-rate 3",
            "no flag --train.groups.0.learning-rate: train.groups lists 0 patterns",
        ),
        (
            "train quickstart --train.groups a* --train.groups.1.optimizer sgd",
            "there is no field train.groups.1.optimizer: train.groups lists 1 patterns",
        ),
        (
            "train quickstart --train.groups a* --train.groups.0.lr 3",
            "no flag --train.groups.0.lr; did you mean --train.groups.0.learning-rate 3?",
        ),
        ("train quickstart --gpu", "--gpu: JAX takes the accelerator"),
        ("sweep clip_sweep --num-samples 4", "sweep() says which trials there are, and how many"),
        ("sweep clip_sweep --gpus 4", "--gpus: JAX takes the accelerator"),
        ("train quickstart --num-workers 4", "--num-workers: the text is read by one process"),
        (
            "train quickstart --betas 0.9 0.98",
            "--betas: they are two flags, --train.optimizer.beta1",
        ),
        ("train quickstart --teacher_forcing_ratio 0.5", "own tokens, 1 less the teacher's"),
        ("train quickstart --resume", "--resume: the same command goes on"),
        ("train quickstart --return-sequences", ": every step of a chunk is predicted"),
        ("sample a --checkpoint b", ": the run comes right after the command"),
        ("fit quickstart", "there is no command fit; did you mean 'train'?"),
        ("generate a", "there is no command generate; did you mean 'sample'?"),
        ("smaple a", "there is no command smaple; did you mean 'sample'?"),
    ],
)
def test_what_has_no_flag_of_its_own_is_explained(typed, said):
    assert said in answered(typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--seed 1.5", "--seed 1.5: the flag takes a whole number"),
        ("--train.learning-rate x", "--train.learning-rate x: the flag takes a number"),
        ("--model.projection x", "--model.projection x: the flag takes None or a whole number"),
        ("--model.hidden-size 8 x", "--model.hidden-size 8 x: the flag takes whole numbers"),
        (
            "--model.embedding characters --model.embedding.widths a",
            "--model.embedding.widths a: the flag takes whole numbers",
        ),
    ],
)
def test_a_word_in_place_of_a_number_is_answered_with_what_the_flag_takes(typed, said):
    assert answered(f"train quickstart {typed}") == said


def test_what_means_nothing_is_named_and_nothing_is_guessed():
    for name in ("xyzzy", "proj-size", "profile", "do-train"):
        assert answered(f"train quickstart --{name} 3") == f"there is no flag --{name}"
    assert answered("score a b --batch-size 4") == "there is no flag --batch-size"
    assert answered("sample a --do-sample") == "there is no flag --do-sample"
    assert answered("sample a --train.lr 3") == "there is no flag --train.lr"
    assert answered("verify quickstart --devices 2") == "there is no flag --devices"
    said = answered("train quickstart --model.cell transformer")
    assert said.endswith(f"choose from {', '.join(CELLS)}")


def test_what_is_typed_right_is_left_alone():
    flags = Flags("train", {"run_dir": Path, "dry_run": bool}, Config())
    right = "--run-dir a --model.hidden_size=3 --model.cell a.py:b --model.readout.no-bias --seed 3"
    assert (
        mistake(flags, [*right.split(), "--model.cell.gain", "-1", "--train.clip-norm", "None"])
        is None
    )
    assert mistake(flags, []) is None


FIELDS = {
    "Train(lr=0.1)": (lambda: Train(lr=0.1), "'learning_rate'"),
    "Config(lr=0.1)": (lambda: Config(lr=0.1), "'train.learning_rate'"),
    "Config(epochs=1)": (lambda: Config(epochs=1), "'train.epochs'"),
    "RNN(units=5)": (lambda: RNN(units=5), "'hidden_size'"),
    "RNN(hiden_size=5)": (lambda: RNN(hiden_size=5), "'hidden_size'"),
    "RNN(kind=lstm)": (lambda: RNN(kind="lstm"), "model.cell='lstm'"),
    "RNN(cell=LSTM)": (lambda: RNN(cell="LSTM"), "LSTM()"),
    "Data(tokenizer=words)": (lambda: Data(tokenizer="words"), "Word()"),
    "Train(optimizer=Adam)": (lambda: Train(optimizer="Adam"), "Adam()"),
    "JSON": (lambda: from_json(Config, '{"version": 4, "lr": 1}', "a"), "'train.learning_rate'"),
    "lanes": (lambda: lanes({"train.lr": [1]}), "'train.learning_rate'"),
    "executor": (lambda: executor_called("local"), "'here'"),
}
POINTS = {
    ("train.lr", 0.1): "'train.learning_rate'",
    ("lr", 0.1): "'train.learning_rate'",
    ("model", "lstm"): "model.cell='lstm'",
    ("model", "trigram"): "model='ngram', model.order=3",
    ("model.cell", "rnn"): "'elman'",
    ("model.tied", True): "'model.readout.tied'",
    ("model.hiden_size", 3): "'model.hidden_size'",
    ("train.optimizer", "Adam"): "'adam'",
    ("data.tokenizer", "characters"): "'char'",
}


@pytest.mark.parametrize(("action", "meant"), FIELDS.values(), ids=FIELDS)
def test_a_program_is_answered_with_fields(action, meant):
    assert refusal(action).endswith(f"; did you mean {meant}?")


def test_a_point_of_a_sweep_is_answered_with_fields():
    for (path, value), meant in POINTS.items():
        said = refusal(lambda point={path: value}: plan(tiny.config(), {"a": point}, tiny.TEXT))
        assert said.endswith(f"; did you mean {meant}?"), said
    said = refusal(lambda: override(Config(), {"model.order": 3}))
    assert said.endswith("model.order with model=rnn: it is read with model=window or ngram")


# --- the tables ---


COMMAND = {
    "train": train_command(Config(), [], "python run.py"),
    "sweep": sweep_command(Config(), None, [], "python run.py"),
    "score": score,
    "sample": sample,
    "probe": probe,
    "export": export,
    "import": import_,
    "report": report,
    "lecture": lecture,
    "verify": verify_command(Config()),
    "list": list_experiments,
    "compare": compare,
    "completion": completion_command({}),
}


def test_every_setting_and_value_that_is_answered_exists():
    known = paths(Config)
    for meant in (*SETTINGS, *VALUES):
        for path, value in assigned(meant):
            assert path in known, meant
            words = words_at(Config, path) or [*alternatives(Config, path)]
            assert value is None or value in words or (value.isdigit() and not words), meant
    assert {*ELSEWHERE} <= {*known}
    assert {f"model.cell={cell}" for cell in CELLS if cell != CODE} <= {*VALUES}


def test_every_flag_of_a_command_that_is_answered_exists():
    assert {*FLAGS} == {*NOTES} == {*COMMANDS}
    for command, table in FLAGS.items():
        assert {assigned(meant)[0][0] for meant in table} <= {*own_flags(COMMAND[command])}
    everywhere = {name for command in COMMANDS for name in own_flags(COMMAND[command])}
    assert {assigned(meant)[0][0] for meant in FLAG_VALUES} <= everywhere


def test_no_name_stands_twice_nor_is_that_of_a_setting():
    real = {path.removesuffix(".kind").rpartition(".")[2] for path in paths(Config)}
    for table in (SETTINGS, *FLAGS.values(), *NOTES.values(), COMMANDS):
        names = [name for listed in table.values() for name in listed.split()]
        assert len(names) == len({*names})
        assert all(name == plainly(name) for name in names)
    # Fields of rarer settings: the name by itself means the entry of the table.
    rarer = {"beta", "clip", "embedding", "file", "filters", "iterations"}
    assert real & {name for listed in SETTINGS.values() for name in listed.split()} == rarer
    for command, table in FLAGS.items():
        typed = {name for listed in table.values() for name in listed.split()}
        assert not typed & {*own_flags(COMMAND[command])}, command
