"""PyTorch's weights: the same logits on both sides, and every misfit named."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch_equations
from torch_equations import E, H, V, drawn

from lm_jax import models
from lm_jax.config import (
    GRU,
    LSTM,
    RNN,
    AdaptiveInputs,
    AdaptiveSoftmax,
    Elman,
    GLUBlock,
    MixtureOfSoftmaxes,
    NGram,
    RecurrentDropout,
    Softmax,
    Window,
)
from lm_jax.exchange import from_torch, to_torch
from lm_jax.settings import UserError

CASES = {
    "lstm": {"layout": "word_language_model", "cell": "lstm", "layers": 2},
    "gru": {"layout": "awd-lstm-lm", "cell": "gru", "layers": 2},
    "relu": {
        "layout": "torch",
        "cell": "relu",
        "layers": 1,
        "modules": ("embed", "net.rnn", "out"),
    },
    "tied": {"layout": "awd-lstm-lm", "cell": "lstm", "layers": 2},
}
CELLS = {"lstm": LSTM(), "gru": GRU(), "tanh": Elman(), "relu": Elman(activation="relu")}
X = np.random.default_rng(1).integers(0, V, (6, 3)).astype(np.int32)  # [T, B]


def ours(model, params):
    made = models.make(model, V)
    _, h = made.hidden(params, made.init_carry(X.shape[1]), jnp.asarray(X))
    return made.logits(params, h)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_pytorch_s_equations_on_the_imported_and_on_the_exported_arrays(name):
    """Two biases a layer, and in a GRU one of them inside the product with r."""
    case, tied = CASES[name], name == "tied"
    arrays = drawn(**case, tied=tied)
    given = {"layout": case["layout"], "modules": case.get("modules")}
    model, params = from_torch(arrays, **given, activation="relu" if name == "relu" else None)
    assert model.cell == CELLS[case["cell"]]
    assert model.readout == Softmax(tied=tied)
    assert model.hidden_size == ((H, E) if tied else H)
    wanted = torch_equations.logits(arrays, X, **case)
    np.testing.assert_allclose(ours(model, params), wanted, 1e-12, 1e-12)
    again = to_torch(model, params, **given)
    assert {name: array.shape for name, array in again.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    np.testing.assert_allclose(torch_equations.logits(again, X, **case), wanted, 1e-12, 1e-12)


def test_a_layout_is_recognised_by_its_names_whether_weights_are_dropped_or_not():
    for layout in ("torch", "word_language_model", "awd-lstm-lm"):
        arrays = drawn(layout=layout, layers=2)
        plain = {
            name.replace("module.", "").replace("_raw", ""): array for name, array in arrays.items()
        }
        tiny.assert_trees_equal(from_torch(arrays), from_torch(plain))
        assert from_torch(arrays)[0].layers == 2


def test_a_model_without_biases_has_biases_of_zero_or_none():
    """`torch.nn.LSTM(…, bias=False)`, and a linear readout without bias."""
    arrays = {name: array for name, array in drawn().items() if "bias" not in name}
    model, params = from_torch(arrays)
    assert model.readout == Softmax(bias=False)
    assert not params["layers"][0]["b_h"].any()
    assert not to_torch(model, params)["decoder.bias"].any()


def test_half_precision_is_read():
    arrays = {name: array.astype(np.float16) for name, array in drawn().items()}
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    tiny.assert_trees_equal(from_torch(arrays), from_torch(wide))


def without(name):
    return lambda arrays: arrays.pop(name)


def replaced(name, shape, kind=float, value=1):
    return lambda arrays: arrays.update({name: np.full(shape, value, kind)})


BAD = [
    (without("rnn.weight_hh_l0"), r"rnn.weight_hh_l0 is missing; did you mean 'rnn.weight_ih_l0'"),
    (without("rnn.bias_hh_l0"), "rnn.bias_ih_l0 stands without its bias_hh"),
    (without("rnn.bias_ih_l0"), "rnn.bias_hh_l0 stands without its bias_ih"),
    (without("decoder.weight"), r"decoder.weight is missing, and encoder.weight is \[7, 4\]"),
    (without("encoder.weight"), "no array is of the module encoder; there are decoder, rnn"),
    (
        replaced("rnn.weight_ih_l0", (20, 3)),
        r"rnn.weight_ih_l0 is \[20, 3\] and must be \[20, 4\], because rnn.weight_hh_l0 is "
        r"\[20, 5\], and the layer below has 4 outputs",
    ),
    (
        replaced("rnn.weight_hh_l0", (10, 5)),
        r"rnn.weight_hh_l0 is \[10, 5\]: it needs 1, 3 or 4 times as many rows",
    ),
    (replaced("rnn.weight_hh_l0", (20,)), r"\[20\] and must be \[any, any\]"),
    (
        replaced("decoder.weight", (8, 5)),
        r"decoder.weight is \[8, 5\] and must be \[7, 5\], because encoder.weight is \[7, 4\] and "
        "the last layer of 5 units",
    ),
    (replaced("decoder.bias", (8,)), r"decoder.bias is \[8\] and must be \[7\]"),
    (replaced("encoder.weight", (0, 4)), r"encoder.weight is \[0, 4\]"),
    (replaced("decoder.bias", (7,), int), "decoder.bias is of type int64"),
    (
        replaced("decoder.bias", (7,), value=np.nan),
        "decoder.bias holds numbers that are not finite",
    ),
    (replaced("decoder.bias", (7,), value=1e300), "decoder.bias holds numbers that are not finite"),
    (replaced("rnn.weight_ih_l0_reverse", (20, 4)), "rnn.weight_ih_l0_reverse has no place"),
    (replaced("rnn.weight_hr_l0", (2, 5)), "rnn.weight_hr_l0 has no place"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_arrays_that_do_not_fit_are_named_with_both_shapes(change, said):
    arrays = drawn()
    change(arrays)
    with pytest.raises(UserError, match=said):
        from_torch(arrays, "word_language_model")


def test_layers_that_do_not_fit_each_other_are_refused():
    arrays = drawn("awd-lstm-lm", layers=2)
    gru = {**arrays, "rnns.1.module.weight_hh_l0_raw": np.ones((15, 5))}
    with pytest.raises(UserError, match=r"\[15, 5\]: it needs 4 times as many rows as columns"):
        from_torch(gru)
    narrow = {**arrays, "rnns.1.module.weight_ih_l0": np.ones((20, 4))}
    with pytest.raises(UserError, match=r"\[20, 4\] and must be \[20, 5\], .* has 5 outputs"):
        from_torch(narrow)


def test_names_that_match_nothing_are_refused():
    arrays = drawn("torch", modules=("embed", "lstm", "fc"))
    with pytest.raises(UserError, match="the names of no layout; their modules are: embed, fc, ls"):
        from_torch(arrays)
    with pytest.raises(UserError, match=r"no array is of the module fcc; .* did you mean 'fc'"):
        from_torch(arrays, modules=("embed", "lstm", "fcc"))
    with pytest.raises(UserError, match="modules=embed lstm: give three names"):
        from_torch(arrays, modules=("embed", "lstm"))
    with pytest.raises(UserError, match="layout=awd-lstm-lm has modules of its own"):
        from_torch(arrays, "awd-lstm-lm", ("embed", "lstm", "fc"))
    with pytest.raises(UserError, match=r"torch.nn.RNN, .* are of model.cell=lstm"):
        from_torch(arrays, modules=("embed", "lstm", "fc"), activation="relu")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (RNN(cell=LSTM(peepholes=True)), "model.cell.peepholes=True has no place"),
        (RNN(cell=LSTM(layer_norm=True)), "model.cell.layer_norm=True has no place"),
        (RNN(cell=GRU(reset="before")), "model.cell.reset=before has no place"),
        (RNN(cell=Elman(activation="sigmoid")), "model.cell.activation=sigmoid has no place"),
        (tiny.changed(RNN(), cell="lru"), "model.cell=lru has no place"),
        (tiny.changed(RNN(), cell="slstm"), "model.cell=slstm has no place"),
        (RNN(embedding=AdaptiveInputs()), "model.embedding=adaptive has no place"),
        (RNN(layers=2, residual=True), "model.residual=True has no place"),
        (RNN(projection=64), "model.projection=64 has no place"),
        (RNN(cell=LSTM(), block=GLUBlock()), "model.block=glu has no place"),
        (RNN(layers=2, hidden_size=(3, 4)), r"hidden_size=\(3, 4\) has a place only in layout=awd"),
        (RNN(embedding_size=None), "model.embedding_size=None has no place"),
        (RNN(readout=AdaptiveSoftmax(cutoffs=(3,))), "model.readout=adaptive has no place"),
        (RNN(readout=MixtureOfSoftmaxes()), "model.readout=mos has no place"),
        (
            RNN(dropout=RecurrentDropout(zoneout=0.1)),
            r"model.dropout.zoneout=0\.1 has no place",
        ),
        (Window(), "model=window cannot be written for PyTorch"),
        (NGram(), "model=ngram cannot be written for PyTorch"),
    ],
)
def test_what_pytorch_s_modules_cannot_hold_is_refused_by_name(model, said):
    with pytest.raises(UserError, match=said):
        to_torch(model, {})
    with pytest.raises(UserError, match="elman has no place in awd-lstm-lm"):
        to_torch(dataclasses.replace(RNN(), cell=Elman()), {}, "awd-lstm-lm")
