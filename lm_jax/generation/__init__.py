"""Generation: text sampled from a trained model, and the model's own tokens as its inputs."""

from lm_jax.generation.beam import BeamResult, beam
from lm_jax.generation.exposure_bias import Exposure, exposure
from lm_jax.generation.sample import Sample, sample, samples, stream
from lm_jax.generation.scheduled_sampling import sample_inputs

__all__ = [
    "BeamResult",
    "Exposure",
    "Sample",
    "beam",
    "exposure",
    "sample",
    "sample_inputs",
    "samples",
    "stream",
]
