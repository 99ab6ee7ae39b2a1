"""Train, sweep, score, sample, probe and verify language models: `python -m lm_jax --help`."""

from lm_jax.commands.main import start

if __name__ == "__main__":
    start("python -m lm_jax")
