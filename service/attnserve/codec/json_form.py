"""JSON as a stranger may send it, and messages as Triton writes them in JSON; knows no request."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from attnserve.errors import InvalidArgument

_MOST_ARRAYS = 1 << 19  # and objects: each costs Python far more than the number that could stand in its place


def read(data: bytes) -> dict[str, Any]:
    """The object that the UTF-8 says. Raises `InvalidArgument`, also for numbers and strings that have no meaning."""
    try:
        text = data.decode()
        if text.count("[") + text.count("{") > _MOST_ARRAYS:
            raise InvalidArgument(f"the body holds more than {_MOST_ARRAYS} arrays and objects")
        document = json.loads(text, parse_constant=_no_number)
        if r"\ud" in text or r"\uD" in text:  # half a surrogate pair is no text, and protobuf takes none
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidArgument("the body is nested too deeply") from None
    except ValueError as error:
        raise InvalidArgument(f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgument("the body must be a JSON object")
    return document


def plain(message: Message) -> dict[str, Any]:
    """A message as Triton's JSON: fields by their proto names, those unset with their defaults, integers as numbers."""
    return {
        field.name: _plain_field(message, field)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def written(value: object) -> bytes:
    """The value as JSON, without the numbers that are none. Raises `ValueError` where it holds one."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        item = _plain_value(field.message_type.fields_by_name["value"])
        return {key: item(each) for key, each in value.items()}
    item = _plain_value(field)
    return [item(each) for each in value] if field.is_repeated else item(value)


def _plain_value(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.message_type is not None:
        return plain
    if field.enum_type is not None:
        names = field.enum_type.values_by_number
        return lambda number: names[number].name if number in names else number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    return lambda value: value
