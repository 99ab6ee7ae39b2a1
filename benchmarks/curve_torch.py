# pyright: reportMissingImports=false
"""The learning curve of the LSTM of `word_language_model`, beside a program in PyTorch.

    python -m benchmarks.curve_torch DIR [--epochs 2] [--words 10000] [--every 250]

DIR holds a text as `data.source.train` takes it. lm_jax trains the experiment as `run.py train`
does; then a program made of `torch.nn` modules trains on the same tokens, with initial parameters
and dropout masks of its own: two layers of 200 units, tied, dropout, SGD at the rate 20, gradient
norm at most 0.25, 35 steps of 20 streams. All biases start at zero, and the second bias of
PyTorch's layers stays zero, because lm_jax has one; the weights are drawn from the uniform
distribution of the experiment. Printed are the mean training loss over each `--every` updates and
the validation loss after each epoch, in nats a word, and the seconds of an update of both. The
first loss of lm_jax leaves out update 1, which has a record of its own.

torch is in benchmarks/requirements.txt; lm_jax itself does not need it.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lm_jax
from lm_jax.config import RNN, Config, override, resolve, train_of
from lm_jax.data.corpus import load
from lm_jax.experiment import load_experiment
from lm_jax.training.journal import read_rows

Curve = list[tuple[int, str, float, float]]
"""Points: updates made, split, nats a word, seconds an update."""


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM and readout, with dropout on all but the recurrent connections."""

    def __init__(self, config: Config, vocab_size: int):
        super().__init__()
        model = config.model
        assert isinstance(model, RNN)
        assert isinstance(model.hidden_size, int)
        assert model.dropout.outputs is not None
        assert model.uniform is not None
        self.embedding = nn.Embedding(vocab_size, model.hidden_size)
        rate = model.dropout.outputs
        self.layers = nn.LSTM(model.hidden_size, model.hidden_size, model.layers, dropout=rate)
        self.drop = nn.Dropout(rate)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
                parameter.requires_grad_("_hh_" not in name)
            else:
                nn.init.uniform_(parameter, -model.uniform, model.uniform)

    def forward(self, x: Any, y: Any, state: Any) -> tuple[Any, Any]:
        h, state = self.layers(self.drop(self.embedding(x)), state)
        logits = nn.functional.linear(self.drop(h), self.embedding.weight, self.bias)
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()), state


def chunks(tokens: np.ndarray, streams: int, length: int) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets [T, B] of the chunks; tokens beyond the last full column are dropped."""
    whole = len(tokens) // streams * streams
    columns = torch.from_numpy(tokens[:whole].astype(np.int64)).view(streams, -1).t().contiguous()
    for first in range(0, len(columns) - 1, length):
        end = min(first + length, len(columns) - 1)
        yield columns[first:end], columns[first + 1 : end + 1]


def torch_curve(config: Config, every: int, epochs: int) -> Curve:
    """The curve of the program in PyTorch."""
    corpus, train = load(config.data), train_of(config)
    assert train.clip_norm is not None
    torch.manual_seed(0)
    model = LSTMLanguageModel(config, len(corpus.vocabulary))
    trained = [p for p in model.parameters() if p.requires_grad]
    curve, number, losses, began = [], 0, [], time.perf_counter()
    for _ in range(epochs):
        state = None
        for x, y in chunks(corpus.train.tokens, config.data.batch_size, config.data.length):
            state = None if state is None else tuple(part.detach() for part in state)
            loss, state = model(x, y, state)
            grads = torch.autograd.grad(loss, trained)
            norm = torch.sqrt(sum(grad.pow(2).sum() for grad in grads))
            rate = train.learning_rate * min(1.0, train.clip_norm / float(norm))
            with torch.no_grad():
                for parameter, grad in zip(trained, grads, strict=True):
                    parameter -= rate * grad
            number += 1
            losses.append(loss.item())
            if number % every == 0:
                seconds = (time.perf_counter() - began) / every
                curve.append((number, "train", float(np.mean(losses)), seconds))
                losses, began = [], time.perf_counter()
        paused = time.perf_counter()
        curve.append((number, "validation", validation_loss(model, corpus.validation.tokens), 0.0))
        began += time.perf_counter() - paused
    return curve


def validation_loss(model: LSTMLanguageModel, tokens: np.ndarray) -> float:
    """Mean nats a word of a text, read as ten streams, as the example of PyTorch does."""
    model.eval()
    total, count, state = 0.0, 0, None
    with torch.no_grad():
        for x, y in chunks(tokens, 10, 35):
            loss, state = model(x, y, state)
            total, count = total + loss.item() * y.numel(), count + y.numel()
    model.train()
    return total / count


def jax_curve(config: Config, run_dir: Path) -> Curve:
    """The curve of lm_jax, from the rows of a run."""
    lm_jax.train(config, run_dir)
    every, curve = train_of(config).log_every, []
    tokens = config.data.batch_size * config.data.length
    for row in read_rows(run_dir / "metrics.jsonl"):
        is_interval = row["kind"] == "train" and row["step"] % every == 0
        if is_interval or row["split"] == "validation":
            speed = row.get("tokens_per_second")
            curve.append((row["step"], row["split"], row["nats"], tokens / speed if speed else 0.0))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--words", type=int, default=10_000, help="size of the vocabulary")
    parser.add_argument(
        "--every", type=int, default=250, help="updates between two printed training losses"
    )
    asked = parser.parse_args()
    config = override(
        load_experiment("word_language_model").config,
        {
            "data.source": "file",
            "data.source.train": str(asked.text),
            "data.tokenizer.size": asked.words,
            "train.epochs": asked.epochs,
            "train.log_every": asked.every,
        },
    )
    config = resolve(config)
    with tempfile.TemporaryDirectory() as folder:
        ours = jax_curve(config, Path(folder) / "run")
    theirs = torch_curve(config, asked.every, asked.epochs)
    print("updates  split       lm_jax  PyTorch  seconds an update: lm_jax, PyTorch")
    expected = {point[:2]: point for point in theirs}
    for number, split, nats, seconds in ours:
        _, _, torch_nats, torch_seconds = expected[number, split]
        print(
            f"{number:7}  {split:10}  {nats:6.3f}  {torch_nats:7.3f}  "
            f"{seconds:.3f}, {torch_seconds:.3f}"
        )


if __name__ == "__main__":
    main()
