"""Settings in words: the same in the terminal and on every page."""

import pytest

from lm_jax.report.wording import in_words, short


@pytest.mark.parametrize(
    ("value", "said"), [(None, "off"), (True, "yes"), (0.001, "0.001"), (3, "3"), ("lstm", "lstm")]
)
def test_a_value_has_the_same_words_everywhere(value, said):
    assert in_words(value) == said


def test_a_path_is_as_short_as_tells_it_from_the_others():
    paths = ["train.optimizer.kind", "train.schedule.steps", "train.steps", "train.learning_rate"]
    words = ["optimizer", "schedule.steps", "train.steps", "learning rate"]
    assert [short(path, paths) for path in paths] == words
