"""One frozen, validated configuration of the server: flags > `ATTNSERVE_*` environment > config file > default.

The only place that reads the environment or a config file. Every field's `help` is its documentation: the command line,
the README table and the test that compares them read it from here.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnserve import placement
from attnserve.errors import ConfigError
from attnserve.gpu.plan import GpuOptions, parse_devices, parse_plan

KIB = 1 << 10
MIB = 1 << 20
MOST_THREADS = 1024
"""Of one kind: a model's workers, or decoders. More than any machine has cores, and few enough to be started."""


def _option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class ServeConfig:
    """Everything `attnserve serve` can be told. Raises `ConfigError` naming the field that is wrong."""

    model_repository: str = _option("", "folder of models in Triton's layout (required)")
    model_control_mode: str = _option(
        "none",
        "none: load every model at start; poll: and follow what changes in the folder; explicit: load what load_models "
        "and RepositoryModelLoad name",
        ("none", "poll", "explicit"),
    )
    load_models: str = _option(
        "", "models to load at start in mode explicit, their names separated by commas; * for all"
    )
    repository_poll_s: float = _option(
        15.0, "in mode poll, seconds between two looks; a change is acted on when it looks the same twice"
    )
    keep_previous: bool = _option(
        True, "keep the version that was served last loaded, for an instant roll-back; costs its memory"
    )
    memory_reserve_bytes: int = _option(0, "memory that must stay free when a model is loaded; else it is refused")
    model_signers: str = _option(
        "",
        "PEM file of Ed25519 public keys, one of which must have signed a version's card (extra signatures); read "
        "again for each version that is loaded; empty: no signature is asked for",
    )
    grpc_address: str = _option("0.0.0.0:8001", "HOST:PORT for gRPC; port 0 picks a free one")
    transport: str = _option(
        "grpcio",
        "grpcio; or native: far less CPU per unary call, by pygrpc-native (extra native), where max_request_bytes is "
        "looked at only when a message was read, and callers of streams without x-client-id count as one client",
        ("grpcio", "native"),
    )
    transport_processes: int = _option(
        1,
        "processes that speak gRPC and decode pictures, on one port; more than 1 only where one cannot feed the GPU: "
        "the models are run by one more",
    )
    http_address: str = _option("0.0.0.0:8002", "HOST:PORT for /metrics, /livez and /readyz; port 0 picks a free one")
    rest: bool = _option(
        False, "answer the Open Inference Protocol over REST too (/v2), on http_address; needs the extra rest"
    )
    tls_certificate: str = _option(
        "",
        "PEM file of the certificate that gRPC is served with, its chain after it; empty: no TLS; a new one is used "
        "without a restart",
    )
    tls_key: str = _option("", "PEM file of the certificate's key, without a password")
    tls_client_ca: str = _option(
        "", "PEM file of CAs: gRPC callers must bring a certificate that one of them signed (mTLS)"
    )
    http_tls: bool = _option(False, "speak TLS on http_address too, with the same certificate; callers bring none")
    provider: str = _option(
        "auto",
        "where models run; auto is CUDA where there is one, else the CPU; openvino: the CPU, needs the extra openvino",
        ("auto", "cpu", "openvino", "cuda", "tensorrt"),
    )
    workers: int = _option(
        0,
        "workers per model (on GPUs: for each), at most 1024; 0 is one per usable core on a CPU, and what gpu_plan "
        "needs on a GPU",
    )
    placement: str = _option(
        "auto",
        "how a model uses a CPU's cores: WORKERSxTHREADS (2x4: two workers, each run shared by four threads), "
        "throughput or latency: what measures best at start; auto: one worker of one thread per usable core",
    )
    openvino_precision: str = _option(
        "f32", "how provider openvino computes what a file has in float32; bf16 needs a CPU with it", ("f32", "bf16")
    )
    gpu_devices: str = _option(
        "", "GPUs that every model runs on, CUDA's numbers separated by commas; empty is the first"
    )
    gpu_plan: str = _option(
        "auto",
        "how models run on a GPU, words separated by commas: nchw or nhwc, heuristic or exhaustive, pageable or "
        "pinned, plain, overlap, graphs or overlapped-graphs; what is not said is chosen by measurement at the warm-up",
    )
    gpu_tuning_s: float = _option(
        30.0, "seconds after which the warm-up of a model tries no further way to run it on a GPU"
    )
    gpu_tf32: bool = _option(
        False,
        "let GPUs round the factors of float32 convolutions to 10 bits: faster, and the third digit of answers may "
        "differ from a CPU's",
    )
    gpu_mem_limit_bytes: int = _option(
        0, "most GPU memory that ONNX Runtime takes for one session's weights and activations; 0 is no limit"
    )
    engine_cache: str = _option("", "folder where TensorRT's engines are kept; provider tensorrt needs it")
    decode_threads: int = _option(0, "threads that decode and resize pictures, at most 1024; 0 is one per usable core")
    access_file: str = _option(
        "",
        "TOML file of the clients that may call, by their tokens or certificates, with rights, models and rates; read "
        "again as it changes; empty: everybody may do everything",
    )
    max_connections: int = _option(
        4096, "most gRPC connections at once, more are closed; 0 is no limit; of transport grpcio only"
    )
    max_streams_per_connection: int = _option(
        1024, "most calls under way on one gRPC connection; others wait at the caller"
    )
    max_metadata_bytes: int = _option(16 * KIB, "most metadata of one gRPC call")
    connection_idle_s: float = _option(
        3600.0, "seconds after which a gRPC connection without calls is closed; 0 is never; of transport grpcio only"
    )
    connection_age_s: float = _option(
        0.0,
        "seconds after which a gRPC connection takes no new calls, so that callers spread over new replicas; 0 is "
        "never; of transport grpcio only",
    )
    max_request_bytes: int = _option(64 * MIB, "largest gRPC message or REST body accepted")
    max_reply_bytes: int = _option(
        64 * MIB,
        "most bytes of maps, or of outputs over the Open Inference Protocol, in one reply; a larger one is refused",
    )
    max_image_bytes: int = _option(32 * MIB, "largest encoded picture accepted")
    max_image_pixels: int = _option(64_000_000, "most pixels (height x width) of one picture")
    max_images_per_request: int = _option(1024, "most pictures in one request")
    max_pending_images: int = _option(
        4096,
        "most pictures accepted and not yet answered, one client's requests at most half of them; more are refused",
    )
    max_pending_bytes: int = _option(
        512 * MIB,
        "most bytes of pictures accepted and not yet answered, shared likewise, and of REST bodies; more are refused",
    )
    default_timeout_s: float = _option(60.0, "deadline for calls that bring none")
    drain_delay_s: float = _option(0.0, "on SIGTERM, seconds between turning unready and refusing new calls")
    drain_timeout_s: float = _option(30.0, "on SIGTERM, most seconds spent on finishing accepted calls")
    exit_on_error: bool = _option(
        True, "stop at start when no version of a model can be served, instead of serving the others"
    )
    log_level: str = _option("info", "least severity that is logged", ("debug", "info", "warning", "error"))
    otel_endpoint: str = _option(
        "", "OTLP collector of traces (gRPC), http://HOST:4317 or https://HOST:4317; empty: none; needs the extra otel"
    )
    log_format: str = _option("text", "one line of text or one JSON object per event", ("text", "json"))

    def __post_init__(self) -> None:
        if not self.model_repository:
            raise ConfigError("model_repository is required (--model-repository DIR)")
        for name in ("grpc_address", "http_address"):
            split_address(name, getattr(self, name))
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            choices = option.metadata["choices"]
            if choices and value not in choices:
                raise ConfigError(f"{option.name} must be one of {', '.join(choices)}, got {value!r}")
            if isinstance(value, int | float) and not value >= 0:  # so that NaN is refused too
                raise ConfigError(f"{option.name} must not be negative, got {value}")
        for name in ("workers", "decode_threads", "transport_processes"):
            if getattr(self, name) > MOST_THREADS:
                raise ConfigError(f"{name} must be at most {MOST_THREADS}, got {getattr(self, name)}")
        for name in ("max_request_bytes", "max_streams_per_connection", "max_metadata_bytes",
                     "max_reply_bytes", "max_image_bytes", "max_image_pixels",
                     "max_images_per_request", "max_pending_images", "max_pending_bytes", "default_timeout_s",
                     "repository_poll_s", "transport_processes"):  # fmt: skip
            if not getattr(self, name):
                raise ConfigError(f"{name} must be positive")
        if self.provider == "tensorrt" and not self.engine_cache:
            raise ConfigError("provider tensorrt needs engine_cache: building its engines anew takes minutes a start")
        _ = self.gpu
        if self.otel_endpoint and not re.fullmatch(r"https?://[^/\s]+", self.otel_endpoint):
            raise ConfigError(
                f"otel_endpoint must be http://HOST:PORT or https://HOST:PORT, got {self.otel_endpoint!r}"
            )
        told = placement.parsed(self.placement)
        if told and told.workers * told.threads > MOST_THREADS:
            raise ConfigError(f"placement may have at most {MOST_THREADS} threads, got {self.placement}")
        if self.workers and self.placement != placement.AUTO:
            raise ConfigError(f"placement {self.placement} says how many workers; leave workers at 0")
        if self.openvino_precision != "f32" and self.provider != "openvino":
            raise ConfigError("openvino_precision needs provider openvino")
        if self.rest and self.transport_processes > 1:
            raise ConfigError("rest is served by one process; leave transport_processes at 1")
        self._check_tls()
        if self.load_models and self.model_control_mode != "explicit":
            raise ConfigError("load_models needs model_control_mode explicit; the other modes load every model")

    def _check_tls(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigError("tls_certificate and tls_key go together; one is missing")
        for name in ("tls_client_ca", "http_tls"):
            if getattr(self, name) and not self.tls_certificate:
                raise ConfigError(f"{name} needs tls_certificate and tls_key")
        if self.tls_certificate and self.transport == "native":
            raise ConfigError("transport native cannot speak TLS; leave transport at grpcio")

    @property
    def gpu(self) -> GpuOptions:
        """What it says of GPUs."""
        return GpuOptions(
            parse_devices(self.gpu_devices),
            parse_plan(self.gpu_plan),
            self.gpu_tuning_s,
            self.gpu_tf32,
            self.gpu_mem_limit_bytes,
            Path(self.engine_cache) if self.engine_cache else None,
        )


def split_address(field_name: str, address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; brackets around an IPv6 host are kept off. Raises `ConfigError`."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", address)
    if not match or int(match[3]) > 65535:
        raise ConfigError(f"{field_name} must be HOST:PORT, got {address!r}")
    return match[1] or match[2], int(match[3])


def joined_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 host; what `split_address` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field, and `--config FILE`."""
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file with any of the options below, by their names with _"
    )
    for option in dataclasses.fields(ServeConfig):
        flag = "--" + option.name.replace("_", "-")
        text: str = option.metadata["help"] + (f" (default: {shown(option.default)})" if option.default != "" else "")
        if isinstance(option.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = option.metadata["choices"] or None
            metavar = None if choices else "N" if isinstance(option.default, int | float) else "VALUE"
            parser.add_argument(flag, type=type(option.default), choices=choices, metavar=metavar, help=text)


def load(args: argparse.Namespace, environ: Mapping[str, str]) -> ServeConfig:
    """The configuration from parsed flags, the environment and the file that `--config` or ATTNSERVE_CONFIG names."""
    values: dict[str, Any] = {}
    file = args.config or environ.get("ATTNSERVE_CONFIG")
    if file:
        values.update(_from_file(Path(file)))
    for option in dataclasses.fields(ServeConfig):
        text = environ.get(f"ATTNSERVE_{option.name.upper()}")
        if text is not None:
            values[option.name] = _parsed(option, text, f"ATTNSERVE_{option.name.upper()}")
        flag = getattr(args, option.name)
        if flag is not None:
            values[option.name] = flag
    return ServeConfig(**values)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config file {path}: {error}") from error
    options = {option.name: option for option in dataclasses.fields(ServeConfig)}
    for name, value in values.items():
        if name not in options:
            raise ConfigError(f"config file {path}: unknown option {name!r}")
        wanted = type(options[name].default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ConfigError(f"config file {path}: {name} must be a {wanted.__name__}, got {value!r}")
    return values


def _parsed(option: dataclasses.Field[Any], text: str, source: str) -> Any:
    if isinstance(option.default, bool):
        if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
            raise ConfigError(f"{source} must be true or false, got {text!r}")
        return text.lower() in ("1", "true", "yes")
    wanted: type[Any] = type(option.default)
    try:
        return wanted(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def shown(default: Any) -> str:
    """A default as the documentation writes it."""
    return str(default).lower() if isinstance(default, bool) else str(default)
