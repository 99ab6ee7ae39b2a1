"""Train, sweep, score, sample, probe and verify language models: `python run.py --help`."""

from lm_jax.commands.main import start

if __name__ == "__main__":
    start("python run.py")
