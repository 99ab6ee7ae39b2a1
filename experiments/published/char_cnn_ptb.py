"""The character-aware LSTM of Kim et al. (2016) on Penn Treebank, with its large settings.

Claim     On the Penn Treebank's words, about 82 / 79 validation / test perplexity for the large
          model, 96 / 93 for the small one, in the README of its code.
Source    Kim, Jernite, Sontag & Rush (2016), Character-aware neural language models, and
          README.md and main.lua of github.com/yoonkim/lstm-char-cnn: vectors of 15 numbers for
          characters, filters of 1 to 7 characters, 1,100 in all, two highway layers; two LSTM
          layers of 650 units; 0.5 dropout; all weights from U(-0.05, 0.05); 20 streams of 35
          steps, 25 epochs, SGD of rate 1, halved after an epoch in which validation perplexity
          falls by less than 1, gradient norm at most 5. The code's gradient is summed over the 35
          steps, and is here a mean: the rate is 35, and the threshold 5 / 35.
Differs   Here the rate is halved after an epoch without a better validation loss. The code begins
          the biases of the highway's gates in U(-2.05, -1.95).
Command   python run.py train char_cnn_ptb --data.source file --data.source.train DIR
          DIR is a folder with the three files of the corpus, ptb.train.txt, ptb.valid.txt and
          ptb.test.txt. The small model: python run.py sweep char_cnn_ptb with the same flags.
Time      not run yet
"""

from lm_jax.config import (
    LSTM,
    RNN,
    SGD,
    CharacterInputs,
    Config,
    Data,
    Plateau,
    RecurrentDropout,
    Train,
    Word,
)


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=20, length=35),
        model=RNN(
            cell=LSTM(),
            embedding_size=1100,
            embedding=CharacterInputs(
                character_size=15,
                widths=(1, 2, 3, 4, 5, 6, 7),
                filters=(50, 100, 150, 200, 200, 200, 200),
                highway=2,
            ),
            hidden_size=650,
            layers=2,
            dropout=RecurrentDropout(between=0.5, outputs=0.5),
            uniform=0.05,
        ),
        train=Train(
            epochs=25,
            learning_rate=1.0 * 35,
            schedule=Plateau(factor=0.5, patience=1),
            optimizer=SGD(),
            clip_norm=5 / 35,
        ),
    )


def sweep() -> dict[str, dict]:
    return {
        "large": {},
        "small": {
            "model.embedding_size": 525,
            "model.embedding.widths": (1, 2, 3, 4, 5, 6),
            "model.embedding.filters": (25, 50, 75, 100, 125, 150),
            "model.embedding.highway": 1,
            "model.hidden_size": 300,
        },
    }
