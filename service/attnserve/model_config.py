"""config.pbtxt: Triton's ModelConfig in protobuf text form, the subset that attnserve honours.

Whatever else the file says is reported, never silently ignored.
"""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf import text_format

from attnserve.errors import ConfigError
from attnserve.inference import model_config_pb2 as pb

FILE_NAME = "config.pbtxt"
OPTIONAL_OUTPUTS = "optional_outputs"
"""Key of the parameter that names the outputs which only answer when asked for."""


def read(folder: Path) -> tuple[pb.ModelConfig, list[str]]:
    """Parse and check a model's config.pbtxt; returns it with a sentence for each thing that is not honoured.

    Raises:
        ConfigError: The file is missing, malformed or describes a model that cannot be served.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    config = pb.ModelConfig()
    ignored: list[str] = []
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        config.Clear()
        try:
            text_format.Parse(text, config, allow_unknown_field=True)
        except text_format.ParseError as fatal:
            raise ConfigError(f"{path}: {fatal}") from fatal
        ignored += [f"{name} is not honoured" for name in _unknown_fields(text)] or [str(error)]
    config.name = config.name or folder.name
    _check(config, folder, path)
    return config, ignored + _unhonoured(config)


def _check(config: pb.ModelConfig, folder: Path, path: Path) -> None:
    if config.name != folder.name:
        raise ConfigError(f"{path}: name {config.name!r} is not the folder's, {folder.name!r}")
    if config.backend not in ("", "onnxruntime") or config.platform not in ("", "onnxruntime_onnx"):
        raise ConfigError(f'{path}: only backend "onnxruntime" is served, not {config.backend or config.platform!r}')
    if config.max_batch_size < 1:
        raise ConfigError(f"{path}: max_batch_size must be positive, got {config.max_batch_size}")
    if [(tensor.name, tensor.data_type) for tensor in config.input] != [("images", pb.TYPE_UINT8)]:
        raise ConfigError(f'{path}: needs exactly one input, "images" TYPE_UINT8')
    dims = list(config.input[0].dims)
    if len(dims) != 3 or dims[2] != 3:
        raise ConfigError(f'{path}: input "images" must have dims [ height, width, 3 ], got {dims}')
    if [(tensor.name, tensor.data_type) for tensor in config.output[:1]] != [("probabilities", pb.TYPE_FP32)]:
        raise ConfigError(f'{path}: the first output must be "probabilities" TYPE_FP32')
    if any(group.count < 0 for group in config.instance_group):
        raise ConfigError(f"{path}: instance_group count must not be negative")


def _unhonoured(config: pb.ModelConfig) -> list[str]:
    """Sentences about fields that parse but change nothing here."""
    ignored = [f"dynamic_batching.{field.name} is not honoured: batches form only while all workers are busy"
               for field, _ in config.dynamic_batching.ListFields()]  # fmt: skip
    if config.default_model_filename not in ("", "model.onnx"):
        ignored.append("default_model_filename is not honoured: the file is model.onnx")
    if len(config.instance_group) > 1:
        ignored.append("only the first instance_group is honoured")
    if any(group.gpus for group in config.instance_group):
        ignored.append("instance_group.gpus is not honoured: the first visible GPU is used")
    return ignored


def _unknown_fields(text: str) -> list[str]:
    """Top-level field names that our ModelConfig lacks, in order of appearance."""
    known = {field.name for field in pb.ModelConfig.DESCRIPTOR.fields}
    names: list[str] = []
    depth = 0
    for token in re.findall(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|#.*|[{}\[\]<>]|[A-Za-z_]\w*(?=\s*[:{<\[])', text):
        if token in "{[<":
            depth += 1
        elif token in "}]>":
            depth -= 1
        elif depth == 0 and token[0] not in "\"'#" and token not in known and token not in names:
            names.append(token)
    return names
