"""Neural language models as tuples of pure functions."""

from lm_jax import config as settings
from lm_jax.models.base import LanguageModel, count, restart
from lm_jax.models.cells import elman
from lm_jax.models.rnn import rnn
from lm_jax.models.window import window

__all__ = ["LanguageModel", "count", "elman", "make", "restart", "rnn", "window"]


def make(config: settings.Window | settings.RNN, vocab_size: int) -> LanguageModel:
    """The model that a config describes.

    Args:
      config: `Config.model`; its numbers may be tracers (`lm_jax.settings.bind`).
      vocab_size: V.
    """
    if isinstance(config, settings.Window):
        return window(
            vocab_size=vocab_size,
            order=config.order,
            embedding_size=config.embedding_size,
            hidden_size=config.hidden_size,
            activation=config.activation,
            gain=config.gain,
        )
    return rnn(
        elman(config.hidden_size, config.activation),
        vocab_size=vocab_size,
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        layers=config.layers,
        gain=config.gain,
    )
