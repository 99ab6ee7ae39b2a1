"""Whatever bytes a file holds, its reader gives a value or one line, and takes no gigabyte.

LM_JAX_CASES is the number of cases of all readers together; `make torture` tries 10,000.
"""

import os
import resource

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm_jax.settings import UserError
from lm_jax.training import manifest

CASES = int(os.environ.get("LM_JAX_CASES", "300"))
MEMORY = 2**29  # bytes that all cases of a reader may add to the process
# Text that JSON, a number or a table may choke on.
BAD = st.text(max_size=8) | st.sampled_from(
    ["[" * 5000, '{"a":' * 5000, "9" * 5000, "1e999", "-1", "NaN", "null", "2147483648", "0.5"]
)


@st.composite
def spoilt(draw, content):
    """The content with some bytes changed, cut, doubled, or replaced by bad text."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        new = draw(st.binary(max_size=6) | BAD.map(lambda text: text.encode()))
        new = draw(st.sampled_from([new, content[start:end] * 2]))
        content = content[:start] + new + content[end:]
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    hostile.write_files(place)
    return place


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", hostile.READERS)
def test_a_reader_of_hostile_bytes_gives_a_value_or_one_line(name, folder):
    path = folder / name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    share = 10 if name == "flags" else 1  # each takes half a second

    @settings(
        max_examples=max(1, CASES // len(hostile.READERS) // share),
        deadline=None,
        database=None,
        derandomize=CASES < 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt(path.read_bytes()))
    def attack(content):
        hostile.attempt(path, content)

    attack()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < MEMORY


def test_a_key_with_a_line_break_is_named_in_one_line(tmp_path):
    """Found by fuzz.py."""
    hostile.write_files(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_bytes().replace(b'"journal"', b'"jour\\nal"')
    assert content != path.read_bytes()
    path.write_bytes(hostile.resealed(content, by_line=False))
    with pytest.raises(UserError, match=r"'jour\\nal': extra inputs") as refused:
        manifest.read(tmp_path)
    assert "\n" not in str(refused.value)
