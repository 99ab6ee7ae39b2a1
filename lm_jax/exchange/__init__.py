"""Models in the forms of other programs: PyTorch's weights, ARPA files, exported functions."""

from lm_jax.exchange.arpa_runs import export_arpa, import_arpa
from lm_jax.exchange.exported import export_functions, exported
from lm_jax.exchange.torch_files import export_torch, import_torch
from lm_jax.exchange.torch_names import Layout
from lm_jax.exchange.torch_weights import from_torch, to_torch

__all__ = [
    "Layout",
    "export_arpa",
    "export_functions",
    "export_torch",
    "exported",
    "from_torch",
    "import_arpa",
    "import_torch",
    "to_torch",
]
