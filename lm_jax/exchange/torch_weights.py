"""Weights of recurrent language models as PyTorch names and orders them, both ways.

A layer of `torch.nn.LSTM`, `GRU` or `RNN` has four arrays. PyTorch multiplies from the left, so
that its matrices are the transposes of W_xh and W_hh. The gates stand in the same order: i, f, g, o
in the LSTM and r, z, n in the GRU.

    weight_ih [G, E] = W_xhᵀ,  weight_hh [G, H] = W_hhᵀ,  bias_ih [G] + bias_hh [G] = b_h

An export writes b_h as bias_ih, and zeros as bias_hh. In the GRU the part of bias_hh that belongs
to n is inside the product with r, and is b_hn. A tied model has the table of input vectors twice,
as the weight of the embedding and of the decoder; in a safetensors file the second may be missing.

Letters: V tokens; E length of a vector; H units; G rows of weight_ih, H for each gate.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np

from lm_jax.config import (
    GRU,
    LSTM,
    RNN,
    Elman,
    Model,
    NoBlock,
    NoiseContrastive,
    SampledSoftmax,
    Softmax,
    Table,
)
from lm_jax.exchange.torch_names import (
    PARTS,
    Layout,
    Modules,
    Tensors,
    array_names,
    layer_names,
    layer_numbers,
    modules_of,
    recognised,
    refuse_missing,
)
from lm_jax.models.base import Params
from lm_jax.settings import UserError
from lm_jax.suggestions import nearest

GATES = {1: "elman", 3: "gru", 4: "lstm"}


def to_torch(
    model: Model, params: Params, layout: Layout = "torch", modules: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The parameters of a model under PyTorch's names, as of a `state_dict`.

    Args:
      model: settings of the model, `run.config.model`.
      params: parameters of the model, `run.params`.
      layout: names of the arrays.
      modules: with the layout torch, names of the modules of the embedding, the recurrent layers
        and the readout; None: the names of the layout.

    Returns:
      arrays in the type of the parameters, a copy of the table included if the readout is tied, and
      zeros for the bias of a readout without bias.

    Raises:
      UserError: names a setting of the model without a place in the layout; or modules are not
        three, or are given with another layout than torch.
    """
    names = modules_of(layout, modules)
    _refuse_without_place(model, layout)
    assert params.keys() == {"embedding", "layers", "readout"}  # nothing is left out
    table, readout = np.asarray(params["embedding"]["C"]), params["readout"]
    tensors = {f"{names.embedding}.weight": table}
    for number, layer in enumerate(params["layers"]):
        own = {name: np.asarray(leaf) for name, leaf in layer.items()}
        assert own.keys() <= {"W_xh", "W_hh", "b_h", "b_hn"}
        bias_hh = np.zeros_like(own["b_h"])
        if "b_hn" in own:
            bias_hh[-len(own["b_hn"]) :] = own["b_hn"]
        arrays = own["W_xh"].T, own["W_hh"].T, own["b_h"], bias_hh
        for part, array in zip(PARTS, arrays, strict=True):
            tensors[array_names(layout, names, number, part)[0]] = array
    W = np.asarray(readout["W_hy"]).T if "W_hy" in readout else table
    b = readout.get("b_y", np.zeros(len(W), W.dtype))
    tensors |= {f"{names.decoder}.weight": W, f"{names.decoder}.bias": np.asarray(b)}
    return {name: np.array(array, order="C") for name, array in tensors.items()}


def from_torch(
    tensors: Tensors,
    layout: Layout | None = None,
    modules: Sequence[str] | None = None,
    activation: Literal["tanh", "relu"] | None = None,
) -> tuple[RNN, Params]:
    """The settings and the parameters of the model whose arrays PyTorch has named.

    Args:
      tensors: the arrays of a `state_dict` by name, of any floating type.
      layout: names of the arrays; None: recognised by the names.
      modules: as for `to_torch`.
      activation: the nonlinearity of a `torch.nn.RNN`, which its arrays do not tell; None: tanh.

    Returns:
      the settings, with cell, sizes, layers, `tied` and `bias` from the arrays; and the parameters,
      in JAX's default type.

    Raises:
      UserError: names an array that is missing, has no place in the layout, or is not of the shape
        that another array asks for; modules are as for `to_torch`.
    """
    if layout is None:
        layout = "torch" if modules is not None else recognised(tensors)
    names = modules_of(layout, modules)
    refuse_missing(tensors, names)
    table = _array(tensors, f"{names.embedding}.weight", (None, None))
    inputs = table.shape[1]
    read, layers, gates = {f"{names.embedding}.weight"}, [], 0
    for number in layer_numbers(tensors, layout, names):
        there = layer_names(tensors, layout, names, number)
        read |= {name for part in PARTS for name in array_names(layout, names, number, part)}
        gates, layer = _layer(tensors, there, inputs, gates)
        layers.append(layer)
        inputs = layer["W_hh"].shape[0]
    tied, readout = _decoder(tensors, names, table, inputs)
    read |= {f"{names.decoder}.weight", f"{names.decoder}.bias"}
    if left := sorted({*tensors} - read):
        raise UserError(f"{left[0]} has no place in a model of lm_jax, layout {layout}")
    sizes = tuple(layer["W_hh"].shape[0] for layer in layers)
    model = RNN(
        cell=_cell(GATES[gates], activation),
        embedding_size=table.shape[1],
        hidden_size=sizes if len({*sizes}) > 1 else sizes[0],
        layers=len(layers),
        readout=Softmax(tied=tied, bias="b_y" in readout),
    )
    own = {"embedding": {"C": table}, "layers": layers, "readout": readout}
    return model, _in_default_type(own)


def _layer(
    tensors: Tensors, there: Mapping[str, str], inputs: int, gates: int
) -> tuple[int, dict[str, np.ndarray]]:
    """The number of gates, and the parameters of a layer.

    Args:
      tensors: the arrays.
      there: names of the layer's arrays, by part.
      inputs: outputs of the layer below.
      gates: gates of the layer below; 0 for the first layer.
    """
    W_hh = _array(tensors, there["weight_hh"], (None, None))
    G, H = W_hh.shape
    if G % H or G // H not in (GATES if gates == 0 else (gates,)):
        wanted = "1, 3 or 4" if gates == 0 else str(gates)
        raise UserError(
            f"{there['weight_hh']} is [{G}, {H}]: it needs {wanted} times as many rows as columns"
        )
    why = f"{there['weight_hh']} is [{G}, {H}]"
    below = f", and the layer below has {inputs} outputs"
    W_xh = _array(tensors, there["weight_ih"], (G, inputs), f"{why}{below}")
    zeros = np.zeros(G)
    b_ih, b_hh = (
        _array(tensors, there[part], (G,), why) if part in there else zeros for part in PARTS[2:]
    )
    b_ih, b_hh = b_ih.astype(np.float64), b_hh.astype(np.float64)
    b_h, extra = b_ih + b_hh, {}
    if G // H == 3:
        b_h[2 * H :], extra = b_ih[2 * H :], {"b_hn": b_hh[2 * H :]}
    return G // H, {"W_xh": W_xh.T, "W_hh": W_hh.T, "b_h": b_h, **extra}


def _decoder(
    tensors: Tensors, names: Modules, table: np.ndarray, inputs: int
) -> tuple[bool, dict[str, np.ndarray]]:
    """True if the readout is tied; and the parameters of the readout.

    Args:
      tensors: the arrays.
      names: names of the modules.
      table: [V, E], the vectors of the embedding.
      inputs: outputs of the last layer.
    """
    W, b = f"{names.decoder}.weight", f"{names.decoder}.bias"
    V, E = table.shape
    of_table = f"{names.embedding}.weight is [{V}, {E}]"
    if W in tensors:
        why = f"{of_table} and the last layer of {inputs} units"
        decoder = _array(tensors, W, (V, inputs), why)
    elif inputs == E:
        decoder = table
    else:
        raise UserError(f"{W} is missing, and {of_table}, where the decoder reads {inputs} units")
    tied = decoder.shape == table.shape and np.array_equal(decoder, table)
    readout = {} if tied else {"W_hy": decoder.T}
    if b in tensors:
        readout["b_y"] = _array(tensors, b, (V,), of_table)
    return tied, readout


def _array(tensors: Tensors, name: str, shape: tuple[int | None, ...], why: str = "") -> np.ndarray:
    """The tensor as an array; refuse another shape (None: any size), and values that are not finite
    in float32."""
    if name not in tensors:
        raise UserError(f"{name} is missing{nearest(name, tensors)}")
    array = np.asarray(tensors[name])
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} is of type {array.dtype}, and must be of real numbers")
    fits = len(shape) == array.ndim and all(
        size > 0 and wanted in (None, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        said = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(
            f"{name} is {list(array.shape)} and must be [{said}]{f', because {why}' if why else ''}"
        )
    if not np.all(np.abs(array) <= np.finfo(np.float32).max):
        raise UserError(f"{name} holds numbers that are not finite as float32")
    return array


def _cell(kind: str, activation: Literal["tanh", "relu"] | None) -> Elman | LSTM | GRU:
    if kind == "elman":
        return Elman(activation=activation or "tanh")
    if activation is not None:
        raise UserError(
            f"activation={activation} is for torch.nn.RNN, and these are of model.cell={kind}"
        )
    return LSTM() if kind == "lstm" else GRU()


def _refuse_without_place(model: Model, layout: Layout) -> None:
    """Refuse settings without a place in PyTorch's modules."""
    if not isinstance(model, RNN):
        raise UserError(f"model={model.kind} cannot be written for PyTorch: only model=rnn can")
    cell = model.cell
    without = {
        f"model.cell={cell.kind}": not isinstance(cell, Elman | LSTM | GRU),
        "model.cell.activation=sigmoid": isinstance(cell, Elman) and cell.activation == "sigmoid",
        "model.cell.peepholes=True": isinstance(cell, LSTM) and cell.peepholes,
        "model.cell.layer_norm=True": isinstance(cell, LSTM) and cell.layer_norm,
        "model.cell.reset=before": isinstance(cell, GRU) and cell.reset == "before",
        f"model.block={model.block.kind}": not isinstance(model.block, NoBlock),
        "model.residual=True": model.residual,
        f"model.projection={model.projection}": model.projection is not None,
        f"model.embedding={model.embedding.kind}": not isinstance(model.embedding, Table),
        "model.embedding_size=None": model.embedding_size is None,
        f"model.readout={model.readout.kind}": not isinstance(
            model.readout, Softmax | SampledSoftmax | NoiseContrastive
        ),
        **{
            f"model.dropout.{name}={rate}": rate is not None  # the state's mean is another, in use
            for name in ("zoneout", "zoneout_cell")
            for rate in [getattr(model.dropout, name)]
        },
    }
    for setting, is_so in without.items():
        if is_so:
            raise UserError(f"{setting} has no place in the modules torch.nn.LSTM, GRU and RNN")
    if layout != "awd-lstm-lm" and len({*model.sizes}) > 1:
        raise UserError(
            f"model.hidden_size={model.hidden_size} has a place only in layout=awd-lstm-lm, whose "
            "layers are modules of their own"
        )
    if layout == "awd-lstm-lm" and isinstance(cell, Elman):
        raise UserError("model.cell=elman has no place in awd-lstm-lm, which has LSTM and GRU")


def _in_default_type(params: Params) -> Params:
    kind = jnp.zeros(()).dtype

    def cast(value):
        if isinstance(value, dict):
            return {name: cast(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [cast(inner) for inner in value]
        return jnp.asarray(np.array(value, kind, order="C"))

    return cast(params)
