"""A custom cell, trained by name: leaky tanh units, each with a learned leak rate.

Claim     A custom cell takes three lines in the experiment's file. The leaky cell learns how fast
          each unit forgets; Elman's cell cannot. The custom cell is trained, resumed, scored and
          sampled like any other.
Source    h_t = h_{t-1} + a ∘ (tanh(x W + h_{t-1} U) - h_{t-1}), leaky integration as in Jaeger et
          al. (2007), here with a learned rate a = σ(s) for each unit.
Command   python run.py train own_cell
Time      a minute on two CPU cores.
"""

import jax
import jax.numpy as jnp

from lm_jax.config import RNN, Builtin, Char, Config, Cosine, CustomCell, Data, Train
from lm_jax.models import Transition


def leaky(inputs: int, hidden_size: int) -> Transition:
    W = jax.nn.initializers.orthogonal()

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"W": W(key, (inputs + hidden_size, hidden_size)), "s": jnp.zeros(hidden_size)}

    def step(params: dict[str, jax.Array], h: jax.Array, x: jax.Array) -> jax.Array:
        return h + jax.nn.sigmoid(params["s"]) * (jnp.tanh(jnp.append(x, h) @ params["W"]) - h)

    return Transition(init, jnp.zeros(hidden_size), step)


def config() -> Config:
    return Config(
        data=Data(source=Builtin(), tokenizer=Char(), batch_size=16, length=64),
        model=RNN(cell=CustomCell(f"{__file__}:leaky"), embedding_size=64, hidden_size=256),
        train=Train(steps=1000, schedule=Cosine(warmup_steps=100), clip_norm=1.0),
    )
