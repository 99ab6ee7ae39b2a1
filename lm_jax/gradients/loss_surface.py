"""The loss of a batch as a surface over the parameters.

All parameters together are a point of a Euclidean space. A gradient or a direction is a tree with
the shapes of the parameters; `lm_jax.trees` computes lengths and angles of such trees.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.data.batches import Batch
from lm_jax.models.base import Carry, LanguageModel, Params, restart, total
from lm_jax.settings import UserError

LossFn = Callable[[Params], Array]
"""params -> [], nats per token."""


def batch_loss(model: LanguageModel, carry: Carry, batch: Batch) -> LossFn:
    """The mean nats over the targets of a batch, as a function of the parameters alone.

    Args:
      model: the language model.
      carry: the model's carry before the batch; reset where the text of a sequence starts.
      batch: T tokens of B sequences.
    """

    def loss(params: Params) -> Float[Array, ""]:
        _, h = model.hidden(params, restart(model, carry, batch.start), batch.x)
        nats = total(model.nats(params, h, batch.y), batch.mask)
        return nats / jnp.maximum(jnp.sum(batch.mask), 1)

    return loss


def refuse_integers(params: Params) -> None:
    """Raise an error unless all parameters are floating-point.

    Raises:
      UserError: the parameters hold no numbers, or a leaf is not floating-point; the message names
        the leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        raise UserError("params hold no numbers, and so have no gradient")
    for path, leaf in leaves:
        kind = jnp.asarray(leaf).dtype
        if not jnp.issubdtype(kind, jnp.floating):
            where = jax.tree_util.keystr(path)
            raise UserError(
                f"params{where} is of type {kind}, not floating-point: a model that is counted, "
                "not trained, has no gradient"
            )
