"""Learning rate against clipping threshold, with the clip audit.

Claim     Without clipping, plain SGD on a character RNN has a largest learning rate. A higher rate
          makes the loss worse, or no longer finite. With a suitable threshold, the higher rate
          still learns. If every update is clipped, only the product of rate and threshold matters:
          the product is the length of the update.
Source    Clipping by the global norm: Pascanu, Mikolov & Bengio (2013), algorithm 1.
Command   python run.py sweep clip_sweep
Expect    for each point `clipped`, the share of clipped updates, and `grad_norm` and
          `grad_norm_clipped`, the mean norms before and after clipping (in results.jsonl under
          `gradient`, and as maps in report.html). Seen, best validation loss in nats a character,
          mean of two seeds: at a rate of 10, 27.3 without a threshold and 1.84 with a threshold of
          0.1. At rate 3 and threshold 0.1, at 1 and 0.3, and at 10 and 0.03, the loss is 1.87 each
          time, with all updates clipped.
Time      3 minutes on two CPU cores. All points share a compiled program: a threshold of inf is a
          number like the others, and clips nothing.
"""

import math

from lm_jax.config import RNN, SGD, Char, Config, Data, Elman, Train
from lm_jax.sweeps import lanes

RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
THRESHOLDS = (0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
SEEDS = range(2)


def config() -> Config:
    return Config(
        data=Data(tokenizer=Char(), batch_size=16, length=32),
        model=RNN(cell=Elman(), embedding_size=32, hidden_size=64),
        train=Train(
            steps=1000,
            optimizer=SGD(),
            clip_norm=1.0,
            validate_every=1000,
            log_every=100,
            checkpoint_every=1000,
        ),
    )


def sweep() -> list[dict]:
    return lanes({"train.learning_rate": RATES, "train.clip_norm": THRESHOLDS, "seed": SEEDS})
