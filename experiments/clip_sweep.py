"""Which learning rates does clipping allow? Learning rate against threshold, with the clip audit.

Claim     Without a threshold, plain SGD on a character RNN has a learning rate above which its loss
          gets worse, or is no longer finite. With one, that rate still learns. Where every update
          is cut, only the product of rate and threshold matters: it is the length of the update.
Source    Clipping by the global norm: Pascanu, Mikolov & Bengio (2013), algorithm 1.
Command   python run.py sweep clip_sweep
Expect    for each point `clipped`, the share of its updates that were cut, and `grad_norm` and
          `grad_norm_clipped`, the mean norms before and after (in results.jsonl under `gradient`,
          and as maps in sweep.html). Seen, best validation loss in nats a character, mean of two
          seeds: at a rate of 10, 27.3 without a threshold, 1.84 with 0.1; 1.87 at a rate of 3 and
          0.1 as at 1 and 0.3, and at 10 and 0.03, all updates cut.
Time      3 minutes on two CPU cores; one program for all points: a threshold of inf cuts
          nothing, and is a number as the others are.
"""

import math

from lm_jax.config import RNN, SGD, Config, Data, Train
from lm_jax.sweeps import lanes

RATES = (0.1, 0.3, 1.0, 3.0, 10.0)
THRESHOLDS = (0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
SEEDS = range(2)


def config() -> Config:
    return Config(
        data=Data(tokenizer="char", batch_size=16, length=32),
        model=RNN(cell="elman", embedding_size=32, hidden_size=64),
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
