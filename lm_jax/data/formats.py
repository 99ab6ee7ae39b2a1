"""Recognise by the first bytes a file other than UTF-8 text in lines."""

import codecs

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"  # as the first character of a text, its byte-order mark
HEAD = 1 << 16  # bytes to look at

_PACKED = {
    b"\x1f\x8b": "is compressed by gzip",
    b"BZh": "is compressed by bzip2",
    b"\xfd7zXZ\0": "is compressed by xz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd",
    b"PK\x03\x04": "is a zip archive",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive",
}
_BINARY = {
    b"%PDF-": "is a PDF document",
    b"PAR1": "is a Parquet table",
    b"ARROW1": "is an Arrow table",
    b"\x93NUMPY": "is a NumPy array",
    b"\x80\x02": "is a pickle of Python",
    b"\x80\x03": "is a pickle of Python",
    b"\x80\x04": "is a pickle of Python",
    b"\x80\x05": "is a pickle of Python",
    b"\xba\x16\x4f\x2f": "is a model of fastText",
}
_TABLES = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}
_RETURNS = (
    "ends its lines in carriage returns alone, which are no newlines: convert it first, "
    "tr '\\r' '\\n'"
)
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, because this mark begins with UTF-16's
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Encodings, by which of every four bytes are zero in ASCII text.
_ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
}


def other_format(head: bytes) -> str | None:
    """Return a file's format if the file is not UTF-8 text in lines.

    Args:
      head: the first `HEAD` bytes of the file, or the whole of a shorter file.

    Returns:
      the format and a remedy, to follow the file's name in an error, for example "is compressed by
      gzip: unpack it first". None if the head is UTF-8 without a NUL, or an unknown format.
    """
    if b"\0" not in head and _is("UTF-8", head):
        # A carriage return as the last byte may be the first half of "\r\n".
        return _RETURNS if b"\r" in head[:-1] and b"\n" not in head else None
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    for start, said in _PACKED.items():
        if head.startswith(start):
            return f"{said}: unpack it first"
    for start, said in _BINARY.items():
        if head.startswith(start):
            ending = _TABLES.get(start)
            named = f"unpacked, and with a name in {ending}, it is read"
            return f"{said}: {named if ending else 'write it as text first'}"
    for start, encoding in _WIDE.items():
        if head.startswith(start) and _is(encoding, head):
            return _converted(encoding)
    columns = [head[place::4] for place in range(4)]
    zeros = tuple(column.count(0) > 0.75 * len(column) for column in columns)
    return _converted(_ZEROS[zeros]) if zeros in _ZEROS else None


def _is(encoding: str, head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)  # the head may end within a character
    except UnicodeDecodeError:
        return False
    return True


def _converted(encoding: str) -> str:
    return f"is {encoding}, not UTF-8: convert it first, iconv -f {encoding} -t UTF-8"
