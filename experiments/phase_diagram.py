"""Vanishing and exploding gradients: initial gain against sequence length, temporal order.

Claim     The initial scale of W_hh decides how much of the gradient reaches the first step:
          ‖∂h_T/∂h_1‖ shrinks for small gains, the faster the longer the sequence, and grows for
          large gains. If the gradient explodes, the task is not learned, although every gradient is
          clipped. If the gradient vanishes, longer sequences need more updates.
Source    Task and network size as in Pascanu, Mikolov & Bengio (2013); Adam and clipping are
          today's habits. W_hh starts as `gain` times an orthogonal matrix: without tanh's slopes,
          at most 1 each, ‖∂h_T/∂h_1‖ would be gain^(T - 1).
Command   python run.py sweep phase_diagram
          Its page, report.html, draws both maps, figures/success.svg and
          figures/first_probe-lag_norm.svg.
Expect    `success`, the share of 1,000 held-out sequences answered right, 25 % by chance; means of
          8 seeds. At T = 16: 84, 75, 100, 100, 100, 45 and 29 % for gains from 0.125 to 8. At
          T = 25: 62 % for a gain of 2, at most 35 % for the others. At T = 10: 59 % for the largest
          gain, 100 % for all others.
          ‖∂h_T/∂h_1‖ before the first update, T = 16: 4e-16 at a gain of 0.125, 5e-3 at 1, 12 at
          2, 1e5 at 8.
Time      4.5 minutes on two CPU cores: 280 trials of 5,000 updates, a program a length.
"""

from lm_jax.config import RNN, Config, Data, Elman, LiveProbe, TemporalOrder, Train
from lm_jax.sweeps import crossed, grid, lanes

GAINS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LENGTHS = (10, 13, 16, 20, 25)
SEEDS = range(8)
UPDATES = 5000


def config() -> Config:
    return Config(
        data=Data(source=TemporalOrder(), length=LENGTHS[0], batch_size=20),
        model=RNN(cell=Elman(init="orthogonal"), hidden_size=50, embedding_size=None),
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
    return crossed(grid({"data.length": LENGTHS}), lanes({"model.cell.gain": GAINS, "seed": SEEDS}))
