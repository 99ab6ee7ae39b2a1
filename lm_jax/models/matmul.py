"""The product of activations with a weight matrix, in float32 or with factors in bfloat16.

With precision float32, x W is JAX's own product (in float64 if the parameters are float64). With
precision bfloat16, both factors are rounded to 8 significant bits, and multiplied and summed in
float32, the fastest mode of the matrix units of a GPU or TPU. The type of the result does not
depend on the precision. Nothing else is rounded: parameters, carries, gates, softmax, sums and
gradients keep their type.

    x W ≈ bf16(x) bf16(W),   relative error of a term at most 2^-8
    ∂(x W) = ∂x W + x ∂W     each product again in bfloat16 with sums in float32

The second line holds in forward and in reverse mode. The code requests XLA's algorithm
BF16_BF16_F32 on factors of type float32, because the gradient of a factor of type bfloat16 would be
summed in bfloat16, too. A CPU, which gains nothing from bfloat16, runs this algorithm in float32.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Precision = Literal["float32", "bfloat16"]

_ALGORITHM = jax.lax.DotAlgorithmPreset.BF16_BF16_F32


def matmul(
    x: Float[Array, "*shape M"], W: Float[Array, "M N"], precision: Precision = "float32"
) -> Float[Array, "*shape N"]:
    """The product x W over the last axis of x.

    Args:
      x: activations.
      W: weights.
      precision: type to which the factors are rounded.
    """
    return x @ W if precision == "float32" else _rounded_product(x, W)


def round_weights(W: Float[Array, "*shape N"], precision: Precision) -> Float[Array, "*shape N"]:
    """Round the weights for `matmul_in`; a loop calls this once, before the first step."""
    return W if precision == "float32" else W.astype(jnp.bfloat16)


def matmul_in(x: Float[Array, "*shape M"], W: Float[Array, "M N"]) -> Float[Array, "*shape N"]:
    """The product x W in the precision of W, in the type of x; for hand-written gradients."""
    if x.dtype == W.dtype:
        return x @ W
    return jnp.matmul(x.astype(W.dtype), W, preferred_element_type=jnp.float32).astype(x.dtype)


@jax.custom_jvp
def _rounded_product(x: Array, W: Array) -> Array:
    return matmul_in(x, round_weights(W, "bfloat16"))


@_rounded_product.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, W), (d_x, d_W) = primals, tangents
    return _rounded_product(x, W), _fast(d_x, W) + _fast(x, d_W)


def _fast(x: Array, W: Array) -> Array:
    z = jnp.matmul(x.astype(jnp.float32), W.astype(jnp.float32), precision=_ALGORITHM)
    return z.astype(jnp.result_type(x, W))
