"""Uses of a trained model: log-probabilities of text, and generated text."""

from lm_jax.inference.beam import BeamResult, beam
from lm_jax.inference.blocks import Block, Line, blocks, line_blocks, lines
from lm_jax.inference.cache import cache
from lm_jax.inference.dynamic import Rule, dynamic, rms, root_mean_square_gradient, sgd
from lm_jax.inference.exposure_bias import Exposure, exposure
from lm_jax.inference.parallel import parallel_scorer, stretch_length
from lm_jax.inference.sample import Sample, sample, samples, stream
from lm_jax.inference.scheduled_sampling import sample_inputs
from lm_jax.inference.score import Loss, Score, Tally, evaluate, score
from lm_jax.inference.scorer import Scorer

__all__ = [
    "BeamResult",
    "Block",
    "Exposure",
    "Line",
    "Loss",
    "Rule",
    "Sample",
    "Score",
    "Scorer",
    "Tally",
    "beam",
    "blocks",
    "cache",
    "dynamic",
    "evaluate",
    "exposure",
    "line_blocks",
    "lines",
    "parallel_scorer",
    "rms",
    "root_mean_square_gradient",
    "sample",
    "sample_inputs",
    "samples",
    "score",
    "sgd",
    "stream",
    "stretch_length",
]
