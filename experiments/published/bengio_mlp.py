"""The fixed-window networks of Bengio et al. (2003) on the Brown corpus.

Claim     Validation / test perplexity in the paper: MLP1 (n = 5, 50 hidden units, vectors of 60,
          direct connections) 284 / 268; MLP9 (100 units, vectors of 30, no direct connections)
          280 / 276; MLP10, the mean of MLP9 and an interpolated trigram, 265 / 252. The trigram
          alone has 352 / 336, and the best Kneser-Ney model 332 / 321.
Source    Bengio, Ducharme, Vincent & Jauvin (2003), A neural probabilistic language model, table 1,
          as quoted in later work: stochastic gradient steps of 0.001 on single words, weight decay
          0.0001, 10 to 20 epochs, words seen three times or less merged into one. Here an update
          reads 256 words, its rate is 256 times as large, and does not decay (the paper's falls by
          a seventh in 20 epochs).
Command   python run.py sweep bengio_mlp --data.source file --data.source.train DIR --run-dir mlp
          python run.py train bengio_mlp --data.source file --data.source.train DIR --run-dir tri
              --model ngram --model.order 3 --model.smoothing interpolated
          python run.py score mlp/trials/MLP9 TEXT --mix tri --mix-weight 0.5 --by none
          DIR is a folder with train.txt, valid.txt and test.txt of the Brown corpus. The last
          command is MLP10.
Time      not run yet
"""

from lm_jax.config import SGD, Config, Data, Train, Window, Word


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word(min_count=4), batch_size=16, length=16),
        model=Window(order=5, hidden_size=50, embedding_size=60, skip_connections=True),
        train=Train(epochs=20, learning_rate=0.256, optimizer=SGD(), weight_decay=1e-4),
    )


def sweep() -> dict[str, dict]:
    smaller = {"model.hidden_size": 100, "model.embedding_size": 30}
    return {"MLP1": {}, "MLP9": {**smaller, "model.skip_connections": False}}
