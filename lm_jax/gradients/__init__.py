"""Gradient estimators: functions (params, carry, batch) -> (loss, carry, grads, info)."""

from jaxtyping import Array

from lm_jax.config import ARTBP, RTRL, UORO, Full, Gradient, SnAp1, Truncated
from lm_jax.gradients.artbp import randomised_bptt
from lm_jax.gradients.bptt import (
    Estimator,
    Info,
    clip_cotangent,
    explicit_bptt,
    full_bptt,
    truncated_bptt,
)
from lm_jax.gradients.by_lag import gradient_by_lag
from lm_jax.gradients.cliffs import (
    Cliff,
    TopEigenpairs,
    cliff,
    hessian_vector_product,
    loss_slices,
    top_eigenpairs,
)
from lm_jax.gradients.clipping_audit import (
    ClipAudit,
    Clipped,
    ClipSummary,
    Thresholds,
    clip_audit,
    clip_summary,
    quantile_thresholds,
    sgd,
)
from lm_jax.gradients.compare import Comparison, compare
from lm_jax.gradients.credit import credit_map
from lm_jax.gradients.example import SingleExample, single_example
from lm_jax.gradients.exposure_bias import ExposureCosines, exposure_cosines
from lm_jax.gradients.horizon import credit_horizon, horizon
from lm_jax.gradients.jacobians import (
    jacobian_products,
    log_singular_values,
    singular_values,
    step_jacobians,
)
from lm_jax.gradients.lags import (
    frobenius_lag_norms,
    lag_norms,
    lanczos_lag_norms,
    mean_lag_norms,
    predicted_lag_norms,
)
from lm_jax.gradients.loss_surface import batch_loss
from lm_jax.gradients.lyapunov import (
    finite_time_exponents,
    flossing,
    lyapunov_convergence,
    lyapunov_spectrum,
)
from lm_jax.gradients.proof import Check, verify
from lm_jax.gradients.regularizers import omega, with_flossing, with_omega
from lm_jax.gradients.rtrl import rtrl
from lm_jax.gradients.sensitivity import Probed, sensitivity, sensitivity_by_probes
from lm_jax.gradients.snap import snap1
from lm_jax.gradients.spectra import block_norms, block_radii, recurrent_spectra, spectra_by_layer
from lm_jax.gradients.truncations import Truncations, truncations, truncations_by_block
from lm_jax.gradients.uoro import uoro
from lm_jax.gradients.word_credit import ClassCredit, credit_by_class, frequency_bands
from lm_jax.models import LanguageModel

__all__ = [
    "Check",
    "ClassCredit",
    "Cliff",
    "ClipAudit",
    "ClipSummary",
    "Clipped",
    "Comparison",
    "Estimator",
    "ExposureCosines",
    "Info",
    "Probed",
    "SingleExample",
    "Thresholds",
    "TopEigenpairs",
    "Truncations",
    "batch_loss",
    "block_norms",
    "block_radii",
    "cliff",
    "clip_audit",
    "clip_cotangent",
    "clip_summary",
    "compare",
    "credit_by_class",
    "credit_horizon",
    "credit_map",
    "explicit_bptt",
    "exposure_cosines",
    "finite_time_exponents",
    "flossing",
    "frequency_bands",
    "frobenius_lag_norms",
    "full_bptt",
    "gradient_by_lag",
    "hessian_vector_product",
    "horizon",
    "jacobian_products",
    "lag_norms",
    "lanczos_lag_norms",
    "log_singular_values",
    "loss_slices",
    "lyapunov_convergence",
    "lyapunov_spectrum",
    "make",
    "mean_lag_norms",
    "omega",
    "predicted_lag_norms",
    "quantile_thresholds",
    "randomised_bptt",
    "recurrent_spectra",
    "rtrl",
    "sensitivity",
    "sensitivity_by_probes",
    "sgd",
    "single_example",
    "singular_values",
    "snap1",
    "spectra_by_layer",
    "step_jacobians",
    "top_eigenpairs",
    "truncated_bptt",
    "truncations",
    "truncations_by_block",
    "uoro",
    "verify",
    "with_flossing",
    "with_omega",
]


def make(
    config: Gradient, model: LanguageModel, *, key: Array, delta_norms: bool = False
) -> Estimator:
    """Make the gradient estimator named by a config.

    Args:
      config: `Train.gradient`, resolved; the numbers may be tracers.
      model: the language model.
      key: random key of an estimator with random draws.
      delta_norms: see `full_bptt`; for the estimators of whole chunks.
    """
    if isinstance(config, Truncated):
        assert config.k1 is not None
        assert config.k2 is not None
        return truncated_bptt(model, k1=config.k1, k2=config.k2, clip_delta=config.clip_delta)
    if isinstance(config, ARTBP):
        assert config.cut_rate is not None
        return randomised_bptt(model, rate=config.cut_rate, key=key)
    if isinstance(config, UORO):
        return uoro(model, key=key)
    if isinstance(config, RTRL | SnAp1):
        return rtrl(model) if isinstance(config, RTRL) else snap1(model)
    whole = full_bptt if isinstance(config, Full) else explicit_bptt
    return whole(
        model,
        clip_delta=config.clip_delta,
        recompute=config.recompute == "sqrt",
        delta_norms=delta_norms,
    )
