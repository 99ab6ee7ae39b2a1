"""Read files as they are, or unpacked if gzip, xz or zstd has packed them.

The first bytes tell the packing, and not the name. A stream is unpacked block by block: memory
holds a few megabytes, whatever a damaged or hostile file says of its size.
"""

import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

from lm_jax.files import reading
from lm_jax.settings import UserError

SUFFIXES = (".gz", ".xz", ".zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BUFFER = 1 << 16  # bytes
_XZ_MEMORY = 1 << 27  # bytes; `xz -9` asks for half


@contextlib.contextmanager
def unpacked(path: str, name: str) -> Iterator[tuple[io.BufferedReader, bool]]:
    """Open a file named by a user, to read its unpacked bytes from the beginning.

    Args:
      path: path of the file.
      name: name of the file in errors.

    Yields:
      the stream, and True if the file is packed. Only a stream that is not packed can seek.

    Raises:
      UserError: as `lm_jax.files.reading`; or, while the context lasts, the packed stream is
        damaged or cut short.
    """
    with reading(path, name) as file:
        head = file.read(max(map(len, _MAGIC)))
        file.seek(0)
        packing = next((kind for start, kind in _MAGIC.items() if head.startswith(start)), None)
        if packing is None:
            yield file, False
            return
        try:
            yield io.BufferedReader(_raw(file, packing), _BUFFER), True
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise _damaged(name, packing, error) from None
        except OSError as error:
            if error.errno is not None:  # of the disk; zstd's errors have no number
                raise
            raise _damaged(name, packing, error) from None


def _damaged(name: str, packing: str, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0].rstrip(".")
    return UserError(f"{name}: a damaged {packing} file: {reason}")


def _raw(file: io.BufferedReader, packing: str) -> Any:
    if packing == "gzip":
        return gzip.GzipFile(fileobj=file)
    if packing == "xz":
        return _XZ(file)
    import pyarrow as arrow  # here, to save other files 0.1 s

    return arrow.CompressedInputStream(file, "zstd")


class _XZ(io.RawIOBase):
    """The unpacked bytes of xz streams; unlike `lzma.LZMAFile`, with a bound on the memory."""

    def __init__(self, file: io.BufferedReader):
        self.file, self.decoder = file, self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            given = b""
            if self.decoder.eof:  # of a stream; zeros may pad it, and another may follow
                given = self.decoder.unused_data.lstrip(b"\0")
                while not given:
                    if not (more := self.file.read(_BUFFER)):
                        return 0
                    given = more.lstrip(b"\0")
                self.decoder = self._new()
            elif self.decoder.needs_input and not (given := self.file.read(_BUFFER)):
                raise EOFError("the stream ends before its end marker")
            if found := self.decoder.decompress(given, len(buffer)):
                buffer[: len(found)] = found
                return len(found)
