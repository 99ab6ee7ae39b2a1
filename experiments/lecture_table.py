"""Every model of the lecture on the same tokens, in a single table.

Claim     From counting to gates, each step lowers the loss: a longer n-gram with the smoothing it
          needs, words as vectors, weights shared over time, a state instead of a window, and gates
          to keep the state. On CPython's documentation the GRU and the LSTM are better than
          Kneser-Ney 5 on the validation text. The test text repeats passages of the training text.
          N-grams predict repeated passages well, and are better on the test text.
Source    The lecture's order. Kneser-Ney: Chen & Goodman (1999). Window: Bengio et al. (2003).
          Recurrence: Mikolov et al. (2010). LSTM: Gers et al. (2000); GRU: Cho et al. (2014).
Command   python run.py sweep lecture_table
          python run.py sweep lecture_table --data.source file --data.source.train wikitext-2
          wikitext-2 is a folder with train.txt, valid.txt and test.txt. On WikiText-2, 1500 updates
          are less than half an epoch: give --train.epochs as well to see the neural models win.
Time      seven minutes on two CPU cores.
"""

from lm_jax.config import RNN, Config, Cosine, Data, Train, Word


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(min_count=2), batch_size=16, length=35),
        model=RNN(),
        train=Train(steps=1500, learning_rate=0.002, schedule=Cosine(), clip_norm=1.0),
    )


SIZES = {"model.embedding_size": 128, "model.hidden_size": 128}
DROPOUT = {"model.dropout.inputs": 0.4, "model.dropout.outputs": 0.4}


def sweep() -> dict[str, dict]:
    ngram = {"model": "ngram"}
    neural = {**SIZES, **DROPOUT}
    return {
        "unigram": {**ngram, "model.order": 1},
        "bigram": {**ngram, "model.order": 2},
        "Kneser-Ney 3": {**ngram, "model.order": 3},
        "Kneser-Ney 5": {**ngram, "model.order": 5},
        "window": {"model": "window", "model.order": 5, **neural},
        "convolution": {"model": "convolution", "model.width": 3, "model.layers": 2, **neural},
        "Elman": {"model.cell": "elman", **neural},
        "GRU": {"model.cell": "gru", **neural},
        "LSTM": {"model.cell": "lstm", **neural},
    }
