"""Figures of plain arrays, in one style; each saves as SVG, PDF or PNG.

>>> from lm_jax import figures
>>> drawn = figures.lag_norms([1.0, 0.5, 0.25])
>>> drawn.savefig("lag_norms.pdf")  # doctest: +SKIP
"""

from lm_jax.figures.plots import lines
from lm_jax.figures.style import NARROW, WIDE, Figure, plain
from lm_jax.figures.sweeps import (
    heat_map,
    learning_curves,
    parallel_coordinates,
    setting_curve,
)
from lm_jax.figures.tokens import credit_map, local_exponents, next_token
from lm_jax.figures.training import (
    gradient_norms,
    horizon,
    loss_curve,
    over_training,
    runs,
    smoothed,
)
from lm_jax.figures.travel import (
    by_lag,
    eigenvalues,
    eigenvalues_over_training,
    gradient_by_lag,
    lag_norms,
    lyapunov_convergence,
    over_training_by_lag,
    truncation_curve,
)
from lm_jax.figures.updates import estimator_cosines, exposure, loss_slices

__all__ = [
    "NARROW",
    "WIDE",
    "Figure",
    "by_lag",
    "credit_map",
    "eigenvalues",
    "eigenvalues_over_training",
    "estimator_cosines",
    "exposure",
    "gradient_by_lag",
    "gradient_norms",
    "heat_map",
    "horizon",
    "lag_norms",
    "learning_curves",
    "lines",
    "local_exponents",
    "loss_curve",
    "loss_slices",
    "lyapunov_convergence",
    "next_token",
    "over_training",
    "over_training_by_lag",
    "parallel_coordinates",
    "plain",
    "runs",
    "setting_curve",
    "smoothed",
    "truncation_curve",
]
