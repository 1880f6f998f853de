"""The zip that `torch.save` writes: which parts it has, and their bytes; nothing is believed before it was checked.

Knows nothing of pickles. `zipfile` reads the list of parts; the parts are read past it, since its checksums are slow.
"""

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from weightdiff.files import MAX_JSON, MAX_TENSORS, check_memory

MAX_DIRECTORY = 16 << 20
"""Bytes of a zip's list of its parts: 200,000 storages have one of 13 MB."""


class NoArchive(Exception):
    """No zip, or none that torch made."""


class _Narrow:
    """A file of which no large piece is read at once: the size of a zip's directory is the zip's own word for it."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise ValueError(f"its directory claims {size} bytes, and no more than {MAX_DIRECTORY} are read")
        return self._file.read(size)


class Archive:
    """The parts of a torch zip, none of them compressed: what is compressed may unfold to any size.

    Args:
        path: how an error names it.
        file: open for as long as parts are read.

    Attributes:
        size: bytes of the whole file.

    Raises:
        NoArchive: it is no zip, or none that torch made.
        ValueError: what is wrong with it.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.size, self._file = os.fstat(file.fileno()).st_size, io.BufferedReader(file)  # type: ignore[arg-type]
        try:
            parts = zipfile.ZipFile(_Narrow(file)).infolist()  # type: ignore[arg-type]
        except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
            raise NoArchive(str(error).rstrip(".")) from None
        self._parts = {part.filename: part for part in parts}
        if len(self._parts) < len(parts):
            raise ValueError("two of its parts have one name")
        if len(parts) > MAX_TENSORS:
            raise ValueError(f"it has {len(parts)} parts, and more than {MAX_TENSORS} aren't read")
        if any(p.compress_type != zipfile.ZIP_STORED or p.compress_size != p.file_size for p in parts):
            raise ValueError("it has compressed parts, as torch's files never do")
        if (total := sum(part.file_size for part in parts)) > self.size:
            raise ValueError(f"its parts overlap: they claim {total} bytes, and it has {self.size}")
        check_memory(path, 2 * total)  # of bf16 there will be float32 too
        programs = [name for name in self._parts if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(programs) != 1:
            raise NoArchive("it has no data.pkl")
        self._root = programs[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in self._parts and self.read("byteorder") != b"little":
            raise ValueError("its numbers are those of a big-endian machine; save it on a little-endian one")

    def program(self) -> bytes:
        """The pickle."""
        if (size := self._part("data.pkl").file_size) > MAX_JSON:
            raise ValueError(f"its data.pkl has {size >> 20} MB, and more than {MAX_JSON >> 20} MB aren't read")
        return bytes(self.read("data.pkl"))

    def read(self, name: str) -> bytearray:
        """The bytes of a part; torch doesn't look at their checksum either."""
        part = self._part(name)
        self._file.seek(part.header_offset)
        head = self._file.read(30)
        if len(head) < 30 or head[:4] != b"PK\3\4":
            raise ValueError(f"its part {name!r} doesn't begin where its directory says")
        self._file.seek(sum(struct.unpack("<2H", head[26:])), os.SEEK_CUR)  # over its name, and over padding
        buffer = bytearray(part.file_size)
        if self._file.readinto(buffer) != len(buffer):
            raise ValueError(f"its part {name!r} is cut off")
        return buffer

    def _part(self, name: str) -> zipfile.ZipInfo:
        if (part := self._parts.get(self._root + name)) is None:
            raise ValueError(f"it has no part {name!r}")
        return part
