"""Eigenvalues and singular values of recurrent weights, whole and gate by gate.

W_hh is [H, G H]: a block of H × H for each of G gates, in the cell's order (i, f, g, o for an
LSTM; r, z, n for a GRU; a single block for Elman's network). For an ungated network, ∂h_t/∂h_{t-1}
is W_hhᵀ with each row scaled by the activation's slope. Gradients vanish on the way back if
σ_max(W_hh) times the largest slope is below 1, and can explode only if the product is above 1
(Pascanu et al., 2013). The block of a gate says less by itself, because its Jacobian is scaled by
the values of the gates.

JAX computes eigenvalues of a nonsymmetric matrix on the CPU only. `recurrent_spectra` therefore
uses NumPy on the host and cannot be jitted; `block_radii` and `block_norms` can.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lm_jax.models.base import Params
from lm_jax.models.cells import spectral_radius
from lm_jax.settings import UserError
from lm_jax.trees import path_name


class Spectrum(NamedTuple):
    """Spectrum of a square block, as NumPy arrays on the host."""

    eigenvalues: np.ndarray
    """[H], complex, the largest magnitude first."""
    singular_values: np.ndarray
    """[H], largest first."""
    radius: float
    """ρ, the largest magnitude of an eigenvalue."""
    norm: float
    """σ_max, the largest singular value."""


class RecurrentSpectra(NamedTuple):
    """Spectra of a matrix W_hh [H, G H] and of each block."""

    singular_values: np.ndarray
    """[H], of the whole W_hh, largest first."""
    blocks: tuple[Spectrum, ...]
    """The spectrum of each gate's block."""


def recurrent_spectra(W_hh: Any) -> RecurrentSpectra:
    """Eigenvalues and singular values of recurrent weights and of each block, on the host.

    Args:
      W_hh: [H, G H], a concrete array, not a tracer. A block that is not finite gives NaN.

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
      params: any tree; the leaves whose last key is W_hh are used. A custom cell's W_hh that is not
        [H, G H] is left out.

    Returns:
      a dict from the path of the leaf, such as "layers.0.W_hh", to the spectra.
    """
    return {
        path_name(path): recurrent_spectra(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path
        and getattr(path[-1], "key", getattr(path[-1], "name", None)) == "W_hh"
        and made_of_blocks(leaf)
    }


def made_of_blocks(W_hh: Any) -> bool:
    """True for an array [H, G H], with H and G above 0."""
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
    scales = [_largest(block) for block in blocks]  # keeps the squares from overflowing
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
    """σ_max = √ρ(W Wᵀ), from matrix products alone, on any device and under `jax.jit`.

    ρ is found by repeated squaring. W Wᵀ is normal, so with m = 2^squarings the relative error is
    ln(M) / 4m, about the size of rounding errors.
    """
    scale = _largest(W)
    W = W / scale  # keeps the product from overflowing
    squarings = 52 if W.dtype == jnp.float64 else 24
    square = jnp.matmul(W, W.T, precision="highest")
    return scale * jnp.sqrt(spectral_radius(square, squarings))


def _largest(W: Float[Array, "M N"]) -> Float[Array, ""]:
    """The largest magnitude of an entry, or 1 if the magnitude is 0 or not finite."""
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
