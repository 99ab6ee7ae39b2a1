"""Where a gradient vanishes and where it explodes: initial gain against length, temporal order.

Claim     The size of W_hh at the start decides how much of a gradient comes back to the first step:
          ‖∂h_T/∂h_1‖ falls off on one side of the diagram, the faster the longer the sequence, and
          grows on the other. Where it explodes, the task is not learned although every gradient is
          clipped; where it vanishes, more updates are needed the longer the sequence is.
Source    The task and the size of the network are those of Pascanu, Mikolov & Bengio (2013); Adam
          and clipping are today's habits. W_hh starts as `gain` times an orthogonal matrix, so
          without tanh's slopes, which are at most 1, ‖∂h_T/∂h_1‖ would be gain^(T - 1).
Command   python run.py sweep phase_diagram
          python docs/figures/phase_diagram.py RUN_DIR      draws docs/phase_diagram.svg from it
Expect    `success`, the share of 1,000 held-out sequences, 25 % by chance; means of 8 seeds. At
          T = 16: 84, 75, 100, 100, 100, 45 and 29 % for gains from 0.125 to 8. At T = 25 a gain
          of 2 has 62 %, the others at most 35 %; at T = 10 all have 100 % but the largest, 59 %.
          ‖∂h_T/∂h_1‖ before the first update, T = 16: 4e-16 at a gain of 0.125, 5e-3 at 1, 12 at
          2, 1e5 at 8.
Time      4.5 minutes on two CPU cores: 280 trials of 5,000 updates, a program a length.
"""

from lm_jax.config import RNN, Config, Data, LiveProbe, TemporalOrder, Train
from lm_jax.sweeps import crossed, grid, lanes

GAINS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LENGTHS = (10, 13, 16, 20, 25)
SEEDS = range(8)
UPDATES = 5000


def config() -> Config:
    return Config(
        data=Data(task=TemporalOrder(), length=LENGTHS[0], batch_size=20),
        model=RNN(cell="elman", hidden_size=50, embedding_size=None, init="orthogonal"),
        train=Train(
            steps=UPDATES,
            learning_rate=0.003,
            clip_norm=1.0,
            # Before the first update and after the last.
            probe=LiveProbe(every=UPDATES, deltas=False, by_lag=False, lags=True),
            validate_every=UPDATES,
            log_every=1000,
            checkpoint_every=UPDATES,
        ),
    )


def sweep() -> list[dict]:
    return crossed(grid({"data.length": LENGTHS}), lanes({"model.gain": GAINS, "seed": SEEDS}))
