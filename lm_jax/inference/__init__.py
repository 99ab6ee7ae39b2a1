"""What a trained model is for: log-probabilities of text, and text."""

from lm_jax.inference.sample import sample
from lm_jax.inference.score import Loss, Score, evaluate, score

__all__ = ["Loss", "Score", "evaluate", "sample", "score"]
