"""One-sided Jacobi rotations: singular values, with small values accurate beside large values.

A matrix A is kept as rows e^{ℓ_i} u_i. A rotation of two rows does not change the singular values.
The rotation a_i ← cos θ (a_i + t a_j), a_j ← cos θ (a_j - t a_i) makes the two rows orthogonal for

    t = 2 s c / (1 - s² + √((1 - s²)² + 4 s² c²)),   c = u_i · u_j,   s = e^{ℓ_j - ℓ_i} ≤ 1.

The new length of a_j, relative to the old length, needs only t / s, and t / s stays finite even if
s is rounded to 0. Once all rows are orthogonal, their lengths are the singular values, each with a
relative error of ε times the condition number of the rows scaled to unit length (Demmel & Veselić,
1992), however far apart the lengths are.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SWEEPS = 30  # at most; six to ten are usual, as convergence is quadratic in the end


def orthogonal_rows(
    rows: Float[Array, "m n"], logs: Float[Array, " m"]
) -> tuple[Float[Array, "m n"], Float[Array, " m"]]:
    """Make the rows of a matrix orthogonal by rotations of pairs of rows.

    Args:
      rows: u, of any length.
      logs: ℓ; row i of the matrix is exp(ℓ_i) u_i.

    Returns:
      orthogonal rows of length 1 (or 0), and the logarithms of the rows' lengths in the matrix, -∞
      for a row of length 0; in no order.
    """
    m, n = rows.shape
    even = m + m % 2
    rows = jnp.zeros((even, n), rows.dtype).at[:m].set(rows)
    rows, logs = _unit(rows, jnp.full(even, -jnp.inf, rows.dtype).at[:m].set(logs))
    rounds = jnp.asarray(_rounds(even))
    tolerance = m * jnp.finfo(rows.dtype).eps

    def rotate(state: tuple, pairs: Array) -> tuple[tuple, Array]:
        rows, logs = state
        first, second = pairs[0], pairs[1]
        longer = logs[first] >= logs[second]
        i, j = jnp.where(longer, first, second), jnp.where(longer, second, first)
        apart = jnp.where(jnp.isneginf(logs[j]), -jnp.inf, logs[j] - logs[i])
        c, s, rest = jnp.sum(rows[i] * rows[j], axis=1), jnp.exp(apart), -jnp.expm1(2 * apart)
        below = rest + jnp.sqrt(rest**2 + (2 * s * c) ** 2)
        ratio = jnp.where(below > 0, 2 * c / jnp.where(below > 0, below, 1), 0)
        cosine = jax.lax.rsqrt(1 + (ratio * s) ** 2)
        a = cosine[:, None] * (rows[i] + (ratio * s * s)[:, None] * rows[j])
        b = cosine[:, None] * (rows[j] - ratio[:, None] * rows[i])
        a, log_a = _unit(a, logs[i])
        b, log_b = _unit(b, logs[j])
        # Rows already orthogonal are left alone: each rotation would cost a rounding error.
        turn = jnp.abs(c) > tolerance
        a, b = jnp.where(turn[:, None], a, rows[i]), jnp.where(turn[:, None], b, rows[j])
        log_a, log_b = jnp.where(turn, log_a, logs[i]), jnp.where(turn, log_b, logs[j])
        state = rows.at[i].set(a).at[j].set(b), logs.at[i].set(log_a).at[j].set(log_b)
        return state, jnp.max(jnp.abs(c))

    def sweep(state: tuple) -> tuple:
        done, _, matrix = state
        matrix, cosines = jax.lax.scan(rotate, matrix, rounds)
        return done + 1, jnp.max(cosines), matrix

    def more(state: tuple) -> Array:
        return (state[0] < SWEEPS) & (state[1] > tolerance)

    start = jnp.asarray(0), jnp.asarray(jnp.inf, rows.dtype), (rows, logs)
    _, _, (rows, logs) = jax.lax.while_loop(more, sweep, start)
    # The row added to make their number even is 0 and never rotated: its cosines are 0.
    return rows[:m], logs[:m]


def _unit(rows: Array, logs: Array) -> tuple[Array, Array]:
    """Scale rows to length 1 and add the logarithms of the old lengths to `logs`; 0 stays 0."""
    largest = jnp.max(jnp.abs(rows), axis=1)
    safe = jnp.where(largest > 0, largest, 1)
    rows = rows / safe[:, None]
    length = jnp.sqrt(jnp.sum(rows**2, axis=1))
    rows = rows / jnp.where(length > 0, length, 1)[:, None]
    return rows, jnp.where(length > 0, logs + jnp.log(safe) + jnp.log(length), -jnp.inf)


def _rounds(even: int) -> np.ndarray:
    """Every pair of rows once, in rounds of pairs without a common row: [even-1, 2, even/2].

    The first row stays and the others move round a table, as in a tournament.
    """
    half = even // 2
    table, rounds = np.arange(even), []
    for _ in range(even - 1):
        rounds.append((table[:half], table[half:][::-1]))
        table = np.concatenate([table[:1], np.roll(table[1:], 1)])
    return np.array(rounds)
