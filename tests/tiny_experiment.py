"""A small experiment, and the command line in this process."""

from lm_jax.commands import main

PROGRAM = "python run.py"

EXPERIMENT = """
from lm_jax.config import RNN, Config, Data, File, Train

def config():
    return Config(
        data=Data(source=File(train="text.txt"), batch_size=4, length=8),
        model=RNN(embedding_size=4, hidden_size=5),
        train=Train(steps=6, log_every=3, checkpoint_every=3, validate_every=3),
    )
"""


def told(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    try:
        status = main.main([str(argument) for argument in arguments], PROGRAM)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err
