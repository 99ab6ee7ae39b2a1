"""Lyapunov exponents: the rates at which small changes of a carry grow, in nats a step.

Tangent vectors Q_0 [n, count], orthonormal and random, are carried along the trajectory,

    J_t Q_t = Q_{t+1} R_{t+1},      λ_i = (1/T) Σ_t ln |R_t[i, i]|

(Benettin et al., 1980; of recurrent networks, Engelken et al., 2023), by Jacobian-vector products:
nothing is n × n where count < n. λ₁ > 0 is chaos and λ₁ < 0 a contraction, and ‖∂s_T/∂s_{T-l}‖
goes as exp(λ₁ l) for large l. The sum of the first k is the rate at which a volume of k dimensions
grows. What Q_0 was is forgotten as 1/T.

All of it is differentiable in params, which gradient flossing rests on. An exponent that is -∞, for
J_t has a rank less than count, has no gradient (NaN).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lm_jax.gradients.checks import Step, check_transition
from lm_jax.gradients.jacobians import flatten, trajectory, wide
from lm_jax.models.base import Carry, Params
from lm_jax.settings import UserError


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
      key: of the random tangent vectors to begin with; None: key 0.

    Returns:
      [count], in nats a step. NaN where the trajectory holds a NaN.

    Raises:
      UserError: count is not in 1 … n, T = 0, a type is not floating-point, or the step changes the
        carry's structure, shapes or types.
    """
    return _descending(jnp.mean(_growth(step, params, carry, xs, count, key), axis=0))


def lyapunov_convergence(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    count: int,
    *,
    key: Array | None = None,
) -> Float[Array, "T count"]:
    """What `lyapunov_spectrum` would be after each step; its last row is the spectrum.

    Args:
      step, params, carry, xs, count, key: as for `lyapunov_spectrum`.

    Returns:
      [T, count], in nats a step, each row largest first. NaN from the first NaN on.

    Raises:
      UserError: as `lyapunov_spectrum`.
    """
    growth = _growth(step, params, carry, xs, count, key)
    steps = jnp.arange(1, growth.shape[0] + 1, dtype=growth.dtype)
    return _descending(jnp.cumsum(growth, axis=0) / steps[:, None])


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
    """The exponents of each window of a trajectory: where in a text the state expands.

    Args:
      step, params, carry, xs, count, key: as for `lyapunov_spectrum`.
      window: steps of a window; the T mod window steps at the end belong to none.

    Returns:
      [T // window, count], in nats a step, in the order of the tangent vectors and so not always
      falling within a window; their mean over the windows is the exponents over all of them.

    Raises:
      UserError: window is not in 1 … T; and as `lyapunov_spectrum`.
    """
    growth = _growth(step, params, carry, xs, count, key)
    if not 1 <= window <= growth.shape[0]:
        raise UserError(f"window={window} is not in 1 … T={growth.shape[0]}")
    windows = growth.shape[0] // window
    return jnp.mean(growth[: windows * window].reshape(windows, window, count), axis=1)


def flossing(
    step: Step,
    params: Params,
    carry: Carry,
    xs: Any,
    count: int,
    *,
    key: Array | None = None,
) -> Float[Array, ""]:
    """The penalty of gradient flossing, the mean of λ_i² over the first `count` exponents.

    Differentiated with respect to params it pushes the exponents to 0, where gradients neither
    vanish nor explode (Engelken, 2023).

    Args:
      step, params, carry, xs, count, key: as for `lyapunov_spectrum`.

    Returns:
      [], in squared nats a step.

    Raises:
      UserError: as `lyapunov_spectrum`.
    """
    return jnp.mean(lyapunov_spectrum(step, params, carry, xs, count, key=key) ** 2)


def _growth(
    step: Step, params: Params, carry: Carry, xs: Any, count: int, key: Array | None
) -> Float[Array, "T count"]:
    """ln |R_t[i, i]| of every step; NaN from the first NaN of a carry or a Jacobian on."""
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
        # A decomposition of NaN is not asked for: what LAPACK makes of it is not agreed upon.
        Q, R = jnp.linalg.qr(jnp.where(fine, pushed, Q))
        # R's signs are the library's choice, and go out of both with |R|.
        sign = jnp.where(jnp.diagonal(R) < 0, -1, 1).astype(Q.dtype)
        growth = jnp.log(jnp.abs(jnp.diagonal(R)))
        return (Q * sign[None], fine), jnp.where(fine, growth, jnp.nan)

    return jax.lax.scan(push, (Q, jnp.asarray(True)), (before, xs, sound))[1]


def _descending(exponents: Array) -> Array:
    return -jnp.sort(-exponents, axis=-1)
