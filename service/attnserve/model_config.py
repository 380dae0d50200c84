"""config.pbtxt: Triton's ModelConfig in protobuf text form, the subset that attnserve honours.

Whatever else the file says is reported, never silently ignored.
"""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf import text_format

from attnserve.batch_queue import MOST_LEVELS, Policy
from attnserve.config import MOST_THREADS
from attnserve.errors import ConfigError
from attnserve.inference import model_config_pb2 as pb
from attnserve.model_files import text_of

FILE_NAME = "config.pbtxt"
MOST_IN_BATCH = 4096  # the warm-up runs it, in memory
LEVELS, DEFAULT_LEVEL = 3, 2  # where config.pbtxt says nothing: one class before most, one after
LONGEST_DELAY_S = 60.0
MOST_UNKNOWN = 256  # fields that our ModelConfig lacks; each costs one more look at the whole file
OPTIONAL_OUTPUTS = "optional_outputs"
"""Key of the parameter that names the outputs which only answer when asked for."""


def read(folder: Path) -> tuple[pb.ModelConfig, list[str]]:
    """Parse and check a model's config.pbtxt; returns it with a sentence for each thing that is not honoured.

    Raises:
        ConfigError: The file is missing, malformed or describes a model that cannot be served.
    """
    path = folder / FILE_NAME
    text = text_of(path, folder.parent)
    config, unknown = _parsed(text, path)
    ignored = [f"{name} is not honoured" for name in unknown]
    config.name = config.name or folder.name
    _check(config, folder, path)
    return config, ignored + _unhonoured(config)


def _check(config: pb.ModelConfig, folder: Path, path: Path) -> None:
    if config.name != folder.name:
        raise ConfigError(f"{path}: name {config.name!r} is not the folder's, {folder.name!r}")
    for given, served in ((config.backend, "onnxruntime"), (config.platform, "onnxruntime_onnx")):
        if given not in ("", served):
            raise ConfigError(f'{path}: only backend "onnxruntime" is served, not {given!r}')
    if config.max_batch_size < 1:
        raise ConfigError(f"{path}: max_batch_size must be positive, got {config.max_batch_size}")
    if config.max_batch_size > MOST_IN_BATCH:
        raise ConfigError(f"{path}: max_batch_size must be at most {MOST_IN_BATCH}, got {config.max_batch_size}")
    if [(tensor.name, tensor.data_type) for tensor in config.input] != [("images", pb.TYPE_UINT8)]:
        raise ConfigError(f'{path}: needs exactly one input, "images" TYPE_UINT8')
    dims = list(config.input[0].dims)
    if len(dims) != 3 or dims[2] != 3:
        raise ConfigError(f'{path}: input "images" must have dims [ height, width, 3 ], got {dims}')
    if config.input[0].format == pb.ModelInput.FORMAT_NCHW:
        raise ConfigError(f'{path}: input "images" must have format FORMAT_NHWC (or none), got FORMAT_NCHW')
    if [(tensor.name, tensor.data_type) for tensor in config.output[:1]] != [("probabilities", pb.TYPE_FP32)]:
        raise ConfigError(f'{path}: the first output must be "probabilities" TYPE_FP32')
    _check_batching(config, path)
    if any(group.count < 0 for group in config.instance_group):
        raise ConfigError(f"{path}: instance_group count must not be negative")
    if any(group.count > MOST_THREADS for group in config.instance_group):
        raise ConfigError(f"{path}: instance_group count must be at most {MOST_THREADS}")


def _check_batching(config: pb.ModelConfig, path: Path) -> None:
    batching = config.dynamic_batching
    if any(not 1 <= size <= config.max_batch_size for size in batching.preferred_batch_size):
        raise ConfigError(f"{path}: preferred_batch_size must be within 1..{config.max_batch_size}")
    if batching.max_queue_delay_microseconds > LONGEST_DELAY_S * 1e6:
        raise ConfigError(f"{path}: max_queue_delay_microseconds must be at most {LONGEST_DELAY_S:g} s")
    if batching.priority_levels > MOST_LEVELS:
        raise ConfigError(f"{path}: priority_levels must be at most {MOST_LEVELS}")
    levels = batching.priority_levels or LEVELS
    if (batching.priority_levels or batching.default_priority_level) and not (
        1 <= batching.default_priority_level <= levels
    ):
        raise ConfigError(f"{path}: default_priority_level must be within 1..{levels}")


def policy_of(config: pb.ModelConfig) -> Policy:
    """How the model's batches are formed."""
    batching = config.dynamic_batching
    return Policy(
        config.max_batch_size,
        preferred_batch_sizes=tuple(sorted(batching.preferred_batch_size)),
        max_queue_delay_s=batching.max_queue_delay_microseconds / 1e6,
        levels=batching.priority_levels or LEVELS,
    )


def default_level_of(config: pb.ModelConfig) -> int:
    """The priority class of a request that names none."""
    return config.dynamic_batching.default_priority_level or DEFAULT_LEVEL


def _unhonoured(config: pb.ModelConfig) -> list[str]:
    """Sentences about fields that parse but change nothing here."""
    batching, ignored = config.dynamic_batching, []
    if batching.preserve_ordering:
        ignored.append("dynamic_batching.preserve_ordering is not honoured: answers leave as soon as they are there")
    if batching.default_queue_policy.timeout_action:
        ignored.append("default_queue_policy.timeout_action is not honoured: what is late is rejected")
    if batching.default_queue_policy.allow_timeout_override:
        ignored.append("default_queue_policy.allow_timeout_override is not honoured: a shorter `timeout` always counts")
    if config.default_model_filename not in ("", "model.onnx"):
        ignored.append("default_model_filename is not honoured: the file is model.onnx")
    if len(config.instance_group) > 1:
        ignored.append("only the first instance_group is honoured")
    if any(group.gpus for group in config.instance_group):
        ignored.append("instance_group.gpus is not honoured: the first visible GPU is used")
    return ignored


def _parsed(text: str, path: Path) -> tuple[pb.ModelConfig, list[str]]:
    """The message, and the names of fields that our ModelConfig lacks, at any depth, each once.

    protobuf can skip unknown fields but neither names them all nor accepts every form of them, so they are cut out
    here one by one, where its error says that they stand.
    """
    unknown: list[str] = []
    for _ in range(MOST_UNKNOWN):
        try:
            return text_format.Parse(text, pb.ModelConfig()), unknown
        except text_format.ParseError as error:
            found = re.match(r'(\d+):(\d+) : Message type "\S+" has no field named "(\w+)"', str(error))
            if not found:
                raise ConfigError(f"{path}: {error}") from error
            if found[3] not in unknown:
                unknown.append(found[3])
            without = _without_field(text, int(found[1]), int(found[2]), found[3])
            if without is None:
                raise ConfigError(f"{path}: {error}, and it does not end") from error
            text = without
    raise ConfigError(f"{path}: holds {MOST_UNKNOWN} or more fields that Triton's ModelConfig is not known to have")


_STRING = r'(?:"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')'
_SPACE = r"(?:\s|#[^\n]*\n)*"
_TOKEN = re.compile(rf"{_STRING}|#[^\n]*|\s+|[{{}}\[\]<>:,;]|[^\s{{}}\[\]<>:,;#\"']+|.")
_TAIL = re.compile(rf"(?:{_SPACE}{_STRING})*(?:{_SPACE}[,;])?")  # more pieces of a string, and a separator


def _without_field(text: str, line: int, column: int, name: str) -> str | None:
    """The text with the field of that name blanked out; None where a bracket that it opens is never closed.

    Line and column (from 1) lie at or after the name's start.
    """
    lines = text.split("\n")
    position = sum(len(row) + 1 for row in lines[: line - 1]) + column - 1
    start = text.rindex(name, 0, position + len(name))
    end = _end_of_value(text, start + len(name))
    if end is None:
        return None
    blank = re.sub(r"[^\n]", " ", text[start:end])  # keeps later lines and columns where they were
    return text[:start] + blank + text[end:]


def _end_of_value(text: str, position: int) -> int | None:
    """Where the value that follows a field's name ends, its separator included; None where a bracket stays open."""
    depth = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        assert token is not None  # the last alternative takes any character
        position = token.end()
        if token[0] in ("{", "[", "<"):
            depth += 1
        elif token[0] in ("}", "]", ">"):
            depth -= 1
        elif depth or token[0] == ":" or token[0].isspace() or token[0].startswith("#"):
            continue
        if depth <= 0:
            return _TAIL.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing at least
    return None if depth else position
