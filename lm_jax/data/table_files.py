"""Parquet and Arrow files, read by PyArrow: rows are documents, in a column of text.

A file is read a few hundred rows at a time.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from lm_jax.files import reading
from lm_jax.settings import UserError

ENDINGS = (".parquet", ".arrow")
_BATCH_BYTES = 1 << 21


def is_table(path: str) -> bool:
    """Return True if a file is a table by its name."""
    return path.lower().endswith(ENDINGS)


class Table(NamedTuple):
    """An open file."""

    schema: Any
    rows: int | None
    """Number of rows; None: unknown before all are read."""
    batches: Callable[[str], Iterator[Any]]
    """Returns the rows of a column, a few hundred at a time."""


@contextlib.contextmanager
def opened(path: str, name: str) -> Iterator[Table]:
    """Open a Parquet file, or an Arrow file of either format.

    Args:
      path: the file.
      name: name of the file in errors.

    Raises:
      UserError: the file is no table, or is damaged, now or while the context lasts.
    """
    import pyarrow as arrow  # here, to save other sources 0.1 s
    import pyarrow.ipc as ipc
    import pyarrow.parquet as parquet

    with reading(path, name) as file:
        head, size = file.read(6), os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 4))
        tail = file.read()
    try:
        if head.startswith(b"PAR1"):
            with parquet.ParquetFile(path) as table:
                yield Table(table.schema_arrow, table.metadata.num_rows, partial(_parquet, table))
        elif head == b"ARROW1":
            with arrow.OSFile(path) as source:
                table = ipc.open_file(source)
                numbers = range(table.num_record_batches)
                yield Table(table.schema, None, lambda key: map(table.get_batch, numbers))
        elif tail != bytes(4):  # with which every whole stream ends
            raise UserError(f"{name}: is no table, or ends too early")
        else:
            with arrow.OSFile(path) as source:
                table = ipc.open_stream(source)
                yield Table(table.schema, None, lambda key: iter(table))
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name}: is no table, or is damaged: {reason}") from None


def _parquet(table: Any, key: str) -> Iterator[Any]:
    about = table.metadata
    size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    rows = min(1024, _BATCH_BYTES * about.num_rows // max(1, size)) or 1
    return table.iter_batches(rows, columns=[key])


def row_count(path: str, name: str) -> int:
    """Return the number of rows of a table; an Arrow file is read for them."""
    with opened(path, name) as table:
        if table.rows is not None:
            return table.rows
        return sum(len(batch) for batch in table.batches(""))


def text_columns(schema: Any) -> list[str]:
    """Return the names of the columns of text."""
    return [field.name for field in schema if str(field.type) in ("string", "large_string")]


def text_column(path: str, name: str, text_key: str | None) -> str:
    """Return the column to read: `text_key`, or the only column of text, or `text`.

    Raises:
      UserError: as `opened`; or no column of text is named `text_key`, or several could be meant.
    """
    with opened(path, name) as table:
        names = [f"{field.name} ({field.type})" for field in table.schema]
        columns = text_columns(table.schema)
    if not columns:
        there = ", ".join(names) or "none"
        raise UserError(f"{name}: no column is of type string; the columns are {there}")
    key = text_key or (columns[0] if len(columns) == 1 else "text")
    if key not in columns:
        given = f"{text_key!r} is not among them" if text_key else "choose one"
        raise UserError(
            f"data.source.text_key: the columns of text of {name} are {', '.join(columns)}; {given}"
        )
    return key


def columns_of(path: str, name: str, key: str) -> Iterator[Any]:
    """Yield a column of text, a few hundred rows at a time.

    Raises:
      UserError: as `opened`; or the table has no such column, or several.
    """
    with opened(path, name) as table:
        if key not in text_columns(table.schema):
            raise UserError(f"{name}: has no column of text named {key}")
        if table.schema.names.count(key) > 1:
            raise UserError(f"{name}: has several columns named {key}")
        for batch in table.batches(key):
            column = batch.column(key)
            column.validate(full=True)  # is it UTF-8?
            yield column


def documents(path: str, name: str, key: str) -> Iterator[bytes]:
    """Yield the documents of a table; a row without a value holds none.

    Raises:
      UserError: as `columns_of`.
    """
    for column in columns_of(path, name, key):
        yield from values(column)


def values(column: Any) -> Iterator[bytes]:
    """Yield the values of some rows, as UTF-8."""
    return (row.as_buffer().to_pybytes() for row in column if row.is_valid)
