"""A recurrent language model as the pure functions of one example that the gradient tools take.

    carry_t = step(params, carry_{t-1}, x_t),   J_t = loss(params, carry_t, y_t)

x_t is the number of a token, and the carry that of all layers together, without an axis of lanes.
The steps are those of the plain scan, so that every mode of differentiation goes through them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array

from lm_jax.models import LanguageModel
from lm_jax.models.base import PLAIN, Carry, Params
from lm_jax.settings import UserError

Step = Callable[[Params, Carry, Array], Carry]
"""(params, carry, x) -> carry, of one example."""
Loss = Callable[[Params, Carry, Array], Array]
"""(params, carry, y) -> [], the nats of one step."""


class Lane(NamedTuple):
    """One lane of a model."""

    carry: Carry
    """Before the text's first token."""
    step: Step
    loss: Loss


def one_lane(model: LanguageModel) -> Lane:
    """The transition and the loss of a recurrent model, dropout left out.

    Raises:
      UserError: the model has no recurrent state.
    """
    output = model.output
    if output is None:
        raise UserError(
            "the model has no recurrent state through which a gradient could travel: "
            "this needs model.kind=rnn"
        )

    def step(params: Params, carry: Carry, x: Array) -> Carry:
        after, _ = model.hidden(params, _with_lane(carry), x[None, None], PLAIN)
        return without_lane(after)

    def loss(params: Params, carry: Carry, y: Array) -> Array:
        return model.nats(params, output(_with_lane(carry)), y[None])[0]

    return Lane(without_lane(model.init_carry(1)), step, loss)


def without_lane(carry: Carry) -> Carry:
    """The only lane of a carry."""
    return jax.tree.map(lambda leaf: leaf[0], carry)


def _with_lane(carry: Carry) -> Carry:
    return jax.tree.map(lambda leaf: leaf[None], carry)
