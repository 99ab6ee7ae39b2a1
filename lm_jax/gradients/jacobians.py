"""Step Jacobians of any transition, products of step Jacobians, and their singular values.

A transition is step(params, carry, x) -> carry for one example. The carry, raveled to a vector s of
n numbers (`jax.flatten_util.ravel_pytree`), follows s_{t+1} = step(s_t, x_t), t = 0 … T-1, with

    J_t = ∂s_{t+1}/∂s_t,        P_l = ∂s_T/∂s_{T-l} = J_{T-1} J_{T-2} … J_{T-l}.

The lecture multiplies δ by P_l to go l steps back. P_0 = I. The rows of P_{l+1} are the rows of P_l
pulled back through one more step: n vector-Jacobian products at once, without forming J. The norm
of a product is exponential in l. The rows are therefore divided by a power of two, held beside
them, to keep the largest entry near 1; the division costs no digit.

If a carry holds a NaN, the Jacobians of the steps before and after the carry are NaN, even if
autodiff gives 0 (as for a relu). Every product with one of these Jacobians is NaN, too.

Each function traces anew at every call; wrap a function in `jax.jit` if called often.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from lm_jax.gradients.jacobi import orthogonal_rows
from lm_jax.gradients.validation import Step, check_max_lag, check_transition, exact_products
from lm_jax.models.base import Carry, Params

FlatStep = Callable[[Array, Any], Array]
"""(s[n], x) -> s[n]."""


@exact_products
def step_jacobians(step: Step, params: Params, carry: Carry, xs: Any) -> Float[Array, "T n n"]:
    """The Jacobian of every step, J[t, i, j] = ∂carry_{t+1}[i]/∂carry_t[j].

    Args:
      step: (params, carry, x) -> carry, for one example.
      params: a tree of floating-point arrays.
      carry: the carry before the first step; a tree of floating-point arrays, n numbers in all.
      xs: a tree of arrays [T, ...].

    Returns:
      [T, n, n]. NaN for a step whose carry before or after holds a NaN.

    Raises:
      UserError: T = 0, a dtype is not floating-point, or the step changes the carry's structure,
        shapes or dtypes.
    """
    check_transition(step, params, carry, xs)
    flat, start = flatten(step, params, carry)
    before, sound = trajectory(flat, start, xs)
    J = jax.vmap(jax.jacfwd(flat))(before, xs)
    return jnp.where(sound[:, None, None], J, jnp.nan)


@exact_products
def jacobian_products(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> Float[Array, "lags n n"]:
    """The products of Jacobians P_l = ∂carry_T/∂carry_{T-l}, l = 0 … max_lag.

    An entry too large or too small for the dtype becomes infinite or 0. Nothing overflows on the
    way to a product whose entries are within the dtype's range.

    Args:
      step, params, carry, xs: as for `step_jacobians`.
      max_lag: the largest l.

    Returns:
      [max_lag + 1, n, n], the identity first. NaN from the first product that holds a NaN on.

    Raises:
      UserError: max_lag is negative or longer than T; or as `step_jacobians`.
    """
    flat, state, window = last_window(step, params, carry, xs, max_lag)
    identity = jnp.eye(state.size, dtype=wide(state).dtype)
    return pulled_back(flat, state, window, identity, jnp.ldexp)


@exact_products
def log_singular_values(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> Float[Array, "lags n"]:
    """The logarithms of the singular values of every product of Jacobians, largest first.

    Each value has an error of about ε Σ_t κ(J_t), relative to the value itself and not to the
    largest value, beside the rounding error of its logarithm. Here ε is the dtype's precision and
    κ a condition number. The rows of P_l are kept as lengths times unit rows, orthogonal after
    every lag (one-sided Jacobi rotations, see `lm_jax.gradients.jacobi`): a rounding error is a
    relative change of a single factor. A product that is multiplied out loses small values beside
    large values; here they are kept, and the logarithms neither overflow nor vanish. A value of 0,
    due to a singular J_t, comes out as -∞ or as ε beside the neighbouring values, for κ(J_t) is
    infinite.

    Costs about n rounds of small operations per lag and sweep: for n of a few hundred at most.

    Args:
      step, params, carry, xs, max_lag: as for `jacobian_products`.

    Returns:
      [max_lag + 1, n], in nats. NaN from the first product that holds a NaN on.

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


@exact_products
def singular_values(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> Float[Array, "lags n"]:
    """The singular values of every product of Jacobians, largest first.

    A value too large or too small for the dtype becomes infinite or 0; `log_singular_values` keeps
    the value, and states its accuracy.

    Args:
      step, params, carry, xs, max_lag: as for `jacobian_products`.

    Returns:
      [max_lag + 1, n]; 1 at lag 0. NaN from the first product that holds a NaN on.

    Raises:
      UserError: as `jacobian_products`.
    """
    return jnp.exp(log_singular_values(step, params, carry, xs, max_lag))


def flatten(step: Step, params: Params, carry: Carry) -> tuple[FlatStep, Array]:
    """The transition on raveled carries, and the raveled carry."""
    start, unravel = ravel_pytree(carry)

    def flat(s: Array, x: Any) -> Array:
        return ravel_pytree(step(params, unravel(s), x))[0]

    return flat, start


def trajectory(
    flat: FlatStep, start: Float[Array, " n"], xs: Any
) -> tuple[Float[Array, "T n"], Bool[Array, " T"]]:
    """The carry before each step, and True for each step whose two carries are free of NaN."""
    end, before = jax.lax.scan(lambda s, x: (flat(s, x), s), start, xs)
    whole = ~jnp.any(jnp.isnan(jnp.concatenate([before, end[None]])), axis=1)
    return before, whole[:-1] & whole[1:]


def last_window(
    step: Step, params: Params, carry: Carry, xs: Any, max_lag: int
) -> tuple[FlatStep, Float[Array, " n"], Any]:
    """The flat transition, the carry max_lag steps before the end, and xs from this step on."""
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
    """Apply `measure` to rows P_l at every lag l = 0 … T, with T the length of xs.

    Args:
      flat: the transition.
      start: the carry before the first step of xs.
      xs: a tree of arrays [T, ...].
      rows: the rows at lag 0, [m, n].
      measure: (a[m, n], exponent) -> array, with rows P_l = 2^exponent a. The largest entry of a is
        near 1, or all entries are 0; at lag 0, a is `rows` itself.

    Returns:
      [T + 1, ...]; NaN from the first product that holds a NaN on.
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
    """The product of `rows` and the step's Jacobian at s."""
    _, back = jax.vjp(lambda s: flat(s, x), s)
    return jax.vmap(lambda row: back(row.astype(s.dtype))[0])(rows).astype(rows.dtype)


def scaled(a: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Int[Array, ""]]:
    """Divide an array by a power of two near its largest magnitude; also return the exponent."""
    exponent = jnp.frexp(jax.lax.stop_gradient(jnp.max(jnp.abs(a))))[1]
    return jnp.ldexp(a, -exponent), exponent


def wide(a: Array) -> Array:
    """Cast to single precision at least, for linear algebra."""
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))
