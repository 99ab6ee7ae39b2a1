"""Settings of the readout, from the last hidden layer to the probabilities of the next token."""

from typing import Literal

from lm_jax.fields import Probability, Size
from lm_jax.settings import settings


@settings
class Softmax:
    """The exact softmax: p = softmax(h W_hy + b_y)."""

    kind: Literal["softmax"] = "softmax"
    tied: bool = False
    """Use the transposed table of input vectors as W_hy (Inan et al., 2017; Press & Wolf, 2017);
    needs model.embedding-size equal to model.projection, or without it to model.hidden-size."""
    bias: bool = True
    """Add a bias b_y to the logits."""
    label_smoothing: Probability | None = None
    """Training: share of each target's probability spread evenly over the vocabulary; None: none.
    """


@settings
class AdaptiveSoftmax:
    """Frequent tokens first, the others in clusters of falling size (Grave et al., 2017)."""

    kind: Literal["adaptive"] = "adaptive"
    cutoffs: tuple[Size, ...] = (2000, 10000)
    """Token numbers at which a new cluster begins: rising, each below V."""
    factor: Size = 4
    """Each cluster has this many times fewer inputs than the previous cluster."""


@settings
class SampledSoftmax:
    """Trained on each target against sampled tokens (Jean et al., 2015); scored exactly."""

    kind: Literal["sampled"] = "sampled"
    tied: bool = False
    """Use the transposed table of input vectors as W_hy."""
    bias: bool = True
    """Add a bias b_y to the logits."""
    samples: Size = 1024
    """Tokens sampled for each update, fewer than V, without replacement, frequent tokens with
    higher probability."""


@settings
class NoiseContrastive:
    """Trained to distinguish targets from noise tokens (Mnih & Teh, 2012); scored exactly."""

    kind: Literal["nce"] = "nce"
    tied: bool = False
    """Use the transposed table of input vectors as W_hy."""
    bias: bool = True
    """Add a bias b_y to the logits."""
    samples: Size = 256
    """Noise tokens for each target, fewer than V, shared by all targets of an update."""


@settings
class MixtureOfSoftmaxes:
    """A weighted mean of several softmaxes (Yang et al., 2018)."""

    kind: Literal["mos"] = "mos"
    components: Size = 15
    """K, number of softmaxes."""
    size: Size | None = None
    """Numbers that each softmax reads; None: model.embedding-size."""
    tied: bool = False
    """Use the transposed table of input vectors as W_hy."""
    bias: bool = True
    """Add a bias b_y to the logits."""


Readout = Softmax | MixtureOfSoftmaxes | AdaptiveSoftmax | SampledSoftmax | NoiseContrastive
