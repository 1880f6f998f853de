"""Sound files made unsound at random: in their bytes, or as the JSON, header, index or pickle that they are.

Knows nothing of who reads them.
"""

import io
import json
import pickle
import pickletools
import random
import sqlite3
import struct
import zipfile
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 255, 2**31, 2**32 - 1, 2**47, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), True, None, "", "x", "..", "/etc/passwd", "\0", "\ud800", "é" * 300, "x" * 5000, "F64", "BF16", "I8",
    "Q4", "LORA", "(a+)+$", "(", [], {}, [[]], [0, 0], [2, -1], [2**40] * 9, {"a": 1}, {"dtype": "F32", "shape": [1]},
)  # fmt: skip


def mutated(raw: bytes, name: str, rng: random.Random) -> bytes:
    """A file with one to three things wrong with it, as bytes or as what it is."""
    aware = {
        ".json": _json, ".safetensors": _safetensors, ".sqlite": _index, ".pt": _pickled, ".bin": _pickled
    }[Path(name).suffix]  # fmt: skip
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            raw = (aware if rng.random() < 0.7 else _bytes)(raw, rng)
        except Exception:
            raw = _bytes(raw, rng)  # it is too broken already to be taken apart
    return raw


def _bytes(raw: bytes, rng: random.Random) -> bytes:
    at, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    end = min(end, at + rng.choice((1, 4, 64, 10**6)))
    piece = rng.choice((rng.randbytes(8), struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))), b"\0" * 64))
    way = rng.randrange(6)
    if way == 0 and raw:
        bits = bytearray(raw)
        for _ in range(rng.randrange(1, 9)):
            bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
        return bytes(bits)
    return {
        1: raw[:at],
        2: raw[:at] + raw[end:],
        3: raw[:at] + piece + raw[at:],
        4: raw[:at] + raw[at:end] * rng.randrange(2, 5) + raw[end:],
    }.get(way, raw[:at] + piece + raw[at + len(piece) :])


def _json(raw: bytes, rng: random.Random) -> bytes:
    """One value replaced, left out, or under another key; or two values exchanged."""
    value = json.loads(raw)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places:
        return json.dumps(rng.choice(HOSTILE)).encode()
    (node, key), (other, their) = rng.choice(places), rng.choice(places)
    way = rng.randrange(5)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, dict):
        node[str(rng.choice((*HOSTILE, their)))] = node[key]
    elif way == 2:
        node[key] = json.loads(json.dumps(other[their]))
    elif type(node[key]) is int and way == 3:
        node[key] += rng.choice((-1, 1, 4, 8, 2**32))
    else:
        node[key] = rng.choice(HOSTILE)
    return json.dumps(value).encode()


def _safetensors(raw: bytes, rng: random.Random) -> bytes:
    """Something else in the header, whose length is right again; or in the tensors."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, rest = raw[8 : 8 + length], raw[8 + length :]
    if rng.random() < 0.3:
        numbers = bytearray(rest)
        at = rng.randrange(0, len(numbers) - 1, 2)
        numbers[at : at + 2] = rng.choice((b"\x80\x7f", b"\xc0\x7f", b"\xff\xff", b"\0\0", b"\x7f\x7f"))
        return raw[: 8 + length] + bytes(numbers)
    header = _json(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


def _index(raw: bytes, rng: random.Random) -> bytes:
    """Something else in a column, or other tables."""
    index = sqlite3.connect(":memory:")
    index.deserialize(raw)
    value = rng.choice([v for v in HOSTILE if type(v) is not int or abs(v) < 2**63])
    value = json.dumps(value) if isinstance(value, list | dict) or rng.random() < 0.3 else value
    value = value.encode("utf-8", "surrogatepass") if isinstance(value, str) and rng.random() < 0.3 else value
    with index:
        if rng.random() < 0.8:
            column = rng.choice(("id", "shard", "row", "meta"))
            index.execute(f"update diffs set {column} = ? where id = ?", (value, rng.choice("abc")))
        else:
            index.execute(rng.choice(_STATEMENTS))
    return index.serialize()


_STATEMENTS = (
    "drop table facts", "delete from diffs", "create view v as select 1", "update facts set value = x'00'",
    "create table t (x)", "alter table diffs add column x", "pragma user_version = 9", "pragma encoding = 'UTF-16'",
    "create trigger t after insert on diffs begin delete from facts; end",
)  # fmt: skip
_INSTRUCTIONS = (
    pickle.POP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_TUPLE,
    pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.APPEND, pickle.APPENDS, pickle.SETITEM,
    pickle.SETITEMS, pickle.BUILD, pickle.REDUCE, pickle.NEWOBJ, pickle.BINPERSID, pickle.STOP, pickle.DUP,
    pickle.BININT1 + b"\x05", pickle.BININT + b"\xff\xff\xff\x7f", pickle.BININT + b"\xff\xff\xff\xff",
    pickle.LONG1 + b"\x08" + b"\xff" * 7 + b"\x7f", pickle.BINGET + b"\x00", pickle.BINGET + b"\x01",
    pickle.BINGET + b"\x07", pickle.BINPUT + b"\x01", pickle.BINUNICODE + b"\x01\0\0\0x", pickle.BINFLOAT + b"\x7f" * 8,
    pickle.GLOBAL + b"os\nsystem\n", pickle.GLOBAL + b"builtins\nbytearray\n", pickle.GLOBAL + b"torch\nTensor\n",
    pickle.GLOBAL + b"torch\nDoubleStorage\n", pickle.GLOBAL + b"collections\nOrderedDict\n", pickle.FRAME + b"\0" * 8,
    pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n", pickle.GLOBAL + b"torch._utils\n_rebuild_parameter\n",
)  # fmt: skip


def _pickled(raw: bytes, rng: random.Random) -> bytes:
    """Another instruction in the program, or other parts around it, in a zip that is sound otherwise."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (program,) = [name for name in parts if name.endswith("data.pkl")]
    name = rng.choice(list(parts))
    way = rng.randrange(8)
    if way == 0:
        parts[name] = _bytes(parts[name], rng)
    elif way == 1:
        parts[rng.choice((name + "0", "archive/data/0", "../x", "data.pkl"))] = parts.pop(name)
    else:
        code = parts[program]
        starts = [at for _, _, at in pickletools.genops(code) if at is not None]
        spans = [code[a:b] for a, b in zip(starts, [*starts[1:], len(code)], strict=True)]
        at, other = rng.randrange(len(spans)), rng.randrange(len(spans))
        if way == 2:
            del spans[at]
        elif way == 3:
            spans[at], spans[other] = spans[other], spans[at]
        elif way == 4:
            spans[at:at] = spans[other : other + rng.randrange(1, 20)]
        else:
            spans[at : at + rng.randrange(2)] = [rng.choice(_INSTRUCTIONS)]
        parts[program] = b"".join(spans)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.01 else zipfile.ZIP_STORED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    return made.getvalue()
