"""The n-gram baseline for neural models: Kneser-Ney.

Claim     Interpolated modified Kneser-Ney with all n-grams, bounded by sentences, on WikiText-2:
          perplexity 242.3 / 226.1 for n = 3 and 234.9 / 220.1 for n = 5 (validation / test). An
          independent program on the same files gives 242.32 / 226.05 and 234.86 / 220.14.
Source    Chen & Goodman (1999), An empirical study of smoothing techniques for language modeling.
Command   python run.py train kneser_ney --data.source file --data.source.train wikitext-2
          python run.py sweep kneser_ney --data.source file --data.source.train wikitext-2
          The first command counts n = 5, the second n = 1 to 5. wikitext-2 is a folder with
          train.txt, valid.txt and test.txt, the original tokens unchanged. Without the flags the
          text is CPython's documentation.
Time      counting 5-grams of two million words takes three seconds, the whole run half a minute.
"""

from lm_jax.config import Config, Data, NGram, Word


def config() -> Config:
    return Config(
        data=Data(tokenizer=Word()),
        model=NGram(order=5, smoothing="kneser-ney", sentence_boundaries=True),
    )


def sweep() -> dict[str, dict]:
    return {f"n = {order}": {"model.order": order} for order in range(1, 6)}
