"""Eigenvalues and singular values of recurrent weights, whole and gate by gate.

W_hh is [H, G H]: a block of H × H for each of G gates, in the cell's order (i, f, g, o of an LSTM;
r, z, n of a GRU; one for Elman's network). For an ungated network ∂h_t/∂h_{t-1} is W_hhᵀ with each
row scaled by the activation's slope, so gradients that go back vanish where σ_max(W_hh) times the
largest slope is below 1, and can explode only where it is above (Pascanu et al., 2013). A gate's
block says less by itself, for its Jacobian is scaled by the gates' values.

JAX has eigenvalues of a matrix that is not symmetric on the CPU only. `recurrent_spectra` therefore
works on the host, by NumPy, and is not to be jitted; `block_radii` and `block_norms` are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lm_jax.models.base import Params
from lm_jax.models.cells import spectral_radius
from lm_jax.settings import UserError


class Spectrum(NamedTuple):
    """Of one square block; NumPy's, on the host."""

    eigenvalues: np.ndarray
    """[H], complex, the largest magnitude first."""
    singular_values: np.ndarray
    """[H], largest first."""
    radius: float
    """ρ, the largest magnitude of an eigenvalue."""
    norm: float
    """σ_max, the largest singular value."""


class RecurrentSpectra(NamedTuple):
    """Of one W_hh [H, G H]."""

    singular_values: np.ndarray
    """[H], of all of W_hh, largest first."""
    blocks: tuple[Spectrum, ...]
    """One for each gate."""


def recurrent_spectra(W_hh: Any) -> RecurrentSpectra:
    """Eigenvalues and singular values of recurrent weights and of each block, on the host.

    Args:
      W_hh: [H, G H], an array that is no tracer. All of a block that is not finite is NaN.

    Raises:
      UserError: the columns are not a multiple of the rows.
    """
    whole = np.asarray(W_hh)
    whole = whole.astype(np.promote_types(whole.dtype, np.float32))
    blocks = _blocks(whole)
    return RecurrentSpectra(_singular_values(whole), tuple(_spectrum(block) for block in blocks))


def spectra_by_layer(params: Params) -> dict[str, RecurrentSpectra]:
    """`recurrent_spectra` of every W_hh in a tree of params.

    Args:
      params: any tree; the leaves whose last key is W_hh are taken, but for those of a cell of
        one's own that are not [H, G H].

    Returns:
      a dict from where the leaf stands, such as "layers.0.W_hh", to its spectra.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): recurrent_spectra(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path
        and getattr(path[-1], "key", getattr(path[-1], "name", None)) == "W_hh"
        and made_of_blocks(leaf)
    }


def made_of_blocks(W_hh: Any) -> bool:
    """Whether it is an array [H, G H], with H and G above 0."""
    shape = getattr(W_hh, "shape", ())
    return len(shape) == 2 and min(shape) > 0 and shape[1] % shape[0] == 0


def block_radii(W_hh: Float[Array, "H GH"]) -> Float[Array, " G"]:
    """ρ of each block, on any device and under `jax.jit`; see `cells.spectral_radius`.

    Args:
      W_hh: [H, G H].

    Raises:
      UserError: the columns are not a multiple of the rows.
    """
    blocks = _blocks(W_hh)
    scales = [_largest(block) for block in blocks]  # or squaring would overflow
    pairs = zip(blocks, scales, strict=True)
    return jnp.stack([scale * spectral_radius(block / scale) for block, scale in pairs])


def block_norms(W_hh: Float[Array, "H GH"]) -> Float[Array, " G"]:
    """σ_max of each block, on any device and under `jax.jit`.

    Args:
      W_hh: [H, G H].

    Raises:
      UserError: the columns are not a multiple of the rows.
    """
    return jnp.stack([largest_singular_value(block) for block in _blocks(W_hh)])


def largest_singular_value(W: Float[Array, "M N"]) -> Float[Array, ""]:
    """σ_max = √ρ(W Wᵀ), by squaring: products alone, on any device and under `jax.jit`.

    W Wᵀ is normal, so m = 2^squarings leaves a relative error of ln(M) / 4m, which is rounding's.
    """
    scale = _largest(W)
    W = W / scale  # or the product would overflow
    squarings = 52 if W.dtype == jnp.float64 else 24
    square = jnp.matmul(W, W.T, precision="highest")
    return scale * jnp.sqrt(spectral_radius(square, squarings))


def _largest(W: Float[Array, "M N"]) -> Float[Array, ""]:
    """The largest magnitude of an entry, or 1 where it is no number to divide by."""
    largest = jnp.max(jnp.abs(W))
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def _blocks(W_hh: Any) -> list[Any]:
    if not made_of_blocks(W_hh):
        raise UserError(f"W_hh of shape {list(W_hh.shape)} is not made of square blocks, [H, G H]")
    H, columns = W_hh.shape
    return [W_hh[:, at : at + H] for at in range(0, columns, H)]


def _spectrum(block: np.ndarray) -> Spectrum:
    singular_values = _singular_values(block)
    if np.isfinite(block).all():
        eigenvalues = np.linalg.eigvals(block).astype(np.result_type(block, np.complex64))
        eigenvalues = eigenvalues[np.argsort(-np.abs(eigenvalues))]
    else:
        eigenvalues = np.full(len(block), complex(np.nan, np.nan))
    return Spectrum(
        eigenvalues, singular_values, float(np.abs(eigenvalues[0])), float(singular_values[0])
    )


def _singular_values(W: np.ndarray) -> np.ndarray:
    if np.isfinite(W).all():
        return np.linalg.svd(W, compute_uv=False)
    return np.full(len(W), np.nan, W.dtype)
