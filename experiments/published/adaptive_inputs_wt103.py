"""An LSTM with the adaptive inputs of Baevski & Auli (2019) on WikiText-103.

Claim     None of an LSTM. With the same bands a Transformer of 247 million parameters has test
          perplexity 18.7.
Source    Baevski & Auli (2019), Adaptive input representations for neural language modeling, and
          its settings in fairseq: vectors of 1,024 numbers for the 20,000 most frequent words,
          a quarter of that for the next 40,000 and a sixteenth for the others; an adaptive softmax
          with the same cutoffs and the same factor.
Differs   The layers are two of an LSTM of 1,024 units; the paper has 16 of self-attention. Dropout,
          rate and batch are those of a common LSTM. The paper shares the tables and the matrices
          of the bands with the softmax; here the softmax has its own.
Command   python run.py train adaptive_inputs_wt103 --data.source file --data.source.train DIR
          DIR is a folder with the three files of WikiText-103.
Time      not run yet
"""

from lm_jax.config import (
    LSTM,
    RNN,
    Adam,
    AdaptiveInputs,
    AdaptiveSoftmax,
    Config,
    Cosine,
    Data,
    RecurrentDropout,
    Train,
    Word,
)

BANDS = (20_000, 60_000)


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=64, length=128),
        model=RNN(
            cell=LSTM(),
            embedding_size=1024,
            embedding=AdaptiveInputs(cutoffs=BANDS, factor=4),
            hidden_size=1024,
            layers=2,
            readout=AdaptiveSoftmax(cutoffs=BANDS, factor=4),
            dropout=RecurrentDropout(inputs=0.1, between=0.1, outputs=0.1),
        ),
        train=Train(
            epochs=10,
            learning_rate=0.001,
            schedule=Cosine(warmup_steps=2000),
            optimizer=Adam(),
            clip_norm=1.0,
        ),
    )
