"""Text from JSON lines: a JSON object per line, with a document under a key.

The documents of a file are joined by a newline, as those of a table are (`lm_jax.data.tables`). A
line is read at a time, and a line longer than 128 MiB is refused.
"""

import io
import json
from collections.abc import Iterator

from lm_jax.data.packed import SUFFIXES
from lm_jax.settings import UserError

KEY = "text"
_ENDINGS = (".jsonl", ".ndjson")
_LONGEST = 1 << 27  # bytes


def is_json_lines(path: str) -> bool:
    """Return True if a file is JSON lines by its name, such as `train.jsonl.zst`."""
    name = path.lower()
    for packing in SUFFIXES:
        name = name.removesuffix(packing)
    return name.endswith(_ENDINGS)


def documents(file: io.BufferedReader, key: str, name: str) -> Iterator[bytes]:
    """Yield the documents of JSON lines; a line whose value is null holds none.

    Args:
      file: the lines.
      key: the key with the document.
      name: name of the file in errors.

    Raises:
      UserError: a line is not UTF-8, no JSON object, too long, or lacks the key; or the document is
        no string, or holds a lone surrogate. Names the line.
    """
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise UserError(f"{name}: line {number} is longer than {_LONGEST >> 20} MiB")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number} is not UTF-8") from None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{name}: line {number} is no JSON object")
        if key not in row:
            held = ", ".join(list(map(repr, row))[:8])
            raise UserError(
                f"{name}: line {number} has no {key!r}, but {held or 'nothing'}: "
                "data.source.text_key names the key of the text"
            )
        if row[key] is None:
            continue
        if not isinstance(row[key], str):
            raise UserError(f"{name}: line {number}: {key!r} is no string")
        try:
            yield row[key].encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}: line {number}: {key!r} holds a lone surrogate") from None
