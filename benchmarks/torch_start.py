# pyright: reportMissingImports=false
"""A script that begins to train the quickstart's model in PyTorch, and ends after one update.

    python -m benchmarks.torch_start cpu|gpu

It reads the documentation that comes with Python, numbers its characters, and makes a model, an
optimizer and a step: what `run.py train quickstart` does before its first row, without its config,
run directory, validation split and resuming.
"""

import sys
from pydoc_data.topics import topics

import torch
from torch import nn


def main(backend: str) -> None:
    where = "cuda" if backend == "gpu" else "cpu"
    text = "\n".join(topics.values())
    characters = sorted(set(text))
    numbers = {character: number for number, character in enumerate(characters)}
    tokens = torch.tensor([numbers[character] for character in text])
    lanes = tokens[: len(tokens) // 16 * 16].view(16, -1).T.to(where)
    embedding = nn.Embedding(len(characters), 64).to(where)
    recurrent = nn.RNN(64, 320).to(where)
    readout = nn.Linear(320, len(characters)).to(where)
    parameters = [p for module in (embedding, recurrent, readout) for p in module.parameters()]
    descent = torch.optim.Adam(parameters, 0.003)
    h, _ = recurrent(embedding(lanes[:64]))
    loss = nn.functional.cross_entropy(readout(h).flatten(0, 1), lanes[1:65].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    descent.step()
    loss.item()  # waits for the device


if __name__ == "__main__":
    main(sys.argv[1])
