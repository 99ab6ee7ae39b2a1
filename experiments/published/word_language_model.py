"""The LSTMs of PyTorch's example word_language_model, on the Penn Treebank's words.

Claim     Test perplexity after 40 epochs, of the example's README: 200 units, tied, 87.17; 650
          units 80.97, tied 75.96; 1500 units 77.42, tied 72.30. The README once called these
          figures WikiText-2's; they are the Penn Treebank's.
Source    github.com/pytorch/examples, word_language_model/README.md and main.py: two layers,
          dropout on all but the recurrent connections, SGD of rate 20 on the mean loss over 35
          steps of 20 streams, gradient norm at most 0.25, the rate divided by 4 after an epoch
          without a better validation. Here all weights are drawn from U(-0.1, 0.1); PyTorch draws
          those of an LSTM of H units from U(-1/√H, 1/√H), and has two biases where one is here.
Command   python run.py train word_language_model --data.source file --data.source.train DIR
          python run.py sweep word_language_model --data.source file --data.source.train DIR
          DIR is a folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt. The first command
          trains 200 units, tied; the second all five models.
Time      not run yet; docs/published.md has two epochs on WikiText-2 beside a program in PyTorch
"""

from lm_jax.config import (
    LSTM,
    RNN,
    SGD,
    Config,
    Data,
    Plateau,
    RecurrentDropout,
    Softmax,
    Train,
    Word,
)


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=20, length=35),
        model=RNN(
            cell=LSTM(),
            embedding_size=200,
            hidden_size=200,
            layers=2,
            uniform=0.1,
            dropout=RecurrentDropout(inputs=0.2, between=0.2, outputs=0.2),
            readout=Softmax(tied=True),
        ),
        train=Train(
            epochs=40,
            learning_rate=20.0,
            schedule=Plateau(factor=0.25, patience=1),
            optimizer=SGD(),
            clip_norm=0.25,
        ),
    )


def sweep() -> dict[str, dict]:
    def sized(units: int, dropout: float, tied: bool) -> dict:
        rates = {f"model.dropout.{place}": dropout for place in ("inputs", "between", "outputs")}
        sizes = {"model.hidden_size": units, "model.embedding_size": units}
        return {**sizes, **rates, "model.readout.tied": tied}

    return {
        "200, tied": {},
        "650": sized(650, 0.5, False),
        "650, tied": sized(650, 0.5, True),
        "1500": sized(1500, 0.65, False),
        "1500, tied": sized(1500, 0.65, True),
    }
