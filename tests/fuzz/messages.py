"""Broken messages that are still messages: fields set, cleared, repeated and exchanged as their descriptors say."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

import mutate

NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, 2, -1, 28, 100, (1 << 31) - 1, -(1 << 31)),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2, 3, 28, 255, 256, 1 << 16, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, 2, 3, -1, 10, 28, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63)),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2, 1 << 32, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, 0.5, -1.0, 3e38, float("inf"), float("nan")),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, 0.5, -1.0, 1e308, float("inf"), float("nan")),
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
}
_DESCENDS = 0.6  # into a message within, where there is one
_MOST_TIMES = (1, 1, 1, 2, 100)


class Mutator:
    """Makes broken messages of whole ones.

    Args:
        words: Texts that mean something to what reads them.
        donors: Messages that are put into the seeds, often.
    """

    def __init__(self, seeds: Sequence[Message], words: Sequence[str], donors: Sequence[Message] = ()) -> None:
        self._seeds = seeds
        self._words = (*words, "", "x", "\0", "\n", "../../etc/passwd", "é\u202e\U0001f600", "x" * 3000)
        self._parts = _by_type([part for seed in seeds for part in _within(seed)])
        self._donors = _by_type(donors)

    def message(self, rng: random.Random) -> Message:
        """One of the seeds after one to five changes."""
        seed = rng.choice(self._seeds)
        made = type(seed)()
        made.CopyFrom(seed)
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            self._change(rng, made)
        return made

    def wire(self, rng: random.Random) -> bytes:
        """One as bytes, sometimes with fields that nobody knows, or followed by another message, which is merged."""
        data = self.message(rng).SerializeToString()
        if rng.random() < 0.1:
            data += rng.choice(self._seeds).SerializeToString()
        if rng.random() < 0.15:
            data += _unknown(rng)
        return data

    def text(self, rng: random.Random) -> bytes:
        """One in text form, sometimes with fields that nobody knows."""
        text = text_format.MessageToString(self.message(rng), as_one_line=rng.random() < 0.1)
        for _ in range(rng.choice((0, 0, 0, 0, 1, 3))):
            lines = text.split("\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(_STRANGE))
            text = "\n".join(lines)
        if rng.random() < 0.1:
            text = text.replace("{", "<").replace("}", ">")
        return text.encode()

    def _change(self, rng: random.Random, message: Message) -> None:
        while rng.random() < _DESCENDS and (inner := [part for _, part in _held(message)]):
            message = rng.choice(inner)
        present = [field for field, _ in message.ListFields()]
        fields = present if present and rng.random() < 0.5 else message.DESCRIPTOR.fields
        if not fields:
            return
        field = rng.choice(fields)
        if rng.random() < 0.15:
            message.ClearField(field.name)
        elif _is_map(field):
            self._change_map(rng, message, field)
        elif field.is_repeated:
            self._change_repeated(rng, getattr(message, field.name), field)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._part(rng, field))
        else:
            setattr(message, field.name, self._scalar(rng, field))

    def _change_map(self, rng: random.Random, message: Message, field: FieldDescriptor) -> None:
        entries = getattr(message, field.name)
        value = field.message_type.fields_by_name["value"]
        key = self._scalar(rng, field.message_type.fields_by_name["key"])
        key = rng.choice(sorted(entries)) if entries and rng.random() < 0.5 else key
        if value.message_type is not None:
            entries[key].CopyFrom(self._part(rng, value))
            self._change(rng, entries[key])
        else:
            entries[key] = self._scalar(rng, value)

    def _change_repeated(self, rng: random.Random, values: Any, field: FieldDescriptor) -> None:
        at = rng.randrange(len(values)) if len(values) else None
        if at is not None and rng.random() < 0.4:
            if rng.random() < 0.5 or field.message_type is not None:
                del values[at]
            else:
                values[at] = self._scalar(rng, field)
            return
        again = at is not None and rng.random() < 0.5
        for _ in range(rng.choice(_MOST_TIMES)):
            if field.message_type is None:
                values.append(values[at] if again else self._scalar(rng, field))
            else:
                values.add().CopyFrom(values[at] if again else self._part(rng, field))

    def _part(self, rng: random.Random, field: FieldDescriptor) -> Message:
        """A message for the field, out of the seeds or empty."""
        pool = self._donors if rng.random() < 0.3 and self._donors else self._parts
        known = pool.get(field.message_type.full_name, [])
        return rng.choice(known) if known and rng.random() < 0.8 else field.message_type._concrete_class()

    def _scalar(self, rng: random.Random, field: FieldDescriptor) -> Any:
        if field.enum_type is not None:
            known = [value.number for value in field.enum_type.values]
            return rng.choice(known if field.enum_type.is_closed else [*known, 99, -1])
        if field.type == FieldDescriptor.TYPE_BYTES:
            return mutate.changed(rng, rng.choice(self._words).encode(), times=rng.choice((0, 1)))
        if field.type == FieldDescriptor.TYPE_STRING:
            return rng.choice(self._words)
        return rng.choice(NUMBERS[field.cpp_type])


def _by_type(messages: Sequence[Message]) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = {}
    for message in messages:
        found.setdefault(message.DESCRIPTOR.full_name, []).append(message)
    return found


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _held(message: Message) -> Iterator[tuple[FieldDescriptor, Message]]:
    """The messages that one holds itself, each with its field."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if _is_map(field):
            if field.message_type.fields_by_name["value"].message_type is not None:
                yield from ((field, value[key]) for key in value)
        else:
            yield from ((field, each) for each in (value if field.is_repeated else [value]))


def _within(message: Message) -> Iterator[Message]:
    """The message and all that lie in it."""
    yield message
    for _, part in _held(message):
        yield from _within(part)


def _unknown(rng: random.Random) -> bytes:
    """A field that no message here has, or one of another type than it is known with."""
    number = rng.choice((15, 16, 99, 1000, (1 << 29) - 1, rng.randint(1, 30)))
    wire, value = rng.choice(((0, b"\x01"), (1, bytes(8)), (2, b"\x03abc"), (5, bytes(4)), (3, b""), (4, b"")))
    return _varint(number << 3 | wire) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


_STRANGE = (
    "# a remark",
    "nobody_knows: 1",
    'nobody_knows: "text" "and more"',
    "nobody_knows { of: [1, 2], what { it: <is> } }",
    "nobody_knows: [{a: 1}, {b: 'x'}]",
    "nobody_knows {",
    "}",
    "[google.protobuf.Any/type] { value: 1 }",
    "17: 4",
    "max_batch_size: 0x10",
    "max_batch_size: 99999999999999999999",
    'name: "\\377\\000\\u12"',
    "name: '\\x",
    "default_model_filename: nope",
)
