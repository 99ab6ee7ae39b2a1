"""Cliffs: the loss along the gradient and along the sharpest direction of its Hessian.

Close to a bifurcation of a recurrent net, the loss has walls, and a step that meets a wall throws
the parameters far away (Pascanu et al., 2013, section 2.3). With g = ∇J and H = ∇²J, both through
all time steps,

    J(θ + d u) = J(θ) + d gᵀu + d² uᵀHu / 2 + …,    ‖u‖ = 1,

The curvatures uᵀHu describe J close to θ. Slices of J along u = g / ‖g‖ and along the eigenvector
of H's largest eigenvalue show how far from θ the description holds.

H is never formed. A product H v costs about two gradients, and Lanczos' method (1950) finds the
ends of the spectrum from k products. With orthonormal q_1 … q_k spanning v, H v … H^{k-1} v,

    H q_j = β_{j-1} q_{j-1} + α_j q_j + β_j q_{j+1},

and the eigenvalues of the tridiagonal matrix of α and β approach the eigenvalues of H. In floating
point the q lose their orthogonality, and eigenvalues already found come up again. Each q is
therefore made orthogonal, twice, to all q before. The method holds k vectors as long as the
parameters.

Letters: P parameters, k Lanczos steps, u a direction of length 1, d a distance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lm_jax import trees
from lm_jax.gradients.loss_surface import LossFn
from lm_jax.gradients.validation import check_floating, exact_products
from lm_jax.models.base import Params
from lm_jax.settings import UserError


class TopEigenpairs(NamedTuple):
    """The largest eigenvalues of a Hessian, the largest first."""

    eigenvalues: Float[Array, " count"]
    """In nats per token per squared unit of the parameters."""
    directions: Params
    """The eigenvectors, of length 1: leaves [count, ...]; the sign is arbitrary."""
    residuals: Float[Array, " count"]
    """‖H v - λ v‖: an eigenvalue of H lies within this distance of λ."""


class Cliff(NamedTuple):
    """The surface of a loss around some parameters, in nats per token."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    gradient_curvature: Float[Array, ""]
    """gᵀHg / ‖g‖²."""
    eigenvalue: Float[Array, ""]
    """The largest eigenvalue λ of H."""
    residual: Float[Array, ""]
    """‖H v - λ v‖, with v the eigenvector of λ."""
    alignment: Float[Array, ""]
    """Cosine of the angle between g and v; the sign of v is chosen to make the cosine positive."""
    distances: Float[Array, " distances"]
    """Distances of the slices, in units of the parameters; d < 0 goes against the gradient."""
    along_gradient: Float[Array, " distances"]
    """J(θ + d g / ‖g‖)."""
    along_sharpest: Float[Array, " distances"]
    """J(θ + d v)."""


@exact_products
def hessian_vector_product(loss_fn: LossFn, params: Params, vector: Params) -> Params:
    """H v, forward over reverse, at the cost of about two gradients.

    Args:
      loss_fn: params -> scalar, for example `batch_loss(model, carry, batch)`.
      params: θ, the point.
      vector: v, shaped as the parameters.

    Raises:
      UserError: the parameters are not floating-point.
    """
    check_floating(params)
    return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]


@exact_products
def top_eigenpairs(
    loss_fn: LossFn, params: Params, key: Array, *, steps: int, count: int = 1
) -> TopEigenpairs:
    """The largest eigenvalues of the Hessian and their eigenvectors, by Lanczos' method.

    Memory is that of `steps` copies of the parameters. With steps = P every eigenvalue is found.

    Args:
      loss_fn: params -> scalar.
      params: θ, the point.
      key: random key of the first vector.
      steps: k, at most P.
      count: number of eigenvalues, at most k.

    Raises:
      UserError: steps or count is out of range, or the parameters are not floating-point.
    """
    check_floating(params)
    flat, unravel = ravel_pytree(params)
    if not 1 <= steps <= flat.size:
        raise UserError(f"steps={steps} must be from 1 to the {flat.size} parameters")
    if not 1 <= count <= steps:
        raise UserError(f"count={count} must be from 1 to steps={steps}")

    def product(v: Array) -> Array:
        return ravel_pytree(hessian_vector_product(loss_fn, params, unravel(v)))[0]

    alpha, beta, basis = _lanczos(product, key, steps, flat)
    T = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(T)
    found = values[::-1][:count]
    directions = jnp.matmul(vectors[:, ::-1][:, :count].T, basis, precision="highest")
    directions = jax.vmap(trees.normalise)(directions)

    def residual(value_and_direction: tuple[Array, Array]) -> Array:
        value, direction = value_and_direction
        return trees.norm(product(direction) - value * direction)

    residuals = jax.lax.map(residual, (found, directions))
    return TopEigenpairs(found, jax.vmap(unravel)(directions), residuals)


def _lanczos(
    product: Callable[[Array], Array], key: Array, steps: int, like: Array
) -> tuple[Array, Array, Array]:
    """α [k], β [k] and the orthonormal q [k, P]."""
    eps = jnp.finfo(like.dtype).eps

    def drawn(number: Array | int) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), like.shape, like.dtype)

    def orthogonal(basis: Array, v: Array) -> Array:
        for _ in range(2):
            # By default a GPU would multiply with only three digits.
            inner = jnp.matmul(basis, v, precision="highest")
            v = v - jnp.matmul(inner, basis, precision="highest")
        return v

    def step(carry: tuple[Array, Array, Array], number: Array) -> tuple[tuple, tuple]:
        basis, q, scale = carry
        basis = basis.at[number].set(q)
        image = product(q)
        alpha = jnp.dot(q, image, precision="highest")
        rest = orthogonal(basis, image)
        beta = trees.norm(rest)
        scale = jnp.maximum(scale, trees.norm(image))
        # If β is 0, the Krylov space of q_1 is exhausted and the rest is rounding error: go on from
        # a new random vector, orthogonal to all q.
        spent = beta <= 10 * eps * scale
        fresh = orthogonal(basis, drawn(number + 1))
        rest = orthogonal(basis, jnp.where(spent, fresh, rest) / jnp.where(spent, 1, beta))
        beta = jnp.where(spent, 0, beta)
        return (basis, trees.normalise(rest), scale), (alpha, beta)

    first = drawn(0)
    start = jnp.zeros((steps, like.size), like.dtype), trees.normalise(first)
    scale = jnp.zeros((), like.dtype)
    (basis, _, _), (alpha, beta) = jax.lax.scan(step, (*start, scale), jnp.arange(steps))
    return alpha, beta, basis


@exact_products
def loss_slices(
    loss_fn: LossFn, params: Params, directions: Params, distances: Float[Array, " distances"]
) -> Float[Array, "directions distances"]:
    """The loss along straight lines through the parameters.

    Args:
      loss_fn: params -> scalar.
      params: θ, the point shared by all lines.
      directions: u, leaves [directions, ...], each scaled to length 1; a zero direction gives NaN.
      distances: d, in units of the parameters.

    Returns:
      J(θ + d u), in nats per token.

    Raises:
      UserError: distances is empty, a direction is not shaped as the parameters, or the parameters
        are not floating-point.
    """
    check_floating(params)
    if not distances.size:
        raise UserError("distances is empty: a slice needs at least one")
    leaves, shaped = jax.tree.leaves(params), jax.tree.structure(params)
    inner = [leaf.shape[1:] for leaf in jax.tree.leaves(directions)]
    if jax.tree.structure(directions) != shaped or inner != [leaf.shape for leaf in leaves]:
        raise UserError("directions must be shaped as the parameters, with one more axis in front")

    def along(direction: Params) -> Array:
        u = trees.normalise(direction)
        return jax.lax.map(lambda d: loss_fn(optax.tree.add_scale(params, d, u)), distances)

    return jax.lax.map(along, directions)


@exact_products
def cliff(
    loss_fn: LossFn,
    params: Params,
    key: Array,
    *,
    distances: Float[Array, " distances"],
    steps: int = 30,
) -> Cliff:
    """The surface of a loss around some parameters: slope, curvatures, and two slices.

    Args:
      loss_fn: params -> scalar, for example `batch_loss(model, carry, batch)`.
      params: θ, the point.
      key: random key of Lanczos' first vector.
      distances: d of the slices, in units of the parameters.
      steps: k of Lanczos' method; at most P steps are taken.

    Raises:
      UserError: as for `top_eigenpairs` and `loss_slices`.
    """
    check_floating(params)
    loss, grads = jax.value_and_grad(loss_fn)(params)
    uphill = trees.normalise(grads)
    curvature = trees.dot(uphill, hessian_vector_product(loss_fn, params, uphill))
    top = top_eigenpairs(loss_fn, params, key, steps=min(steps, optax.tree.size(params)))
    v = jax.tree.map(lambda leaf: leaf[0], top.directions)
    alignment = trees.cosine(grads, v)
    v = jax.tree.map(lambda leaf: jnp.where(alignment < 0, -leaf, leaf), v)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), uphill, v)
    along_gradient, along_sharpest = loss_slices(loss_fn, params, both, distances)
    return Cliff(
        loss=loss,
        gradient_norm=trees.norm(grads),
        gradient_curvature=curvature,
        eigenvalue=top.eigenvalues[0],
        residual=top.residuals[0],
        alignment=jnp.abs(alignment),
        distances=distances,
        along_gradient=along_gradient,
        along_sharpest=along_sharpest,
    )
