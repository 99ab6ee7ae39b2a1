"""The small LSTM of Zaremba et al. (2014), with the paper's settings.

Claim     On the Penn Treebank's words, validation / test perplexity 120.7 / 114.5 in the paper,
          121.39 / 115.91 in TensorFlow's replica.
Source    Zaremba, Sutskever & Vinyals (2014), Recurrent neural network regularization, section 4.1:
          two layers of 200 units, no dropout, unrolled 20 steps over 20 streams, the state carried
          from chunk to chunk, weights and biases from U(-0.1, 0.1), SGD of rate 1 for 4 epochs and
          halved at each later epoch, 13 epochs, gradient norm at most 5. The paper's loss is summed
          over time and averaged over the batch, 20 times the mean over tokens used here. The rate
          here is therefore 20, and the threshold 5 / 20.
Command   python run.py train zaremba_small --data.source file --data.source.train DIR
          DIR is a folder with the three files of a corpus, such as ptb.train.txt, ptb.valid.txt and
          ptb.test.txt; --data.source.train, .validation and .test take single files.
Time      32 minutes on two CPU cores for the first 929,576 tokens of WikiText-2 (as many as the
          Penn Treebank has) with --data.tokenizer.size 10000; validation / test perplexity 89.4 /
          93.3 on this text, with an eighth of the tokens <unk>.
"""

from lm_jax.config import LSTM, RNN, SGD, Config, Data, Epochs, Train, Word


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=20, length=20),
        model=RNN(
            cell=LSTM(),
            embedding_size=200,
            hidden_size=200,
            layers=2,
            uniform=0.1,
        ),
        train=Train(
            epochs=13,
            learning_rate=1.0 * 20,
            schedule=Epochs(constant_epochs=4, factor=0.5),
            optimizer=SGD(),
            clip_norm=5 / 20,
            keep_best=False,
        ),
    )
