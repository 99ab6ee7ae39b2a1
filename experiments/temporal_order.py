"""Temporal order: a plain RNN learns which of two symbols came first if Omega keeps its gradient.

Claim     At a learning rate of 0.01, a tanh RNN is still at chance after 20,000 updates of SGD on
          sequences of 20 or 50 steps, with or without clipping. With the regulariser Omega, the RNN
          gets every held-out sequence right at 20 steps, and most at 50; at 100 steps learning has
          only begun.
Source    Pascanu, Mikolov & Bengio (2013), the temporal order task: 50 tanh units, batches of 20,
          learning rate 0.01, threshold 1 and weight 4 (an earlier version of the paper has 0.001, 6
          and 2). The paper reports 5 of 5 seeds solved at lengths from 50 to 200. The authors'
          program runs for up to 5 million updates and stops once no held-out sequence is wrong. Its
          initial weights are smaller (normal, 0.01), and each unit has only 15 recurrent weights,
          scaled to a spectral radius of 0.95. Here W_hh is dense, with the same spectral radius.
Command   python run.py train temporal_order
          python run.py sweep temporal_order
          python run.py sweep temporal_order --train.steps 5000000    the budget of the paper
Expect    `success`, the share of 1,000 held-out sequences answered right, 25 % by chance. Seen,
          means of three seeds after 20,000 updates: with Omega 100 % at length 20, 94 % at 50 and
          34 % at 100; without Omega 24 to 25 % at every length, with or without clipping.
Time      the whole sweep about 9 minutes on two CPU cores, the seeds as lanes of a single program.
"""

from lm_jax.config import RNN, SGD, Config, Data, Elman, TemporalOrder, Train

METHODS = {
    "SGD": {"train.clip_norm": None, "train.omega": None},
    "SGD + clipping": {"train.omega": None},
    "SGD + clipping + Omega": {},
}


def config() -> Config:
    return Config(
        data=Data(source=TemporalOrder(), length=20, batch_size=20),
        model=RNN(
            cell=Elman(init="spectral", gain=0.95),
            hidden_size=50,
            embedding_size=None,
        ),
        train=Train(
            steps=20_000,
            learning_rate=0.01,
            optimizer=SGD(),
            clip_norm=1.0,
            omega=4.0,
            validate_every=1000,
            log_every=1000,
            checkpoint_every=5000,
        ),
    )


def sweep() -> dict[str, dict]:
    return {
        f"{method}, length {length}, seed {seed}": {
            "data.length": length,
            "seed": seed,
            **changes,
        }
        for length in (20, 50, 100)
        for method, changes in METHODS.items()
        for seed in range(3)
    }
