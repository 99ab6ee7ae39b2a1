"""The large LSTM of Zaremba et al. (2014), with the paper's settings.

Claim     On the Penn Treebank's words, validation / test perplexity 82.2 / 78.4 in the paper, 82.62
          / 78.29 in TensorFlow's replica.
Source    Zaremba, Sutskever & Vinyals (2014), Recurrent neural network regularization, section 4.1:
          two layers of 1,500 units, dropout 0.65 on all but the recurrent connections, unrolled 35
          steps over 20 streams, the state carried from chunk to chunk, weights from U(-0.04, 0.04),
          forget bias 0, SGD of rate 1 for 14 epochs and divided by 1.15 at each later epoch, 55
          epochs, gradient norm at most 10. The paper's loss is summed over time and averaged over
          the batch, 35 times the mean over tokens used here. The rate here is therefore 35, and the
          threshold 10 / 35.
Command   python run.py train zaremba_large --data.source file --data.source.train DIR
          DIR is a folder with the three files of a corpus, such as ptb.train.txt, ptb.valid.txt and
          ptb.test.txt; --data.source.train, .validation and .test take single files.
"""

from lm_jax.config import LSTM, RNN, SGD, Config, Data, Epochs, RecurrentDropout, Train, Word


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=20, length=35),
        model=RNN(
            cell=LSTM(),
            embedding_size=1500,
            hidden_size=1500,
            layers=2,
            uniform=0.04,
            dropout=RecurrentDropout(inputs=0.65, between=0.65, outputs=0.65),
        ),
        train=Train(
            epochs=55,
            learning_rate=1.0 * 35,
            schedule=Epochs(constant_epochs=14, factor=1 / 1.15),
            optimizer=SGD(),
            clip_norm=10 / 35,
            keep_best=False,
        ),
    )
