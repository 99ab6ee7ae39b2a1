"""A recurrent language model as pure functions of a single example, for the gradient tools.

    carry_t = step(params, carry_{t-1}, x_t),   J_t = loss(params, carry_t, y_t)

x_t is the id of a token. The carry is the state of all layers together, without a batch axis. The
functions take the steps of the plain scan, so every mode of differentiation works on them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lm_jax.gradients.validation import Step, StepLoss
from lm_jax.models import LanguageModel
from lm_jax.models.base import NO_HOOK, Carry, Params
from lm_jax.models.rnn import RNNModel
from lm_jax.settings import UserError


class SingleExample(NamedTuple):
    """A recurrent model for a single sequence."""

    carry: Carry
    """The state before the first token of the text."""
    step: Step
    loss: StepLoss


def single_example(model: LanguageModel) -> SingleExample:
    """The transition and the loss of a recurrent model, for a single sequence.

    Raises:
      UserError: the model has no recurrent state, or has dropout.
    """
    check_no_dropout(model)
    if not isinstance(model, RNNModel):
        raise UserError(
            "the model has no recurrent state through which a gradient could travel: "
            "this needs model=rnn"
        )

    def step(params: Params, carry: Carry, x: Array) -> Carry:
        after, _ = model.hidden(params, _add_batch_axis(carry), x[None, None], NO_HOOK)
        return drop_batch_axis(after)

    def loss(params: Params, carry: Carry, y: Array) -> Array:
        return model.nats(params, model.output(_add_batch_axis(carry)), y[None])[0]

    return SingleExample(drop_batch_axis(model.init_carry(1)), step, loss)


def check_no_dropout(model: LanguageModel) -> None:
    """Raise an error if the model has dropout.

    Dropout is drawn for a whole batch at once. A tool that reads single steps of single sequences
    needs a model without dropout.

    Raises:
      UserError: the model has dropout.
    """
    if model.dropout.drops:
        raise UserError(
            "the model has dropout, drawn for all steps and sequences of a batch at once: what "
            "reads one step after another needs the model without it"
        )


def restrict_to_layers(example: SingleExample, params: Params) -> tuple[Step, StepLoss, Any]:
    """Step and loss as functions of the recurrent layers' parameters alone.

    The other parameters are constants: a tool with a gradient for every lag has no memory for the
    gradient of a large embedding table.

    Args:
      example: the functions of a model.
      params: all parameters of the model.

    Returns:
      (step, loss, layers): the functions, and the recurrent layers' parameters. The loss takes
      (y, mask) in place of y, see `masked_loss`.
    """

    def step(layers: Any, carry: Carry, x: Array) -> Carry:
        return example.step({**params, "layers": layers}, carry, x)

    def loss(layers: Any, carry: Carry, y: Array) -> Array:
        return example.loss({**params, "layers": layers}, carry, y)

    return step, masked_loss(loss), params["layers"]


def masked_loss(loss: StepLoss) -> StepLoss:
    """The loss as a function of (y, mask) in place of y; 0 if mask is False."""

    def asked(params: Params, carry: Carry, target: tuple[Array, Array]) -> Array:
        y, real = target
        return jnp.where(real, loss(params, carry, y), 0)

    return asked


def drop_batch_axis(carry: Carry) -> Carry:
    """Remove the batch axis of a carry that holds a single sequence."""
    return jax.tree.map(lambda leaf: leaf[0], carry)


def _add_batch_axis(carry: Carry) -> Carry:
    return jax.tree.map(lambda leaf: leaf[None], carry)
