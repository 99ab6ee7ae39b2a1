# pyright: reportMissingImports=false
"""Train the quickstart's model in PyTorch for a single update, and exit.

    python -m benchmarks.torch_start cpu|gpu

The script reads the documentation included in Python, numbers the characters, and makes a model, an
optimizer and a step, like `run.py train quickstart` before the first row, but without config, run
directory, validation split and resuming.
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
    loss.item()  # wait for the device


if __name__ == "__main__":
    main(sys.argv[1])
