"""A character LSTM on tinyshakespeare, beside the two transformers of nanoGPT's README.

Claim     nanoGPT reports a validation loss of 1.88 nats a character for its small transformer,
          trained on a CPU in minutes, and 1.4697 for the larger one, trained on a GPU. An LSTM of
          256 units lies between the two: 1.4986 after 3,000 updates.
Source    github.com/karpathy/nanoGPT, README.md: the first 90 % of the characters are the training
          text, the rest is the validation text. There is no test text, so the third file is a copy
          of the second.
Command   python run.py train char_rnn --data.source file --data.source.train DIR
          DIR holds train.txt (the first 1,003,854 characters), valid.txt and test.txt (both the
          last 111,540).
Time      11 minutes on two CPU cores, beside other programs.
"""

from lm_jax.config import LSTM, RNN, Adam, Char, Config, Cosine, Data, Train


def config() -> Config:
    return Config(
        data=Data(tokenizer=Char(), batch_size=32, length=64),
        model=RNN(cell=LSTM(), embedding_size=64, hidden_size=256),
        train=Train(
            steps=3000,
            learning_rate=0.004,
            schedule=Cosine(warmup_steps=200),
            optimizer=Adam(),
            clip_norm=1.0,
            validate_every=500,
        ),
    )
