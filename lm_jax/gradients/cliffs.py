"""Cliffs: the loss along the gradient and along the sharpest direction of its Hessian.

Where a recurrent net is close to a bifurcation its loss has walls, and a step that met one throws
the parameters far away (Pascanu et al., 2013, section 2.3). With g = ∇J and H = ∇²J, both through
all steps of time,

    J(θ + d u) = J(θ) + d gᵀu + d² uᵀHu / 2 + …,    ‖u‖ = 1,

so the slices of J along u = g / ‖g‖ and along the eigenvector of H's largest eigenvalue show what
the curvatures uᵀHu say of the neighbourhood, and where they stop being true of it.

H is never formed. A product H v costs about two gradients, and Lanczos' method (1950) finds the
ends of the spectrum from k of them: with orthonormal q_1 … q_k that span v, H v … H^{k-1} v,

    H q_j = β_{j-1} q_{j-1} + α_j q_j + β_j q_{j+1},

the eigenvalues of the tridiagonal matrix of α and β approach H's. In floating point the q lose
their orthogonality and found eigenvalues come up again; each q is therefore made orthogonal to all
before it, twice. That takes k vectors as long as the parameters.

Letters: P parameters, k Lanczos steps, u a direction of length 1, d a distance.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lm_jax import models, trees
from lm_jax.gradients.surface import LossFn, refuse_integers
from lm_jax.models.base import Params
from lm_jax.settings import UserError


class Sharpest(NamedTuple):
    """The largest eigenvalues of a Hessian, the largest first."""

    eigenvalues: Float[Array, " count"]
    """In nats per token per squared unit of the parameters."""
    directions: Params
    """Their eigenvectors, of length 1: leaves [count, ...]; the sign means nothing."""
    residuals: Float[Array, " count"]
    """‖H v - λ v‖: an eigenvalue of H lies within that of λ."""


class Cliff(NamedTuple):
    """The neighbourhood of some parameters on the surface of a loss, in nats per token."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    gradient_curvature: Float[Array, ""]
    """gᵀHg / ‖g‖²."""
    eigenvalue: Float[Array, ""]
    """The largest of H."""
    residual: Float[Array, ""]
    """‖H v - λ v‖."""
    alignment: Float[Array, ""]
    """Cosine of the angle between g and v, which is taken with the sign that makes it positive."""
    distances: Float[Array, " distances"]
    """In units of the parameters; a step against the gradient goes to negative ones."""
    along_gradient: Float[Array, " distances"]
    """J(θ + d g / ‖g‖)."""
    along_sharpest: Float[Array, " distances"]
    """J(θ + d v)."""


def hessian_vector_product(loss_fn: LossFn, params: Params, vector: Params) -> Params:
    """H v, forward over reverse, at the cost of about two gradients.

    Args:
      loss_fn: params -> scalar, such as `batch_loss`.
      params: where.
      vector: v, shaped as the parameters.

    Raises:
      UserError: the parameters are not floating-point.
    """
    refuse_integers(params)
    return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]


def sharpest(
    loss_fn: LossFn, params: Params, key: Array, *, steps: int, count: int = 1
) -> Sharpest:
    """The largest eigenvalues of the Hessian and their directions, by Lanczos' method.

    Memory is that of `steps` copies of the parameters. With as many steps as there are parameters
    every eigenvalue is found.

    Args:
      loss_fn: params -> scalar.
      params: where.
      key: of the first vector.
      steps: k, at most P.
      count: how many eigenvalues, at most k.

    Raises:
      UserError: a number is out of range, or the parameters are not floating-point.
    """
    refuse_integers(params)
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
    return Sharpest(found, jax.vmap(unravel)(directions), residuals)


def _lanczos(
    product: Callable[[Array], Array], key: Array, steps: int, like: Array
) -> tuple[Array, Array, Array]:
    """α [k], β [k] and the orthonormal q [k, P]."""
    eps = jnp.finfo(like.dtype).eps

    def drawn(number: Array | int) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), like.shape, like.dtype)

    def orthogonal(basis: Array, v: Array) -> Array:
        for _ in range(2):
            # A GPU would otherwise take three digits for enough.
            inner = jnp.matmul(basis, v, precision="highest")
            v = v - jnp.matmul(inner, basis, precision="highest")
        return v

    def step(carry: tuple[Array, Array, Array], number: Array) -> tuple[tuple, tuple]:
        basis, q, scale = carry
        basis = basis.at[number].set(q)
        image = product(q)
        alpha = q @ image
        rest = orthogonal(basis, image)
        beta = trees.norm(rest)
        scale = jnp.maximum(scale, trees.norm(image))
        # The space that q_1 spans is then exhausted, and what is left of it is rounding error: the
        # method goes on from a vector drawn anew, in the space that is left.
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


def slices(
    loss_fn: LossFn, params: Params, directions: Params, distances: Float[Array, " distances"]
) -> Float[Array, "directions distances"]:
    """The loss along straight lines through the parameters.

    Args:
      loss_fn: params -> scalar.
      params: where the lines meet.
      directions: leaves [directions, ...], each made a length of 1; one that is zero gives NaN.
      distances: in units of the parameters.

    Returns:
      J(θ + d u), in nats per token.

    Raises:
      UserError: there is no distance, or a direction is not shaped as the parameters.
    """
    refuse_integers(params)
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
      loss_fn: params -> scalar, such as `batch_loss`.
      params: where.
      key: of Lanczos' first vector.
      distances: of the slices, in units of the parameters.
      steps: k of Lanczos' method; no more are taken than there are parameters.

    Raises:
      UserError: as for `sharpest` and `slices`.
    """
    refuse_integers(params)
    loss, grads = jax.value_and_grad(loss_fn)(params)
    uphill = trees.normalise(grads)
    curvature = trees.dot(uphill, hessian_vector_product(loss_fn, params, uphill))
    top = sharpest(loss_fn, params, key, steps=min(steps, models.count(params)))
    v = jax.tree.map(lambda leaf: leaf[0], top.directions)
    alignment = trees.cosine(grads, v)
    v = jax.tree.map(lambda leaf: jnp.where(alignment < 0, -leaf, leaf), v)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), uphill, v)
    along_gradient, along_sharpest = slices(loss_fn, params, both, distances)
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
