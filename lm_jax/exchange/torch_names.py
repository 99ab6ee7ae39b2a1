"""Names of the arrays of a recurrent language model in PyTorch, by layout.

A layout says how a model of modules names the arrays of its `state_dict`:

    torch                  embedding.weight, rnn.weight_ih_l0, rnn.weight_ih_l1, …, decoder.weight
    word_language_model    the same with encoder for embedding (pytorch/examples)
    awd-lstm-lm            encoder.weight, rnns.0.module.weight_ih_l0,
                           rnns.0.module.weight_hh_l0_raw, rnns.1.module.…, decoder.weight
                           (salesforce/awd-lstm-lm; without weight drop, rnns.0.weight_hh_l0)

The layout torch takes other names of the three modules.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from lm_jax.settings import UserError
from lm_jax.suggestions import nearest

Layout = Literal["torch", "word_language_model", "awd-lstm-lm"]
Tensors = Mapping[str, np.ndarray]
PARTS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
"""The arrays of a layer."""


class Modules(NamedTuple):
    """Names of the three modules of a language model in PyTorch."""

    embedding: str
    """A `torch.nn.Embedding`."""
    rnn: str
    """A `torch.nn.LSTM`, `GRU` or `RNN` of several layers, or a list of modules of one layer."""
    decoder: str
    """A `torch.nn.Linear`."""


MODULES: dict[Layout, Modules] = {
    "torch": Modules("embedding", "rnn", "decoder"),
    "word_language_model": Modules("encoder", "rnn", "decoder"),
    "awd-lstm-lm": Modules("encoder", "rnns", "decoder"),
}


def modules_of(layout: Layout, modules: Sequence[str] | None) -> Modules:
    """The names of a layout's modules.

    Raises:
      UserError: names are given that are not three, or for another layout than torch.
    """
    if modules is None:
        return MODULES[layout]
    if layout != "torch":
        raise UserError(f"layout={layout} has modules of its own: names are for layout=torch")
    if len(modules) != 3 or not all(modules):
        raise UserError(
            f"modules={' '.join(modules)}: give three names, of the embedding, the recurrent "
            "layers and the decoder"
        )
    return Modules(*modules)


def recognised(tensors: Tensors) -> Layout:
    """The layout with the names of some arrays.

    Raises:
      UserError: no layout has these names.
    """
    for layout, names in MODULES.items():
        if f"{names.embedding}.weight" in tensors and any(
            name in tensors for name in array_names(layout, names, 0, "weight_hh")
        ):
            return layout
    said = ", ".join(_modules_in(tensors)) or "none"
    raise UserError(
        f"the arrays have the names of no layout; their modules are: {said}. For a model of your "
        "own, name its embedding, recurrent layers and decoder by --modules"
    )


def _modules_in(tensors: Tensors) -> list[str]:
    return sorted({name.rpartition(".")[0] or name for name in tensors})


def refuse_missing(tensors: Tensors, names: Modules) -> None:
    """Refuse names of modules without any array.

    Raises:
      UserError: names the module, and the modules that there are.
    """
    for module in names:
        if not any(name.startswith(f"{module}.") for name in tensors):
            there = _modules_in(tensors)
            raise UserError(
                f"no array is of the module {module}; there are {', '.join(there)}"
                f"{nearest(module, there)}"
            )


def array_names(layout: Layout, names: Modules, number: int, part: str) -> list[str]:
    """The names that an array of a layer may have; the first is the name in an export."""
    if layout != "awd-lstm-lm":
        return [f"{names.rnn}.{part}_l{number}"]
    raw = ("_raw", "") if part == "weight_hh" else ("",)
    wrapped = f"{names.rnn}.{number}.module.{part}_l0", f"{names.rnn}.{number}.{part}_l0"
    return [f"{name}{end}" for end in raw for name in wrapped]


def layer_numbers(tensors: Tensors, layout: Layout, names: Modules) -> Iterator[int]:
    """The numbers of the layers, from 0; at least one."""
    yield 0
    number = 1
    while any(name in tensors for name in array_names(layout, names, number, "weight_ih")):
        yield number
        number += 1


def layer_names(tensors: Tensors, layout: Layout, names: Modules, number: int) -> dict[str, str]:
    """The names of a layer's arrays among `tensors`, by part; the biases may both be missing.

    Raises:
      UserError: names the missing array.
    """
    found = {}
    for part in PARTS:
        known = array_names(layout, names, number, part)
        there = next((name for name in known if name in tensors), None)
        if there is None and part.startswith("weight"):
            raise UserError(f"{known[0]} is missing{nearest(known[0], tensors)}")
        found |= {} if there is None else {part: there}
    if ("bias_ih" in found) != ("bias_hh" in found):
        has, lacks = PARTS[2:] if "bias_ih" in found else PARTS[:1:-1]
        raise UserError(f"{found[has]} stands without its {lacks}")
    return found
