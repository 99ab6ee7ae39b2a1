# pyright: reportMissingImports=false
"""The AWD-LSTM's first updates, against a transcription into PyTorch.

    python -m benchmarks.awd_torch [--updates 200] [--scale 0.1] [--learning-rate 30] [--text FILE]

The transcription is written from the equations of Merity et al. (2018): layers of sizes of their
own, tied readout, one dropout mask for all steps, dropout of words and of W_hh, the penalties alpha
and beta, decay, clipping, and the rate scaled by the chunk's length. PyTorch computes the gradient
by its own autodiff. Both sides read the same chunks, with the same masks and initial parameters, in
float64; `--scale` multiplies the sizes of the layers. Printed are the loss of some updates on both
sides, and the largest relative differences over all updates. A difference in the last digit grows
from update to update, at the published rate more than at a lower one.

torch is not a requirement of lm_jax (benchmarks/requirements.txt).
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

import lm_jax
from lm_jax.config import RNN, SGD, Config, Memory, resolve, train_of
from lm_jax.data.batches import Source, streams
from lm_jax.data.corpus import load
from lm_jax.experiment import load_experiment
from lm_jax.models.dropout import DropoutMasks
from lm_jax.training import step
from lm_jax.training.state import TrainState
from lm_jax.trees import by_name, norm

Tensors = dict[str, torch.Tensor]


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def masks_of(config: Config, number: int, vocab_size: int) -> dict[str, Any]:
    """The dropout masks of update `number`, made by lm_jax and read by both sides."""
    model = lm_jax.models.make(config.model, vocab_size)
    key = jax.random.fold_in(
        jax.random.fold_in(jax.random.key(config.seed), step.Draw.NOISE), number
    )
    dropout = model.for_training(key).dropout
    assert isinstance(dropout, DropoutMasks)
    assert isinstance(config.model, RNN)
    B, E, sizes = config.data.batch_size, config.model.embedding_size, config.model.sizes

    def ones(size: Any) -> jax.Array:
        return jnp.ones((1, B, size))

    every = jnp.arange(vocab_size)[:, None]
    return {
        "words": tensor(dropout.on_words(jnp.ones((vocab_size, 1, 1)), every, vocab_size)[:, 0]),
        "inputs": tensor(dropout.on_inputs(ones(E))),
        "between": [tensor(dropout.on_layer(ones(n), k)) for k, n in enumerate(sizes[:-1])],
        "outputs": tensor(dropout.on_outputs(ones(sizes[-1]))),
        "recurrent": [
            tensor(dropout.on_recurrent(jnp.ones((n, 4 * n)), k)) for k, n in enumerate(sizes)
        ],
    }


def loss_of(
    params: Tensors, state: list, x: torch.Tensor, y: torch.Tensor, masks: dict, config: Config
) -> tuple[torch.Tensor, list]:
    """The training loss of a chunk, and the state after it, from the paper's equations."""
    model = config.model
    assert isinstance(model, RNN)
    C = params["embedding.C"]
    h = (C * masks["words"])[x] * masks["inputs"]
    after, raw = [], h
    for number, (h_t, c_t) in enumerate(state):
        own = {name: params[f"layers.{number}.{name}"] for name in ("W_xh", "W_hh", "b_h")}
        W_hh = own["W_hh"] * masks["recurrent"][number]
        outputs = []
        for x_t in h:
            i, f, g, o = (x_t @ own["W_xh"] + own["b_h"] + h_t @ W_hh).chunk(4, dim=-1)
            c_t = torch.sigmoid(f) * c_t + torch.sigmoid(i) * torch.tanh(g)
            h_t = torch.sigmoid(o) * torch.tanh(c_t)
            outputs.append(h_t)
        after.append((h_t.detach(), c_t.detach()))
        raw = torch.stack(outputs)
        last = number == len(state) - 1
        h = raw * (masks["outputs"] if last else masks["between"][number])
    z = h @ C.T + params["readout.b_y"]
    nats = F.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1))
    penalty = model.activation_penalty * h.pow(2).mean()
    return nats + penalty + model.change_penalty * (raw[1:] - raw[:-1]).pow(2).mean(), after


def compare(config: Config, source: Source, vocab_size: int, updates: int) -> None:
    """Make the updates on both sides, and print where they differ."""
    train, B = train_of(config), config.data.batch_size
    ours = step.init(config, vocab_size)
    params = {name: tensor(leaf).requires_grad_() for name, leaf in by_name(ours.params).items()}
    assert isinstance(config.model, RNN)
    zero = [torch.zeros(B, n, dtype=torch.float64) for n in config.model.sizes]
    state = [(h, h) for h in zero]
    assert train.clip_norm is not None
    worst = {"loss": 0.0, "gradient norm": 0.0}
    print("update  tokens  loss, lm_jax        loss, PyTorch")
    for number in range(updates):
        batch = step.batch_of(config, source, number)
        n = int(np.asarray(batch.mask[:, 0]).sum())
        if bool(batch.start[0]):
            state = [(h, h) for h in zero]
        x, y = tensor(batch.x[:n]).long(), tensor(batch.y[:n]).long()
        theirs, state = loss_of(params, state, x, y, masks_of(config, number, vocab_size), config)
        grads = torch.autograd.grad(theirs, list(params.values()))
        length = torch.sqrt(sum(g.pow(2).sum() for g in grads))
        rate = train.learning_rate * n / config.data.length
        with torch.no_grad():
            for w, g in zip(params.values(), grads, strict=True):
                scaled = g * min(1.0, train.clip_norm / float(length))
                w -= rate * (scaled + train.weight_decay * w)
        ours = one_update(config, ours, source, vocab_size)
        found = {"loss": ours.record.nats, "gradient norm": ours.record.grad_norm}
        for (name, value), other in zip(found.items(), (theirs, length), strict=True):
            worst[name] = max(worst[name], abs(float(value) / float(other.detach()) - 1))
        if number % max(1, updates // 10) == 0 or number == updates - 1:
            print(f"{number + 1:6}  {n:6}  {float(found['loss']):.15f}  {theirs.item():.15f}")
    drift = max(
        float(norm(leaf - jnp.asarray(params[name].detach().numpy())) / norm(leaf))
        for name, leaf in by_name(ours.params).items()
    )
    for name, value in {**worst, "parameters at the end": drift}.items():
        print(f"largest relative difference of the {name}: {value:.1e}")


def one_update(config: Config, state: TrainState, source: Source, vocab_size: int) -> TrainState:
    """The state after an update, with the record of this update alone."""
    stop = int(state.step) + 1
    return step.run_until(config, step.reset_metrics(config, state), source, stop, vocab_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=30.0)
    parser.add_argument("--text", type=Path, help="a text; without it, the quickstart's text")
    asked = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    config = load_experiment("awd_lstm_wt2").config
    size = lambda units: max(2, round(units * asked.scale))  # noqa: E731
    model = dataclasses.replace(
        config.model,
        embedding_size=size(400),
        hidden_size=tuple(map(size, (1150, 1150, 400))),
    )
    data = config.data
    if asked.text is not None:
        data = dataclasses.replace(data, source=Memory())
    data = dataclasses.replace(data, batch_size=8)
    train = dataclasses.replace(
        train_of(config),
        learning_rate=asked.learning_rate,
        optimizer=SGD(),
        epochs=None,
        steps=asked.updates,
        keep_best=False,
    )
    config = resolve(Config(data=data, model=model, train=train))
    text = None if asked.text is None else asked.text.read_text(encoding="utf-8")
    corpus = load(config.data, text)
    tokens, boundary = corpus.train.tokens, corpus.vocabulary.boundary
    whole = len(tokens) - len(tokens) % config.data.batch_size  # sequences of one length
    source = streams(np.asarray(tokens[:whole]), boundary, config.data.batch_size)
    compare(config, source, len(corpus.vocabulary), asked.updates)


if __name__ == "__main__":
    main()
