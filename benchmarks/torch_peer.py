# pyright: reportMissingImports=false
"""The PyTorch side: equal models from `torch.nn`, eager and with `torch.compile`.

torch is not a requirement of lm_jax, only of the benchmarks (benchmarks/requirements.txt). On
Linux, torch from the package index includes gigabytes of CUDA libraries. A torch for CPUs only is
on PyTorch's own index: pip install torch --index-url https://download.pytorch.org/whl/cpu

`torch.compile` leaves `torch.nn.RNN`, `GRU` and `LSTM` unchanged, and fuses the operations around
the layer, above all the loss. `torch.compile` needs a C++ compiler.

PyTorch has two biases per layer instead of a single bias in lm_jax. The timed steps train both, as
usual in PyTorch; only for the comparison of the losses is the gradient of the second bias set to 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import sizes
from benchmarks.side_by_side import Absent, Way
from benchmarks.sizes import Size

MODULES = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def device(backend: str) -> str:
    """Name of the PyTorch device that corresponds to a JAX backend."""
    if backend == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise Absent(f"this PyTorch has no CUDA, and JAX computes on {backend}")
    # TensorFloat-32 in float32 products, as by default in JAX.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return "cuda"


def recurrent(size: Size, layers: list[dict[str, np.ndarray]]) -> nn.Module:
    """Make a `torch.nn.RNN`, `GRU` or `LSTM` with the weights of lm_jax."""
    module = MODULES[size.cell](size.hidden, size.hidden, len(layers))
    with torch.no_grad():
        for number, layer in enumerate(layers):
            own = {
                "weight_ih": layer["W_xh"].T,
                "weight_hh": layer["W_hh"].T,
                "bias_ih": layer["b_h"],
                "bias_hh": np.zeros_like(layer["b_h"]),
            }
            if "b_hn" in layer:
                own["bias_hh"][2 * size.hidden :] = layer["b_hn"]
            for name, value in own.items():
                getattr(module, f"{name}_l{number}").copy_(torch.from_numpy(value.copy()))
    return module


class Language(nn.Module):
    """A language model: embedding, recurrent layers, readout; returns mean nats of a chunk."""

    def __init__(self, size: Size):
        super().__init__()
        weights = sizes.weights(size)
        self.embedding = nn.Embedding(size.vocabulary, size.hidden)
        self.recurrent = recurrent(size, weights["layers"])
        self.readout = nn.Linear(size.hidden, size.vocabulary)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.from_numpy(weights["embedding"]["C"]))
            self.readout.weight.copy_(torch.from_numpy(weights["readout"]["W_hy"].T.copy()))
            self.readout.bias.copy_(torch.from_numpy(weights["readout"]["b_y"]))

    def forward(self, x: Any, y: Any, state: Any) -> tuple[Any, Any]:
        h, state = self.recurrent(self.embedding(x), state)
        logits = self.readout(h).flatten(0, 1)
        return nn.functional.cross_entropy(logits, y.flatten()), state


def fresh(size: Size, where: str, dtype: Any = torch.float32) -> Any:
    """Initial state, zeros."""
    state = torch.zeros(size.layers, size.batch, size.hidden, device=where, dtype=dtype)
    return (state, torch.zeros_like(state)) if size.cell == "lstm" else state


def wait(where: str) -> None:
    """Waits for the device to finish all work."""
    if where == "cuda":
        torch.cuda.synchronize()


def step(backend: str, **settings: Any) -> dict[str, Callable[[], Way]]:
    """Make whole training steps: forward, backward, clip, update; the state is kept."""
    size, where = Size(**settings), device(backend)

    def build(compiled: bool) -> Way:
        source = torch.from_numpy(sizes.tokens(size)).long().to(where)

        def begin() -> tuple[Any, Any]:
            model = Language(size).to(where)
            return model, torch.optim.SGD(model.parameters(), sizes.LEARNING_RATE, fused=True)

        def update(model: Any, call: Any, descent: Any, state: Any, number: int, once: bool) -> Any:
            at = number % sizes.CHUNKS * size.length
            if at == 0:
                state = fresh(size, where)
            chunk = source[at : at + size.length + 1]
            with torch.autocast(where, torch.bfloat16, enabled=size.precision == "bfloat16"):
                loss, state = call(chunk[:-1], chunk[1:], state)
            loss.backward()
            if once:
                keep_one_bias(model, size)
            nn.utils.clip_grad_norm_(model.parameters(), sizes.CLIP)
            descent.step()
            descent.zero_grad()
            return loss, tuple(s.detach() for s in state) if size.cell == "lstm" else state.detach()

        def check() -> list[float]:
            model, descent = begin()
            call, state, losses = wrapped(model), None, []
            for number in range(sizes.CHECKED):
                loss, state = update(model, call, descent, state, number, True)
                losses.append(loss.item())
            return losses

        def wrapped(model: Any) -> Any:
            return torch.compile(model) if compiled else model

        model, descent = begin()
        call, state, done = wrapped(model), fresh(size, where), 0

        def run(calls: int) -> None:
            nonlocal state, done
            for _ in range(calls):
                _, state = update(model, call, descent, state, done, False)
                done += 1
            wait(where)

        return Way(run, check)

    return {name: lambda c=c: build(c) for name, c in ways(where).items()}


def keep_one_bias(model: Any, size: Size) -> None:
    """Sets the gradient of the second bias to 0, except for the GRU's b_hn (also in lm_jax)."""
    for name, parameter in model.named_parameters():
        if "bias_hh" in name:
            own = 2 * size.hidden if size.cell == "gru" else len(parameter)
            parameter.grad[:own] = 0


def layer(backend: str, **settings: Any) -> dict[str, Callable[[], Way]]:
    """Make forward and backward passes of a single layer over a chunk."""
    size, where = Size(**settings), device(backend)
    dtype = getattr(torch, size.precision)

    def build(compiled: bool) -> Way:
        module: Any = recurrent(size, sizes.weights(size)["layers"]).to(where, dtype)
        call = torch.compile(module) if compiled else module
        x, d_h = (torch.from_numpy(a).to(where, dtype) for a in sizes.sequence(size))
        x.requires_grad_()
        state = fresh(size, where, dtype)

        def both() -> Any:
            module.zero_grad()
            x.grad = None
            h = call(x, state)[0]
            h.backward(d_h)
            return h

        def check() -> list[float]:
            h = both().detach()
            leaves = x, module.weight_ih_l0, module.weight_hh_l0
            compared = h, d_h, *(leaf.grad for leaf in leaves if leaf.grad is not None)
            return sizes.of_a_layer(*(each.float().cpu().numpy() for each in compared))

        def run(calls: int) -> None:
            for _ in range(calls):
                both()
            wait(where)

        return Way(run, check)

    return {name: lambda c=c: build(c) for name, c in ways(where).items()}


def draw(backend: str, characters: int, **settings: Any) -> dict[str, Callable[[], Way]]:
    """Make calls that sample characters as makemore does: a Python loop over tokens, state kept.

    Args:
      backend: the backend of JAX.
      characters: number of characters per call.
      **settings: arguments of `Size`.
    """
    size, where = Size(**settings), device(backend)

    def build() -> Way:
        model = Language(size).to(where).eval()
        x, y = (torch.from_numpy(a).long().to(where) for a in sizes.passage(size))

        def once() -> None:
            state, token = fresh(size, where), torch.zeros(1, 1, dtype=torch.long, device=where)
            drawn = []
            for _ in range(characters):
                h, state = model.recurrent(model.embedding(token), state)
                p = nn.functional.softmax(model.readout(h[-1]), dim=-1)
                token = torch.multinomial(p, num_samples=1)
                drawn.append(token.item())

        def run(calls: int) -> None:
            with torch.no_grad():
                for _ in range(calls):
                    once()

        def check() -> list[float]:
            with torch.no_grad():
                return [float(model(x, y, fresh(size, where))[0])]

        return Way(run, check, calls=characters)

    return {f"PyTorch {torch.__version__}, a call a token": build}


def ways(where: str) -> dict[str, bool]:
    """Names of the methods, each with True if compiled."""
    backward = ", cuDNN" if where == "cuda" else ""
    name = f"PyTorch {torch.__version__}{backward}"
    return {f"{name}, eager": False, f"{name}, torch.compile": True}
