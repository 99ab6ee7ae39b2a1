"""A recurrent language model as the pure functions of one example that the gradient tools take.

    carry_t = step(params, carry_{t-1}, x_t),   J_t = loss(params, carry_t, y_t)

x_t is the number of a token, and the carry that of all layers together, without an axis of lanes.
The steps are those of the plain scan, so that every mode of differentiation goes through them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm_jax.models import LanguageModel
from lm_jax.models.base import PLAIN, Carry, Params
from lm_jax.settings import UserError

Step = Callable[[Params, Carry, Array], Carry]
"""(params, carry, x) -> carry, of one example."""
Loss = Callable[[Params, Carry, Any], Array]
"""(params, carry, y) -> [], the nats of one step."""


class Lane(NamedTuple):
    """One lane of a model."""

    carry: Carry
    """Before the text's first token."""
    step: Step
    loss: Loss


def one_lane(model: LanguageModel) -> Lane:
    """The transition and the loss of a recurrent model without dropout.

    Raises:
      UserError: the model has no recurrent state, or dropout.
    """
    refuse_dropout(model)
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


def refuse_dropout(model: LanguageModel) -> None:
    """Returns if a model can be read one step and one lane at a time.

    Raises:
      UserError: it is `noisy`, and drops units, of which a whole batch shares the draw.
    """
    if model.noise.drops:
        raise UserError(
            "the model has dropout, drawn for all steps and lanes of a batch at once: what reads "
            "one step after another needs the model without it"
        )


def of_layers(lane: Lane, params: Params) -> tuple[Step, Loss, Any]:
    """A lane's step and loss as functions of the recurrent layers' parameters, the rest given.

    A table of many words' vectors has no place in a tool that keeps a gradient for every lag.

    Args:
      lane: of a model.
      params: the model's.

    Returns:
      (step, loss, layers), the loss as `where_asked` has it.
    """

    def step(layers: Any, carry: Carry, x: Array) -> Carry:
        return lane.step({**params, "layers": layers}, carry, x)

    def loss(layers: Any, carry: Carry, y: Array) -> Array:
        return lane.loss({**params, "layers": layers}, carry, y)

    return step, where_asked(loss), params["layers"]


def where_asked(loss: Loss) -> Loss:
    """A loss that takes (y, mask) in place of y: 0 where there is no target."""

    def asked(params: Params, carry: Carry, target: tuple[Array, Array]) -> Array:
        y, real = target
        return jnp.where(real, loss(params, carry, y), 0)

    return asked


def without_lane(carry: Carry) -> Carry:
    """The only lane of a carry."""
    return jax.tree.map(lambda leaf: leaf[0], carry)


def _with_lane(carry: Carry) -> Carry:
    return jax.tree.map(lambda leaf: leaf[None], carry)
