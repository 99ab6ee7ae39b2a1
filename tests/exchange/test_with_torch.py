"""PyTorch itself: the logits of its modules are ours, in both directions, within 1e-6.

Needs PyTorch, on which no other test and no part of lm_jax depends; skipped without it.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm_jax import exchange, models
from lm_jax.commands.main import main
from lm_jax.config import GRU, LSTM, RNN, Config, Elman, Softmax
from lm_jax.data.vocabulary import Vocabulary
from lm_jax.exchange.torch_names import modules_of
from lm_jax.training.imported import write_imported

torch = pytest.importorskip("torch")
nn = torch.nn
st = pytest.importorskip("safetensors.torch")

V, E, H, T, B = 50, 12, 16, 20, 3
WORDS = ("<eos>", "<unk>", *(f"w{n}" for n in range(V - 2)))


class Dropped(nn.Module):
    """A module of one layer with its recurrent weights under another name, as a weight drop."""

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight_hh_l0
        del layer._parameters["weight_hh_l0"]
        layer.register_parameter("weight_hh_l0_raw", nn.Parameter(weight.detach()))
        self.module = layer

    def forward(self, x):
        layer = self.module
        given = {name: array for name, array in layer.named_parameters()}
        plain = type(layer)(layer.input_size, layer.hidden_size).to(x.dtype)
        plain.load_state_dict({name.removesuffix("_raw"): array for name, array in given.items()})
        return plain(x)


class Model(nn.Module):
    """A language model of modules under the names of a layout."""

    def __init__(self, layout, kind, layers, tied, names):
        super().__init__()
        of = {"tanh": "RNN", "relu": "RNN"}.get(kind, kind)
        how = {"nonlinearity": kind} if of == "RNN" else {}
        self.names, width = names, E if tied else H
        setattr(self, names.embedding, nn.Embedding(V, E))
        if layout == "awd-lstm-lm":
            sizes = [E, *[H] * (layers - 1), width]
            own = [getattr(nn, of)(*sizes[n : n + 2], **how) for n in range(layers)]
            setattr(self, names.rnn, nn.ModuleList(map(Dropped, own)))
        else:
            setattr(self, names.rnn, getattr(nn, of)(E, width, layers, **how))
        setattr(self, names.decoder, nn.Linear(width, V))
        if tied:
            getattr(self, names.decoder).weight = getattr(self, names.embedding).weight

    def forward(self, x):
        seen, rnn = getattr(self, self.names.embedding)(x), getattr(self, self.names.rnn)
        for layer in rnn if isinstance(rnn, nn.ModuleList) else [rnn]:
            seen, _ = layer(seen)
        return getattr(self, self.names.decoder)(seen)


CASES = {
    "torch lstm": ("torch", "LSTM", 2, False),
    "torch gru": ("torch", "GRU", 1, False),
    "torch relu": ("torch", "relu", 1, False),
    "own names": ("torch", "tanh", 2, False),
    "word_language_model lstm": ("word_language_model", "LSTM", 2, False),
    "word_language_model tied": ("word_language_model", "GRU", 1, True),
    "awd-lstm-lm tied": ("awd-lstm-lm", "LSTM", 3, True),
    "awd-lstm-lm gru": ("awd-lstm-lm", "GRU", 1, False),
}
SETTINGS = {"LSTM": LSTM(), "GRU": GRU(), "tanh": Elman(), "relu": Elman(activation="relu")}


def difference(model, params, module, X):
    """The largest difference of two logits."""
    _, h = model.hidden(params, model.init_carry(B), jnp.asarray(X))
    with torch.no_grad():
        there = module(torch.from_numpy(X).long()).numpy()
    found = np.asarray(model.logits(params, h))
    assert found.dtype == there.dtype
    return float(np.max(np.abs(found - there)))


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_logits_agree_in_both_directions(name, wide, tmp_path):
    layout, kind, layers, tied = CASES[name]
    own = ("embed", "lstm", "fc") if name == "own names" else None
    names = modules_of(layout, own)
    X = np.random.default_rng(1).integers(0, V, (T, B)).astype(np.int32)
    torch.manual_seed(0)
    make = lambda: Model(layout, kind, layers, tied, names).to(  # noqa: E731
        torch.float64 if wide else torch.float32
    )
    with jax.enable_x64(wide):
        module, file = make(), tmp_path / "model.safetensors"
        st.save_model(module, str(file))  # a table with two names once
        (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
        run = exchange.import_torch(
            file,
            tmp_path / "run",
            modules=own,
            activation="relu" if kind == "relu" else None,
            vocabulary=tmp_path / "words.txt",
        )
        assert run.config.model.readout.tied == tied
        assert run.config.model.sizes[-1] == (E if tied else H)
        inwards = difference(run.model, run.params, module, X)

        settings = RNN(
            cell=SETTINGS[kind],
            embedding_size=E,
            hidden_size=(H, H, E) if name == "awd-lstm-lm tied" else E if tied else H,
            layers=layers,
            readout=Softmax(tied=tied),
        )
        params = tiny.moved(models.make(settings, V).init(jax.random.key(0)), size=0.05)
        config = Config(data=run.config.data, model=settings, train=None)
        mine = write_imported(tmp_path / "mine", config, Vocabulary("word", WORDS), params)
        exchange.export_torch(mine, tmp_path / "mine.safetensors", layout, own)
        module = make()
        module.load_state_dict(st.load_file(tmp_path / "mine.safetensors"), strict=True)
        outwards = difference(mine.model, mine.params, module, X)
    print(f"{name}, {'float64' if wide else 'float32'}: {inwards:.1e} in, {outwards:.1e} out")
    assert max(inwards, outwards) < (1e-13 if wide else 1e-6)


def test_the_page_s_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text(encoding="utf-8")
    written, loaded, converted = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = modules_of("word_language_model", None)
    model = Model("word_language_model", "LSTM", 2, True, names)
    corpus = SimpleNamespace(dictionary=SimpleNamespace(idx2word=list(WORDS)))
    known = {"model": model, "corpus": corpus}
    exec(written, known)
    words = "import model.safetensors runs/imported --vocabulary words.txt"
    assert main(words.split(), "lm-jax") == 0
    Path("model.safetensors").unlink()
    words = "export runs/imported model.safetensors --layout word_language_model"
    assert main(words.split(), "lm-jax") == 0
    exec(loaded, known)
    assert known["words"] == list(WORDS)
    exec(converted, known)
