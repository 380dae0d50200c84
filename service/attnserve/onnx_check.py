"""Whether the bytes of a graph are an ONNX model that stands alone: no other file, no code but the engine's own.

Walks the wire format of protobuf itself, as the package onnx is not there where models are served, and reads no
weights: they are stepped over by their length. Opens nothing.

What it keeps out, tried with ONNX Runtime 1.32: a tensor may lie in another file ("external data"). That file is read
when the session is opened: beside the model, or in the working directory for a model from bytes, and no digest covers
it. `../../../etc/passwd`, absolute paths and links that lead out are refused by that version itself, which is not said
of every version and engine; so no such tensor gets that far. A node of a foreign domain needs a library of code, a
local function hides nodes under a name, and an EPContext node names a compiled engine in yet another file.
"""

from __future__ import annotations

from mmap import mmap
from pathlib import Path
from typing import NamedTuple

from attnserve.errors import ConfigError

DOMAINS = (b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft")
"""Of operators, in an engine without further libraries: ONNX's own and ONNX Runtime's."""

MOST_DEPTH = 32
"""Messages within messages: a graph within a graph adds three. protobuf itself ends at 100."""

MOST_FIELDS = 1_000_000
"""A ResNet-50 with an explained layer has some 20,000; these take a second to step over, and 200 MB."""

_REFUSED_OPERATORS = (b"EPContext",)
_OTHER_FORMATS = {b"ORTM": "ONNX Runtime's own format", b"TFL3": "TensorFlow Lite"}
"""Found by engines at the fifth byte, which lies in a name where a file is both that and ONNX."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTH = {_FIXED64: 8, _FIXED32: 4}


class _Field(NamedTuple):
    """What a field may be and what is done with it.

    Attributes:
        wire: Its wire types.
        kind: The message in it to be walked; or what `_check_value` looks at; or "", and it is stepped over.
    """

    wire: tuple[int, ...]
    kind: str = ""


_NUMBER = _Field((_VARINT,))
_NUMBERS = _Field((_VARINT, _BYTES))  # one by one or packed
_FLOATS = _Field((_FIXED32, _BYTES))
_TEXT = _Field((_BYTES,))


def _walked(kind: str) -> _Field:
    return _Field((_BYTES,), kind)


def _refused(what: str) -> _Field:
    return _Field((_VARINT, _FIXED64, _BYTES, _FIXED32), f"!{what}")


FIELDS: dict[str, dict[int, _Field]] = {
    "ModelProto": {
        1: _NUMBER,
        **dict.fromkeys((2, 3, 4, 6, 14), _TEXT),
        5: _NUMBER,
        7: _walked("GraphProto"),
        8: _walked("OperatorSetIdProto"),
        20: _refused("training information"),
        25: _refused("a local function"),
        26: _refused("a configuration of devices"),
    },
    "OperatorSetIdProto": {1: _walked("domain"), 2: _NUMBER},
    "GraphProto": {
        1: _walked("NodeProto"),
        **dict.fromkeys((2, 10, 11, 12, 13, 14, 16), _TEXT),
        5: _walked("TensorProto"),
        15: _walked("SparseTensorProto"),
    },
    "NodeProto": {
        **dict.fromkeys((1, 2, 3, 6, 8, 9, 10), _TEXT),
        4: _walked("operator"),
        5: _walked("AttributeProto"),
        7: _walked("domain"),
    },
    "AttributeProto": {
        **dict.fromkeys((1, 4, 9, 13, 14, 15, 21), _TEXT),
        2: _Field((_FIXED32,)),
        **dict.fromkeys((3, 20), _NUMBER),
        **dict.fromkeys((5, 10), _walked("TensorProto")),
        **dict.fromkeys((6, 11), _walked("GraphProto")),
        7: _FLOATS,
        8: _NUMBERS,
        **dict.fromkeys((22, 23), _walked("SparseTensorProto")),
    },
    "SparseTensorProto": {**dict.fromkeys((1, 2), _walked("TensorProto")), 3: _NUMBERS},
    "TensorProto": {
        **dict.fromkeys((1, 5, 7, 11), _NUMBERS),
        2: _NUMBER,
        **dict.fromkeys((3, 6, 8, 9, 12, 16), _TEXT),
        4: _FLOATS,
        10: _Field((_FIXED64, _BYTES)),
        13: _refused("a tensor whose data lies in another file"),
        14: _Field((_VARINT,), "location"),
    },
}
"""Every field of ONNX's messages as of onnx 1.23, by number; any other is refused, as nobody knows what it leads to."""


def check(data: bytes | mmap, path: Path) -> None:
    """Raise `ConfigError` where the bytes are no ONNX model that stands alone; never anything else.

    Takes time by the number of fields, not of bytes: 10 to 50 ms for a ResNet-50.

    Args:
        data: The whole file, or a map of it.
        path: For the message.
    """
    try:
        if other := _OTHER_FORMATS.get(data[4:8]):
            raise _Refusal(f"it is, or passes for, a file of {other}")
        _Walk(data).run()
    except _Malformed as error:
        raise ConfigError(f"{path}: it is no ONNX model: {error}") from error
    except _Refusal as error:
        raise ConfigError(f"{path}: it is not served: {error}") from error


class _Malformed(Exception):
    """No ONNX ModelProto."""


class _Refusal(Exception):
    """One, but not of those that are served."""


class _Walk:
    """One walk over a file; no recursion, so that no nesting exhausts the stack."""

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data
        self._left = MOST_FIELDS
        self._graphs = self._opsets = 0

    def run(self) -> None:
        """Walk all of it."""
        ahead = [("ModelProto", 0, len(self._data), 1)]
        while ahead:
            message, position, end, depth = ahead.pop()
            if depth > MOST_DEPTH:
                raise _Refusal(f"its graphs lie within each other more than {MOST_DEPTH} messages deep")
            for kind, start, stop in self._fields(message, position, end):
                if kind in FIELDS:
                    ahead.append((kind, start, stop, depth + 1))
                    self._graphs += message == "ModelProto" and kind == "GraphProto"
                    self._opsets += message == "ModelProto" and kind == "OperatorSetIdProto"
                else:
                    _check_value(kind, self._data[start:stop])
        if self._graphs != 1 or not self._opsets:
            raise _Malformed(f"it has {self._graphs} graphs and {self._opsets} sets of operators")

    def _fields(self, message: str, position: int, end: int) -> list[tuple[str, int, int]]:
        """Kind, start and stop of the fields of one message that are to be looked at; refuses what it must not have."""
        found = []
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise _Refusal(f"it has more than {MOST_FIELDS} fields")
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            field = FIELDS[message].get(number)
            if field is None or wire not in field.wire:
                raise _Malformed(f"{message} has no field {number} of wire type {wire}")
            if field.kind.startswith("!"):
                raise _Refusal(f"it holds {field.kind[1:]}")
            start = position
            if wire == _VARINT:
                value, position = self._varint(position, end)
                if field.kind == "location" and value:
                    raise _Refusal("it holds a tensor whose data lies in another file")
                continue
            length, start = self._varint(position, end) if wire == _BYTES else (_WIDTH[wire], position)
            position = start + length
            if position > end:
                raise _Malformed(f"{message} ends within field {number}")
            if field.kind:
                found.append((field.kind, start, position))
        return found

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """A number and where it ends."""
        value = shift = 0
        while position < end and shift < 70:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise _Malformed("a number does not end")


def _check_value(kind: str, value: bytes) -> None:
    if kind == "domain" and value not in DOMAINS:
        raise _Refusal(f"it uses operators of the domain {_shown(value)}, which no engine here has")
    if kind == "operator" and value in _REFUSED_OPERATORS:
        raise _Refusal(f"it holds the operator {_shown(value)}, which names another file")


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("utf-8", "replace"))
