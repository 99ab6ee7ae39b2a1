"""An optimizer with which a run diverges at its eighth update, unless the learning rate is low."""

import jax.numpy as jnp
import optax
import tiny


def bomb(learning_rate):
    """Gradient descent; the eighth update is infinite."""

    def share(count):
        return jnp.where((count == 7) & (learning_rate > 0.06), jnp.inf, 1.0)

    return optax.chain(optax.sgd(learning_rate), optax.scale_by_schedule(share))


def bombed(**train):
    """The config of a run that diverges."""
    train = {"learning_rate": 0.1, "checkpoint_every": 3, "validate_every": 4, **train}
    return tiny.config(train={"optimizer": f"{__file__}:bomb", **train})
