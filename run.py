"""Train, sweep, score, sample, probe and verify language models: `python run.py --help`."""

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C during the imports ends the process at once, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lm_jax.commands.main import start

    start("python run.py")
