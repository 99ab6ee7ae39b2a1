"""The command `verify`."""

from collections.abc import Callable
from typing import Annotated

import jax
import tyro

from lm_jax.analysis import prove
from lm_jax.commands.shared import ExperimentName
from lm_jax.config import Config
from lm_jax.report.terminal import show_proof, waiting


def verify_command(default: Config) -> Callable[..., int]:
    """Make the command `verify`; the flags default to an experiment's settings."""

    def verify(
        experiment: ExperimentName,
        config: Annotated[Config, tyro.conf.arg(name="")] = default,
    ) -> int:
        """Verify the gradient of an experiment's model by independent methods.

        The methods are the BPTT of training, autodiff, RTRL and finite differences, in float64, on
        a few tokens of the training text and the initial parameters. A method is left out if the
        model does not have the method, or if the method is autodiff itself. The methods compute the
        gradient of a whole chunk, without dropout or other noise, at model.precision=float32. If
        the methods disagree, the exit status is 1.

        Args:
          experiment: path of a Python file, or name of a file in experiments/.
          config: settings of the experiment.
        """
        jax.config.update("jax_enable_x64", True)
        with waiting("compiling and comparing the gradient methods"):
            proof = prove(config)
        show_proof(proof)
        return 0 if proof.holds else 1

    return verify
