"""Step Jacobians of any transition, their products, and the singular values of these.

A transition is step(params, carry, x) -> carry for one example. Its carry, raveled to a vector s of
n numbers (`jax.flatten_util.ravel_pytree`), goes s_{t+1} = step(s_t, x_t), t = 0 … T-1, and

    J_t = ∂s_{t+1}/∂s_t,        P_l = ∂s_T/∂s_{T-l} = J_{T-1} J_{T-2} … J_{T-l}

is what the lecture multiplies δ with to get l steps back. P_0 = I, and each next product is the
rows of the last one pulled back through one more step: n vector-Jacobian products at once, without
J.
Norms of a product are exponential in l; the rows are therefore kept near 1, and the power of two
that they were divided by beside them, which costs no digit.

Where a carry is NaN, so is the derivative of the step into it and out of it, whatever autodiff says
(it says 0 for a relu), and so is every product with that step in it.

Each function traces anew at every call; wrap it in `jax.jit` where it is called often.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from lm_jax.gradients.checks import Step, check_max_lag, check_transition
from lm_jax.gradients.jacobi import orthogonal_rows
from lm_jax.models.base import Carry, Params

FlatStep = Callable[[Array, Any], Array]
"""(s[n], x) -> s[n]."""


def step_jacobians(step: Step, params: Params, carry: Carry, xs: Any) -> Float[Array, "T n n"]:
    """The Jacobian of every step, J[t, i, j] = ∂carry_{t+1}[i]/∂carry_t[j].

    Args:
      step: (params, carry, x) -> carry, for one example.
      params: a tree of floating-point arrays.
      carry: before the first step; a tree of floating-point arrays, n numbers in all.
      xs: a tree of arrays [T, ...].

    Returns:
      [T, n, n]. NaN where the carry before or after the step holds a NaN.

    Raises:
      UserError: T = 0, a type is not floating-point, or the step changes the carry's shape.
    """
    check_transition(step, params, carry, xs)
    flat, start = flatten(step, params, carry)
    before, sound = trajectory(flat, start, xs)
    J = jax.vmap(jax.jacfwd(flat))(before, xs)
    return jnp.where(sound[:, None, None], J, jnp.nan)


def jacobian_products(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> Float[Array, "lags n n"]:
    """The products of Jacobians P_l = ∂carry_T/∂carry_{T-l}, l = 0 … max_lag.

    A number too large or too small for its type becomes infinite or 0, as that number would by
    itself; products of several steps do not overflow on the way.

    Args:
      step, params, carry, xs: as for `step_jacobians`.
      max_lag: the largest l.

    Returns:
      [max_lag + 1, n, n], the identity first. NaN from the first lag on whose product holds a NaN.

    Raises:
      UserError: max_lag is longer than T; and as `step_jacobians`.
    """
    flat, state, window = last_window(step, params, carry, xs, max_lag)
    identity = jnp.eye(state.size, dtype=wide(state).dtype)
    return pulled_back(flat, state, window, identity, jnp.ldexp)


def log_singular_values(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> Float[Array, "lags n"]:
    """The logarithms of the singular values of every product of Jacobians, largest first.

    The values are right, each in proportion to itself and not to the largest, to about ε Σ_t κ(J_t)
    and to the digits of their logarithms, where ε is the type's precision and κ a condition number:
    the rows of P_l are kept as lengths
    times unit rows, orthogonal after every lag (one-sided Jacobi rotations, see
    `lm_jax.gradients.jacobi`), so that a rounding error is a relative change of one factor. What is
    lost in a product that is multiplied out, the small values beside the large, is kept, and the
    logarithms neither overflow nor vanish. A value that is 0 because some J_t is singular comes out
    as -∞ or as ε beside its neighbours, for κ(J_t) is infinite.

    Costs some n rounds of small operations a lag and sweep: for n of a few hundred at most.

    Args:
      step, params, carry, xs, max_lag: as for `jacobian_products`.

    Returns:
      [max_lag + 1, n], in nats. NaN from the first lag on whose product holds a NaN.

    Raises:
      UserError: as `jacobian_products`.
    """
    flat, state, window = last_window(step, params, carry, xs, max_lag)
    before, sound = trajectory(flat, state, window)

    def back(carry: tuple, at: tuple) -> tuple[tuple, Array]:
        rows, logs, fine = carry
        s, x, sound_t = at
        rows = pull(flat, s, x, rows)
        fine = fine & sound_t & ~jnp.any(jnp.isnan(rows))
        rows, logs = orthogonal_rows(jnp.where(fine, rows, 0), logs)
        return (rows, logs, fine), jnp.where(fine, -jnp.sort(-logs), jnp.nan)

    identity = jnp.eye(state.size, dtype=wide(state).dtype)
    first = identity, jnp.zeros_like(identity[0]), jnp.asarray(True)
    _, rest = jax.lax.scan(back, first, (before, window, sound), reverse=True)
    return jnp.concatenate([first[1][None], rest[::-1]])


def singular_values(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> Float[Array, "lags n"]:
    """The singular values of every product of Jacobians, largest first.

    What is too large or too small for its type is infinite or 0; `log_singular_values` has it, and
    says how many digits are right.

    Args:
      step, params, carry, xs, max_lag: as for `jacobian_products`.

    Returns:
      [max_lag + 1, n]; 1 at lag 0. NaN from the first lag on whose product holds a NaN.

    Raises:
      UserError: as `jacobian_products`.
    """
    return jnp.exp(log_singular_values(step, params, carry, xs, max_lag))


def flatten(step: Step, params: Params, carry: Carry) -> tuple[FlatStep, Array]:
    """The transition of the raveled carry, and the raveled carry."""
    start, unravel = ravel_pytree(carry)

    def flat(s: Array, x: Any) -> Array:
        return ravel_pytree(step(params, unravel(s), x))[0]

    return flat, start


def trajectory(
    flat: FlatStep, start: Float[Array, " n"], xs: Any
) -> tuple[Float[Array, "T n"], Bool[Array, " T"]]:
    """The carry before each step, and whether it is free of NaN before and after it."""
    end, before = jax.lax.scan(lambda s, x: (flat(s, x), s), start, xs)
    whole = ~jnp.any(jnp.isnan(jnp.concatenate([before, end[None]])), axis=1)
    return before, whole[:-1] & whole[1:]


def last_window(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> tuple[FlatStep, Float[Array, " n"], Any]:
    """The flat transition, the carry max_lag steps before the end, and the xs from there."""
    steps = check_transition(step, params, carry, xs)
    check_max_lag(max_lag, steps)
    flat, start = flatten(step, params, carry)
    head = jax.tree.map(lambda x: x[: steps - max_lag], xs)
    start, _ = jax.lax.scan(lambda s, x: (flat(s, x), None), start, head)
    return flat, start, jax.tree.map(lambda x: x[steps - max_lag :], xs)


def pulled_back(
    flat: FlatStep,
    start: Float[Array, " n"],
    xs: Any,
    rows: Float[Array, "m n"],
    measure: Callable[[Array, Array], Array],
) -> Array:
    """What is measured of rows P_l at every lag l = 0 … T, where T is the length of xs.

    Args:
      flat: the transition.
      start: the carry before the first step of xs.
      xs: a tree of arrays [T, ...].
      rows: at the end, [m, n].
      measure: (rows[m, n], exponent) -> array, where rows P_l is 2^exponent times these rows, whose
        largest entry is near 1 or which are all 0.

    Returns:
      [T + 1, ...]; NaN from the first lag on whose product holds a NaN.
    """
    before, sound = trajectory(flat, start, xs)

    def back(carry: tuple, at: tuple) -> tuple[tuple, Array]:
        rows, exponent, fine = carry
        s, x, sound_t = at
        rows = pull(flat, s, x, rows)
        fine = fine & sound_t & ~jnp.any(jnp.isnan(rows))
        rows, more = scaled(jnp.where(fine, rows, 0))
        exponent = exponent + more
        return (rows, exponent, fine), jnp.where(fine, measure(rows, exponent), jnp.nan)

    zero = jnp.zeros((), jnp.int32)
    _, rest = jax.lax.scan(back, (rows, zero, jnp.asarray(True)), (before, xs, sound), reverse=True)
    return jnp.concatenate([measure(rows, zero)[None], rest[::-1]])


def pull(
    flat: FlatStep, s: Float[Array, " n"], x: Any, rows: Float[Array, "m n"]
) -> Float[Array, "m n"]:
    """rows J, where J is the step's Jacobian at s."""
    _, back = jax.vjp(lambda s: flat(s, x), s)
    return jax.vmap(lambda row: back(row.astype(s.dtype))[0])(rows).astype(rows.dtype)


def scaled(a: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Int[Array, ""]]:
    """The array over the power of two that its largest magnitude has, and that power."""
    exponent = jnp.frexp(jax.lax.stop_gradient(jnp.max(jnp.abs(a))))[1]
    return jnp.ldexp(a, -exponent), exponent


def wide(a: Array) -> Array:
    """In single precision at least, which is what linear algebra is done in."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))
