"""A character-level Elman RNN learns CPython's documentation in a minute.

Claim     Backpropagation through 64 steps teaches a plain tanh RNN of 320 units the spelling, the
          indentation and many of the words of its corpus: 2.0 bits a character or less on
          validation. A model of letter frequencies alone needs 4.7.
Source    The model is Elman (1990) with the softmax readout of Mikolov et al. (2010); Adam, cosine
          schedule and clipping by the global norm are today's habits.
Command   make run, or: python run.py train quickstart
Time      under a minute of training on two CPU cores.
"""

from lm_jax.config import RNN, Adam, Config, Cosine, Data, Elman, Train


def config() -> Config:
    return Config(
        data=Data(batch_size=16, length=64),
        model=RNN(cell=Elman(), embedding_size=64, hidden_size=320),
        train=Train(
            steps=2500,
            learning_rate=0.003,
            schedule=Cosine(warmup_steps=200),
            optimizer=Adam(),
            clip_norm=1.0,
            validate_every=500,
            sample_length=200,
            log_every=50,
            checkpoint_every=500,
        ),
    )
