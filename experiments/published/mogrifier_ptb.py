"""The Mogrifier LSTM of Melis et al. (2020) on Penn Treebank, with the settings of its code.

Claim     On the Penn Treebank's words, with dynamic evaluation, validation / test perplexity 44.8 /
          44.9, as Papers with Code lists them.
Source    Melis, Kočiský & Blunsom (2020), Mogrifier LSTM, and the tuned settings for this corpus in
          github.com/google-deepmind/lamb, lamb/experiment/mogrifier/config/786252db3825+...,
          trial 483: 24 million parameters, two layers whose outputs are summed, tied, 5 rounds of
          rank 84; dropout 0.73 of the inputs, 0.29 between layers, 0.72 of the outputs; 64 streams
          of 70 steps; Adam without momentum (beta1 0) of rate 0.0023. The code's loss is summed
          over the 70 steps, so that its threshold 10 of the gradient's norm and its L2 penalty are
          divided by 70 here. 912 units have 24.0 million parameters.
Differs   The code drops 0.39 of the units of h_{t-1}; here the same share of the entries of W_hh is
          dropped. The code bounds the input gate by 1 - f, and sets the state to 0 after one chunk
          in a hundred; here neither is done. The code averages the parameters after 50 evaluations
          without a new best one; here an exponential moving average takes its place.
Command   python run.py train mogrifier_ptb --data.source file --data.source.train DIR
          DIR is a folder with the three files of the corpus, ptb.train.txt, ptb.valid.txt and
          ptb.test.txt. Dynamic evaluation of that run, RUN:
          python run.py score RUN DIR/ptb.test.txt --dynamic rms --dynamic-rate 0.001
              --dynamic-decay 0.02 --dynamic-epsilon 0.00001 --by none
Time      not run yet
"""

from lm_jax.config import (
    RNN,
    Adam,
    Config,
    Data,
    Mogrifier,
    RecurrentDropout,
    Softmax,
    Train,
    Word,
)


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(), batch_size=64, length=70),
        model=RNN(
            cell=Mogrifier(rounds=5, rank=84),
            embedding_size=912,
            hidden_size=912,
            layers=2,
            residual=True,
            readout=Softmax(tied=True),
            dropout=RecurrentDropout(inputs=0.729, between=0.291, outputs=0.716, recurrent=0.387),
        ),
        train=Train(
            steps=200_000,
            learning_rate=0.0023,
            optimizer=Adam(beta1=0.0, beta2=0.999),
            clip_norm=10 / 70,
            weight_decay=0.000252 / 70,
            ema_decay=0.9998,
            validate_every=200,
        ),
    )
