"""The medium LSTM of Zaremba et al. (2014), with the paper's settings.

Claim     On the Penn Treebank's words, validation / test perplexity 86.2 / 82.7 in the paper, 86.16
          / 82.07 in TensorFlow's replica.
Source    Zaremba, Sutskever & Vinyals (2014), Recurrent neural network regularization, section 4.1:
          two layers of 650 units, dropout 0.5 on all but the recurrent connections, unrolled 35
          steps over 20 streams, the state carried from chunk to chunk, weights from U(-0.05, 0.05),
          forget bias 0, SGD of rate 1 for 6 epochs and times 0.8 at each later epoch, 39 epochs,
          gradient norm at most 5. The paper's loss is summed over time and averaged over the batch,
          35 times the mean over tokens used here. The rate here is therefore 35, and the threshold
          5 / 35.
Command   python run.py train zaremba_medium --data.source file --data.source.train DIR
          DIR is a folder with the three files of a corpus, such as ptb.train.txt, ptb.valid.txt and
          ptb.test.txt; --data.source.train, .validation and .test take single files.
"""

from lm_jax.config import LSTM, RNN, SGD, Config, Data, Epochs, RecurrentDropout, Train, Word


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=20, length=35),
        model=RNN(
            cell=LSTM(),
            embedding_size=650,
            hidden_size=650,
            layers=2,
            uniform=0.05,
            dropout=RecurrentDropout(inputs=0.5, between=0.5, outputs=0.5),
        ),
        train=Train(
            epochs=39,
            learning_rate=1.0 * 35,
            schedule=Epochs(constant_epochs=6, factor=0.8),
            optimizer=SGD(),
            clip_norm=5 / 35,
            keep_best=False,
        ),
    )
