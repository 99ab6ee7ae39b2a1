"""Scoring: log-probabilities of a text under a trained model, by token, by line and in total."""

from lm_jax.scoring.blocks import Block, Line, blocks, line_blocks, lines
from lm_jax.scoring.cache import cache
from lm_jax.scoring.dynamic import Rule, dynamic, rms, root_mean_square_gradient, sgd
from lm_jax.scoring.parallel import parallel_scorer, stretch_length
from lm_jax.scoring.score import Loss, Score, Tally, evaluate, fitted_weight, score
from lm_jax.scoring.scorer import Scorer

__all__ = [
    "Block",
    "Line",
    "Loss",
    "Rule",
    "Score",
    "Scorer",
    "Tally",
    "blocks",
    "cache",
    "dynamic",
    "evaluate",
    "fitted_weight",
    "line_blocks",
    "lines",
    "parallel_scorer",
    "rms",
    "root_mean_square_gradient",
    "score",
    "sgd",
    "stretch_length",
]
