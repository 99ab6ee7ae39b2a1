"""A language model of PyTorch's modules, from the equations in PyTorch's documentation.

`torch.nn.LSTM`, `GRU` and `RNN`: gates i, f, g, o and r, z, n, two biases a layer.
"""

import numpy as np

V, E, H = 7, 4, 5


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(z_x, h, c, W_hh, b_hh):
    i, f, g, o = np.split(z_x + h @ W_hh.T + b_hh, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(z_x, h, c, W_hh, b_hh):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (np.split(z, 3, -1) for z in (z_x, h @ W_hh.T + b_hh))
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    return (1 - z) * np.tanh(x_n + r * h_n) + z * h, c


def tanh(z_x, h, c, W_hh, b_hh):
    return np.tanh(z_x + h @ W_hh.T + b_hh), c


def relu(z_x, h, c, W_hh, b_hh):
    return np.maximum(z_x + h @ W_hh.T + b_hh, 0), c


CELLS = {"lstm": (4, lstm), "gru": (3, gru), "tanh": (1, tanh), "relu": (1, relu)}


def named(layout, layers, modules=("embedding", "rnn", "decoder")):
    """The names of the arrays: embedding, the four arrays of each layer, decoder."""
    if layout == "torch":
        embedding, rnn, decoder = modules
    else:
        embedding, rnn, decoder = "encoder", "rnn", "decoder"
    parts = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    if layout == "awd-lstm-lm":
        ends = "weight_ih_l0", "weight_hh_l0_raw", "bias_ih_l0", "bias_hh_l0"
        own = [[f"rnns.{n}.module.{end}" for end in ends] for n in range(layers)]
    else:
        own = [[f"{rnn}.{part}_l{n}" for part in parts] for n in range(layers)]
    return f"{embedding}.weight", own, (f"{decoder}.weight", f"{decoder}.bias")


def drawn(layout="word_language_model", cell="lstm", layers=1, tied=False, **names):
    """Arrays of a model, at random; the last layer of a tied model has E units, the others H."""
    normal = np.random.default_rng(0).normal
    embedding, own, (W, b) = named(layout, layers, **names)
    gates, width = CELLS[cell][0], E
    tensors = {embedding: normal(size=(V, E))}
    for number, four in enumerate(own, 1):
        size = E if tied and number == layers else H
        G = gates * size
        shapes = (G, width), (G, size), (G,), (G,)
        tensors |= {name: normal(size=shape) for name, shape in zip(four, shapes, strict=True)}
        width = size
    return {**tensors, W: tensors[embedding] if tied else normal(size=(V, H)), b: normal(size=V)}


def logits(tensors, x, layout, cell, layers, **names):
    """The logits [T, B, V] of tokens [T, B]."""
    embedding, own, (W, b) = named(layout, layers, **names)
    seen, step = tensors[embedding][x], CELLS[cell][1]
    for four in own:
        W_ih, W_hh, b_ih, b_hh = (tensors[name] for name in four)
        h = c = np.zeros((x.shape[1], W_hh.shape[1]))
        found = []
        for x_t in seen:
            h, c = step(x_t @ W_ih.T + b_ih, h, c, W_hh, b_hh)
            found.append(h)
        seen = np.stack(found)
    return seen @ tensors[W].T + tensors[b]
