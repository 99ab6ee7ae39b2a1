"""The AWD-LSTM of Merity et al. (2018) on WikiText-2, with the settings of its published code.

Claim     On WikiText-2, validation / test perplexity 69.1 / 66.0; after fine-tuning
          68.6 / 65.8.
Source    Merity, Keskar & Socher (2018), Regularizing and optimizing LSTM language models, tables
          1 and 2, and the command for this corpus in github.com/salesforce/awd-lstm-lm: layers of
          1150, 1150 and 400 units over vectors of 400 numbers, tied; one dropout mask for all
          steps (0.65 of the inputs, 0.2 between layers, 0.4 of the outputs), 0.1 of the words and
          0.5 of W_hh; penalties alpha 2 and beta 1; decay 1.2e-6; batch 80; SGD of rate 30, then
          its average once validation has stopped improving; gradient norm at most 0.25.
Differs   Borders between chunks of 70 tokens move by up to 6 tokens, which gives the published
          standard deviation 5; the published code also halves one chunk in twenty. Initial
          parameters are drawn by the rules of lm_jax.
Command   python run.py train awd_lstm_wt2 --data.source file --data.source.train DIR
          DIR is a folder with the three files of the corpus, wiki.train.tokens, wiki.valid.tokens
          and wiki.test.tokens.
          Fine-tuning begins with the parameters of that run, RUN:
          python run.py train awd_lstm_wt2 --data.source file --data.source.train DIR
              --model.init-from RUN --seed 1
Time      Not run to its end. On two cores, an epoch takes hours; see docs/published.md.
"""

from lm_jax.config import (
    ASGD,
    LSTM,
    RNN,
    Config,
    Data,
    RecurrentDropout,
    Softmax,
    Train,
    Word,
)


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=80, length=70, jitter=6),
        model=RNN(
            cell=LSTM(forget_bias=0.0),
            embedding_size=400,
            hidden_size=(1150, 1150, 400),
            layers=3,
            readout=Softmax(tied=True),
            dropout=RecurrentDropout(
                locked=True,
                inputs=0.65,
                between=0.2,
                outputs=0.4,
                embedding=0.1,
                recurrent=0.5,
            ),
            activation_penalty=2.0,
            change_penalty=1.0,
        ),
        train=Train(
            epochs=750,
            learning_rate=30.0,
            optimizer=ASGD(patience=5),
            clip_norm=0.25,
            weight_decay=1.2e-6,
        ),
    )
