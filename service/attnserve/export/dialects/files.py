"""Reading a file that nobody vouches for: tensors and plain values come out of it, or a reason why not.

Owns the limits on size and content; knows nothing of what the tensors mean. Code in a pickle is never run.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnserve.errors import ConfigError

MAX_BYTES = 2 << 30  # a ResNet-101 with the state of an Adam optimizer and a moving average is 0.8 GB

DAMAGE = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, MemoryError,
    OverflowError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch and zipfile raise for files that are cut off or put together wrongly."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Where a training loop puts the weights in the dict that it saves, most usual first."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What DataParallel, torch.compile and a class around a network put before every name."""


def read(path: Path, limit: int = MAX_BYTES) -> object:
    """The content of a torch or safetensors file, on the CPU.

    Raises:
        ConfigError: There is no file, it is larger than `limit` bytes (packed or not), damaged, or holds code.
    """
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}")
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(member.file_size for member in archive.infolist()))
        if size > limit:
            raise ConfigError(f"{path.name} holds {size} bytes; the limit is {limit}")
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with warnings.catch_warnings():
            for message in ("Detected pickle protocol", ".*looks like a TorchScript archive"):
                warnings.filterwarnings("ignore", message=message)  # torch reads it, or fails below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(_refusal(path, error)) from error
    except DAMAGE as error:
        raise ConfigError(f"{path.name} cannot be read as a checkpoint: {_reason(error)}") from error


def weights(raw: object, name: str, limit: int = MAX_BYTES) -> dict[str, Tensor]:
    """The network's tensors in the content of a file, without wrappers and common prefixes; raises `ConfigError`."""
    for wrapper in WRAPPERS:
        if isinstance(raw, dict) and isinstance(raw.get(wrapper), dict):
            raw = raw[wrapper]
            break
    tensors = {key: value for key, value in raw.items() if isinstance(value, Tensor)} if isinstance(raw, dict) else {}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        raise ConfigError(f"{name} holds no weights by name, neither bare nor under {', '.join(WRAPPERS)}")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > limit:
        raise ConfigError(f"{name}: the weights spelt out would be more than {limit} bytes")
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise ConfigError(f"{name}: {key} is not a dense tensor of real numbers")
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{name}: {key} holds numbers that are not finite")
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError  # type: ignore[import-not-found, unused-ignore]
        from safetensors.torch import load_file  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path.name}: reading this needs the package safetensors") from error
    try:
        return dict(load_file(path, device="cpu"))
    except SafetensorError as error:
        raise ConfigError(f"{path.name} cannot be read as safetensors: {_reason(error)}") from error


def _refusal(path: Path, error: Exception) -> str:
    """Why torch's restricted unpickler stopped, and the way out."""
    if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"{path.name} is not loaded: besides tensors and plain values it wants {wanted[1]}, which could run code;"
            " where you trust it, load it yourself and save its state_dict alone"
        )
    return f"{path.name} is not loaded: it is damaged, or holds more than tensors and plain values ({_reason(error)})"


def _reason(error: Exception) -> str:
    """One sentence; torch adds advice to its own, the first of it to load the file with code allowed."""
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript archive; load it yourself and save its state_dict"
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    sentence = text.partition("\n")[0].partition(". ")[0]
    if isinstance(error, LookupError):  # whose text is the bare key
        sentence = f"{type(error).__name__} {sentence}"
    return sentence or type(error).__name__
