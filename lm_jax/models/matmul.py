"""The product of activations with a weight matrix, with factors in float32, tf32 or bfloat16.

With precision float32, x W is a full product on every platform (in float64 if the parameters are
float64). The two other precisions round the factors of a product, and sum in float32:

    platform      tf32                              bfloat16
    NVIDIA GPU    10 bits after the binary point    7 bits
    TPU           about as exact as on a GPU, by    7 bits
                  three products in bfloat16
    CPU           not rounded, as float32           forwards rounded to 7 bits, no faster

JAX's own default, which no product here uses, is float32 on a CPU, tf32 on a GPU and bfloat16 on a
TPU. The type of the result does not depend on the precision. Nothing else is rounded: parameters,
carries, gates, softmax, sums and gradients keep their type.

    x W ≈ bf16(x) bf16(W),   relative error of a term at most 2^-8
    ∂(x W) = ∂x W + x ∂W     each product again in bfloat16 with sums in float32

The second line holds in forward and in reverse mode. The code requests XLA's algorithm
BF16_BF16_F32 on factors of type float32, because the gradient of a factor of type bfloat16 would be
summed in bfloat16, too. A CPU runs this algorithm in float32.

The product of N one-hot vectors with W [V, G] is a choice of rows of W (`rows`), and the gradient
of W adds up the rows' gradients by token. A GPU would add them in an order that changes from run to
run, by atomic additions. The derivative is therefore a product there, too: of the one-hot vectors
with dW if V is at most N or `FEW_WORDS`; else of the matrix [token i = token j] with the rows of dW
of the N tokens, each token's at its first place j alone, so that no row is written twice. Both need
at most as many multiplications as the logits of a softmax over V tokens from G units.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Precision = Literal["float32", "tf32", "bfloat16"]

FEW_WORDS = 1024
"""Rows of a matrix that are multiplied by one-hot vectors, even if there are fewer tokens."""
AT_ONCE = 4096
"""Tokens whose rows' gradients an accelerator adds up in one product."""

_ALGORITHM = jax.lax.DotAlgorithmPreset.BF16_BF16_F32


def matmul(
    x: Float[Array, "*shape M"], W: Float[Array, "M N"], precision: Precision = "float32"
) -> Float[Array, "*shape N"]:
    """The product x W over the last axis of x.

    Args:
      x: activations.
      W: weights.
      precision: of the factors.
    """
    if precision == "bfloat16":
        return _rounded_product(x, W)
    return jnp.matmul(x, W, precision=xla_precision(precision))


def xla_precision(precision: Precision) -> jax.lax.Precision | None:
    """XLA's name of a precision; None if the factors have the type bfloat16 already."""
    of = {"float32": jax.lax.Precision.HIGHEST, "tf32": jax.lax.Precision.HIGH, "bfloat16": None}
    return of[precision]


def round_weights(W: Float[Array, "*shape N"], precision: Precision) -> Float[Array, "*shape N"]:
    """Round the weights for `matmul_in`; a loop calls this once, before the first step."""
    return W.astype(jnp.bfloat16) if precision == "bfloat16" else W


def matmul_in(
    x: Float[Array, "*shape M"], W: Float[Array, "M N"], precision: Precision
) -> Float[Array, "*shape N"]:
    """The product of x and weights from `round_weights`, in the type of x.

    For hand-written gradients: a derivative of this product in bfloat16 would be summed in
    bfloat16, too.
    """
    product = jnp.matmul(
        x.astype(W.dtype),
        W,
        precision=xla_precision(precision),
        preferred_element_type=jnp.promote_types(W.dtype, jnp.float32),
    )
    return product.astype(x.dtype)


@jax.custom_jvp
def rows(W: Float[Array, "V G"], numbers: Int[Array, "*shape"]) -> Float[Array, "*shape G"]:
    """The rows of W with the given numbers; a number below 0 counts from the end.

    On every platform the derivatives are sums in an order that is the same in each run.
    """
    return W[numbers]


@rows.defjvp
def _(primals: tuple[Array, Array], tangents: tuple) -> tuple[Array, Array]:
    (W, numbers), (d_W, _) = primals, tangents
    d = jax.lax.platform_dependent(d_W, numbers, cpu=lambda W, at: W[at], default=rows_in_order)
    return rows(W, numbers), d


@jax.custom_jvp
def columns(W: Float[Array, "G V"], numbers: Int[Array, " N"]) -> Float[Array, "G N"]:
    """The columns of W with the given numbers; as `rows`, without a transpose of W on a CPU."""
    return W[:, numbers]


@columns.defjvp
def _(primals: tuple[Array, Array], tangents: tuple) -> tuple[Array, Array]:
    (W, numbers), (d_W, _) = primals, tangents
    d = jax.lax.platform_dependent(
        d_W,
        numbers,
        cpu=lambda W, at: W[:, at],
        default=lambda W, at: rows_in_order(W.T, at).T,
    )
    return columns(W, numbers), d


def rows_in_order(
    W: Float[Array, "V G"], numbers: Int[Array, "*shape"]
) -> Float[Array, "*shape G"]:
    """`rows` as a product, whose derivatives are products, too (see module head)."""
    V = W.shape[0]
    numbers = jnp.where(numbers < 0, numbers + V, numbers)
    if V <= FEW_WORDS:
        # Not flattened: each of several devices multiplies the tokens of its own sequences.
        return matmul(jax.nn.one_hot(numbers, V, dtype=W.dtype), W)
    flat = numbers.reshape(-1)
    if flat.size <= AT_ONCE:
        return _product_of_one_hot(flat, W).reshape(*numbers.shape, W.shape[1])
    padded = jnp.pad(flat, (0, -flat.size % AT_ONCE)).reshape(-1, AT_ONCE)
    found = jax.lax.map(lambda some: _product_of_one_hot(some, W), padded)
    return found.reshape(-1, W.shape[1])[: flat.size].reshape(*numbers.shape, W.shape[1])


def _product_of_one_hot(numbers: Int[Array, " N"], W: Float[Array, "V G"]) -> Float[Array, "N G"]:
    V, place = W.shape[0], jnp.arange(numbers.size)
    if V <= numbers.size:
        return matmul(jax.nn.one_hot(numbers, V, dtype=W.dtype), W)
    first = jnp.argmax(numbers[:, None] == numbers[None], axis=0) == place
    listed = jnp.where(first, numbers, V + place)  # out of bounds where the token came before
    listed_rows = W.at[listed].get(mode="fill", fill_value=0, unique_indices=True)
    return matmul((numbers[:, None] == listed[None]).astype(W.dtype), listed_rows)


@jax.custom_jvp
def _rounded_product(x: Array, W: Array) -> Array:
    return matmul_in(x, round_weights(W, "bfloat16"), "bfloat16")


@_rounded_product.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, W), (d_x, d_W) = primals, tangents
    return _rounded_product(x, W), _fast(d_x, W) + _fast(x, d_W)


def _fast(x: Array, W: Array) -> Array:
    z = jnp.matmul(x.astype(jnp.float32), W.astype(jnp.float32), precision=_ALGORITHM)
    return z.astype(jnp.result_type(x, W))
