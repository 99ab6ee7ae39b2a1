"""Lyapunov exponents: the rates at which small changes of a carry grow, in nats per step.

Random orthonormal tangent vectors Q_0 [n, count] are carried along the trajectory,

    J_t Q_t = Q_{t+1} R_{t+1},      λ_i = (1/T) Σ_t ln |R_t[i, i]|

(Benettin et al., 1980; for recurrent networks, Engelken et al., 2023), by Jacobian-vector products:
no array is n × n if count < n. λ₁ > 0 is chaos and λ₁ < 0 a contraction, and ‖∂s_T/∂s_{T-l}‖ grows
as exp(λ₁ l) for large l. The sum of the first k exponents is the rate at which a volume of k
dimensions grows. The influence of Q_0 falls as 1/T.

The exponents are differentiable in params; gradient flossing uses this. An exponent is -∞ if some
J_t has a rank less than count, and has no gradient then (NaN).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.gradients.jacobians import flatten, trajectory, wide
from lm_jax.gradients.validation import Step, check_transition, exact_products
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError


@exact_products
def lyapunov_spectrum(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    count: int,
    *,
    key: Array | None = None,
) -> Float[Array, " count"]:
    """The `count` largest Lyapunov exponents of a trajectory, largest first.

    Args:
      step: (params, carry, x) -> carry, for one example.
      params: a tree of floating-point arrays.
      carry: before the first step; a tree of floating-point arrays, n numbers in all.
      xs: a tree of arrays [T, ...].
      count: exponents, 1 to n.
      key: for the random tangent vectors Q_0; None: key 0.

    Returns:
      [count], in nats per step. NaN if the trajectory contains a NaN.

    Raises:
      UserError: count is not in 1 … n, T = 0, a type is not floating-point, or the step changes the
        carry's structure, shapes or types.
    """
    return _descending(jnp.mean(_growth(step, params, carry, xs, count, key), axis=0))


@exact_products
def lyapunov_convergence(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    count: int,
    *,
    key: Array | None = None,
) -> Float[Array, "T count"]:
    """Lyapunov exponents of the first 1, 2, … T steps; the last row is `lyapunov_spectrum`.

    Args:
      step, params, carry, xs, count, key: as for `lyapunov_spectrum`.

    Returns:
      [T, count], in nats per step, each row largest first. NaN from the first NaN on.

    Raises:
      UserError: as `lyapunov_spectrum`.
    """
    growth = _growth(step, params, carry, xs, count, key)
    steps = jnp.arange(1, growth.shape[0] + 1, dtype=growth.dtype)
    return _descending(jnp.cumsum(growth, axis=0) / steps[:, None])


@exact_products
def finite_time_exponents(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    count: int,
    window: int,
    *,
    key: Array | None = None,
) -> Float[Array, "windows count"]:
    """Lyapunov exponents of each window: they show the places of a text at which the state expands.

    Args:
      step, params, carry, xs, count, key: as for `lyapunov_spectrum`.
      window: steps of a window; the last T mod window steps are left out.

    Returns:
      [T // window, count], in nats per step, in the order of the tangent vectors; the exponents of
      a window need not be sorted. The mean over the windows is the exponents of all windows
      together.

    Raises:
      UserError: window is not in 1 … T; and as `lyapunov_spectrum`.
    """
    growth = _growth(step, params, carry, xs, count, key)
    if not 1 <= window <= growth.shape[0]:
        raise UserError(f"window={window} is not in 1 … T={growth.shape[0]}")
    windows = growth.shape[0] // window
    return jnp.mean(growth[: windows * window].reshape(windows, window, count), axis=1)


@exact_products
def flossing(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    count: int,
    *,
    key: Array | None = None,
) -> Float[Array, ""]:
    """The penalty of gradient flossing: the mean of λ_i² over the `count` largest exponents.

    Its gradient with respect to params pushes the exponents to 0, where gradients neither vanish
    nor explode (Engelken, 2023).

    Args:
      step, params, carry, xs, count, key: as for `lyapunov_spectrum`.

    Returns:
      [], in (nats per step)².

    Raises:
      UserError: as `lyapunov_spectrum`.
    """
    return jnp.mean(lyapunov_spectrum(step, params, carry, xs, count, key=key) ** 2)


def _growth(
    step: Step, params: Params, carry: Carry, xs: Any, count: int, key: Array | None
) -> Float[Array, "T count"]:
    """ln |R_t[i, i]| at every step; NaN from the first NaN of a carry or a Jacobian on."""
    check_transition(step, params, carry, xs)
    flat, start = flatten(step, params, carry)
    if not 1 <= count <= start.size:
        raise UserError(f"count={count} is not in 1 … n={start.size}, the numbers of the carry")
    before, sound = trajectory(flat, start, xs)
    key = jax.random.key(0) if key is None else key
    Q, _ = jnp.linalg.qr(jax.random.normal(key, (start.size, count), wide(start).dtype))

    def push(carry: tuple, at: tuple) -> tuple[tuple, Array]:
        Q, fine = carry
        s, x, sound_t = at
        _, jvp = jax.linearize(lambda s: flat(s, x), s)
        pushed = jax.vmap(jvp, 1, 1)(Q.astype(s.dtype)).astype(Q.dtype)
        fine = fine & sound_t & ~jnp.any(jnp.isnan(pushed))
        # Never decompose NaN: the result depends on the LAPACK library.
        Q, R = jnp.linalg.qr(jnp.where(fine, pushed, Q))
        # The signs of R depend on the library: take |R|, and flip the columns of Q to match.
        # A sum in place of indices, whose derivative a GPU would add up in an order of its own.
        diagonal = jnp.sum(jnp.where(jnp.eye(count, dtype=bool), R, 0), axis=0)
        sign = jnp.where(diagonal < 0, -1, 1).astype(Q.dtype)
        growth = jnp.log(jnp.abs(diagonal))
        return (Q * sign[None], fine), jnp.where(fine, growth, jnp.nan)

    return jax.lax.scan(push, (Q, jnp.asarray(True)), (before, xs, sound))[1]


def _descending(exponents: Array) -> Array:
    return -jnp.sort(-exponents, axis=-1)
