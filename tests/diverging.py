"""An optimizer with which a run diverges at its eighth update, unless the learning rate is low."""

import jax.numpy as jnp
import optax
import tiny


def diverging_sgd(learning_rate):
    """SGD whose eighth update is infinite if the learning rate is above 0.06."""

    def factor(count):
        return jnp.where((count == 7) & (learning_rate > 0.06), jnp.inf, 1.0)

    return optax.chain(optax.sgd(learning_rate), optax.scale_by_schedule(factor))


def diverging_config(**train):
    """Config of a run that diverges at its eighth update, at a learning rate above 0.06."""
    train = {"learning_rate": 0.1, "checkpoint_every": 3, "validate_every": 4, **train}
    return tiny.config(train={"optimizer": f"{__file__}:diverging_sgd", **train})
