"""Reach of the gradient, measured between two updates of the training.

The measurements are tools of `lm_jax.gradients`, applied to a few sequences of the next batch and
to the current parameters, without dropout:

- by lag: the norm of the gradient of the recurrent layers' weights at each lag l = t - k, and the
  horizon: the number of steps back that hold half, 90 % and 99 % of this gradient, by the relative
  error of the truncated gradients;
- lags: the spectral norm of ∂h_T/∂h_{T-l} for l = 0 … T - 1, with h the state of all layers and T
  the end of the chunk; the arithmetic mean over the sequences (`lm_jax.probe` takes the mean
  over several ends T, too);
- spectra: the spectral radius and the largest singular value of each block of every W_hh made of
  square blocks;
- lyapunov: the largest exponent along the chunk, averaged over the sequences.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.config import LiveProbe
from lm_jax.data.batches import Batch, first_sequences
from lm_jax.gradients.by_lag import gradient_by_lag
from lm_jax.gradients.example import SingleExample, restrict_to_layers, single_example
from lm_jax.gradients.horizon import horizon
from lm_jax.gradients.lags import lag_norms
from lm_jax.gradients.lyapunov import lyapunov_spectrum
from lm_jax.gradients.spectra import block_norms, block_radii, made_of_blocks
from lm_jax.gradients.truncations import Truncations, truncations
from lm_jax.models import LanguageModel, restart
from lm_jax.models.base import Carry, Params
from lm_jax.trees import norm

SHARES = (0.5, 0.9, 0.99)

Measurements = dict[str, Any]
"""Arrays by name, as in a row of metrics.jsonl."""


@functools.lru_cache(maxsize=16)
def live(probe: LiveProbe, model: LanguageModel) -> Callable[[Params, Carry, Batch], Measurements]:
    """Compile the measurements into a function (params, carry, batch) -> answers.

    Args:
      probe: the measurements to take.
      model: a recurrent model.

    Raises:
      UserError: the model has no recurrent state.
    """
    example = single_example(model)

    def ask(params: Params, carry: Carry, batch: Batch) -> Measurements:
        carry = restart(model, carry, batch.start)
        carry = jax.tree.map(lambda leaf: leaf[: probe.sequences], carry)
        batch = first_sequences(batch, probe.sequences)
        x, layers = batch.x, params["layers"]
        answers: Measurements = {}
        if probe.by_lag:
            norms_by_lag, _, horizons = split_by_lag(example, params, carry, batch)
            answers |= {"gradient_by_lag": norms_by_lag, "horizon": horizons}
        if probe.lags:

            def norms(own: tuple[Carry, Array]) -> Array:
                return lag_norms(example.step, params, *own, len(x) - 1)

            # One sequence after another, in the memory of a single sequence.
            each = jax.lax.map(norms, (carry, jnp.moveaxis(x, 1, 0)))
            answers["lag_norms"] = jnp.mean(each, axis=0)
        if probe.spectra:
            answers["spectral_radius"] = _of_blocks(layers, block_radii)
            answers["singular_value"] = _of_blocks(layers, block_norms)
        if probe.lyapunov:

            def largest(carry: Carry, x: Array) -> Array:
                return lyapunov_spectrum(example.step, params, carry, x, 1)[0]

            answers["lyapunov"] = jnp.mean(jax.vmap(largest, (0, 1))(carry, x))
        return answers

    return jax.jit(ask)


def split_by_lag(
    example: SingleExample, params: Params, carry: Carry, batch: Batch
) -> tuple[Float[Array, " T"], Truncations, dict[str, Float[Array, ""]]]:
    """Split the gradient of the mean loss over a batch's targets by lag.

    The gradient is with respect to the weights of the recurrent layers.

    Args:
      example: the transition and loss of the model.
      params: all parameters of the model.
      carry: of all sequences, before the batch.
      batch: T steps of B sequences.

    Returns:
      (norms, truncations, horizons): the norm at each lag, in nats per unit of the weights; the
      truncated gradients; the horizon of each share of `SHARES`, in steps.
    """
    step, loss, layers = restrict_to_layers(example, params)
    target, last = (batch.y, batch.mask), len(batch.x) - 1
    lags = gradient_by_lag(step, loss, layers, carry, batch.x, target, last, batched=True)
    # `gradient_by_lag` divides by the number of all places, masked places included.
    targets = batch.mask.size / jnp.maximum(jnp.sum(batch.mask), 1)
    lags = jax.tree.map(lambda leaf: leaf * targets.astype(leaf.dtype), lags)
    split = truncations(lags)
    return norm(lags, kept=1), split, {f"{share:g}": horizon(split, share) for share in SHARES}


def _of_blocks(layers: Any, measure: Callable[[Array], Array]) -> dict[str, Array]:
    """Measure each gate's block of W_hh, by layer; skip a layer without square blocks."""
    inside = [own.get("recurrence", own) if isinstance(own, dict) else own for own in layers]
    return {
        str(place): measure(own["W_hh"])
        for place, own in enumerate(inside)
        if isinstance(own, dict) and made_of_blocks(own.get("W_hh"))
    }
