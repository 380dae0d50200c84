"""One validated configuration: flags before environment before file before default."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from attnserve.config import ServeConfig, add_arguments, load, shown, split_address
from attnserve.errors import ConfigError


def loaded(*flags: str, **environ: str) -> ServeConfig:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return load(parser.parse_args(flags), environ)


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "attnserve.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_the_repository_is_all_that_must_be_given():
    assert loaded("--model-repository", "models") == ServeConfig(model_repository="models")


def test_flags_come_before_environment_before_file_before_default(file):
    path = file('model_repository = "from file"\nworkers = 1\ndecode_threads = 1\nmax_image_bytes = 1')
    config = loaded(
        "--config", path, "--workers", "3", ATTNSERVE_WORKERS="2", ATTNSERVE_DECODE_THREADS="2", ATTNSERVE_CONFIG="no"
    )
    assert (config.workers, config.decode_threads, config.max_image_bytes) == (3, 2, 1)
    assert config.model_repository == "from file"
    assert config.max_image_pixels == 64_000_000


def test_a_flag_that_says_the_default_still_comes_first():
    assert loaded("--model-repository", "m", "--workers", "0", ATTNSERVE_WORKERS="5").workers == 0
    assert loaded("--model-repository", "m", "--no-exit-on-error", ATTNSERVE_EXIT_ON_ERROR="1").exit_on_error is False


def test_the_environment_may_name_the_file(file):
    assert loaded(ATTNSERVE_CONFIG=file('model_repository = "models"')).model_repository == "models"


@pytest.mark.parametrize("option", dataclasses.fields(ServeConfig), ids=lambda option: option.name)
def test_every_option_can_be_given_in_every_place(option, file):
    value = {
        "model_repository": "models",
        "grpc_address": "127.0.0.1:1",
        "http_address": "127.0.0.1:2",
        "provider": "cuda",
        "placement": "2x4",
        "openvino_precision": "bf16",
        "gpu_devices": "0,2",
        "gpu_plan": "graphs,nhwc",
        "gpu_tf32": True,
        "rest": True,
        "engine_cache": "engines",
        "access_file": "access.toml",
        "model_signers": "signers.pem",
        "otel_endpoint": "https://collector:4317",
        "log_level": "error",
        "log_format": "json",
        "model_control_mode": "poll",
        "transport": "native",
        "load_models": "net,other",
        "exit_on_error": False,
        "keep_previous": False,
        "tls_certificate": "server.crt",
        "tls_key": "server.key",
        "tls_client_ca": "ca.crt",
        "http_tls": True,
    }.get(option.name, 7)
    must = [] if option.name == "model_repository" else ["--model-repository", "models"]
    must += ["--model-control-mode", "explicit"] if option.name == "load_models" else []
    pair = {"--tls-certificate": "server.crt", "--tls-key": "server.key"}
    if option.name in ("tls_certificate", "tls_key", "tls_client_ca", "http_tls"):
        must += [part for each in pair.items() if each[0][2:].replace("-", "_") != option.name for part in each]
    must += ["--provider", "openvino"] if option.name == "openvino_precision" else []
    flag = "--" + option.name.replace("_", "-")
    flags = {True: [flag], False: [flag.replace("--", "--no-", 1)]}.get(value, [flag, str(value)])
    by_flag = loaded(*must, *flags)
    by_environment = loaded(*must, **{f"ATTNSERVE_{option.name.upper()}": str(value)})
    written = f'"{value}"' if isinstance(value, str) else str(value).lower()
    by_file = loaded(*must, "--config", file(f"{option.name} = {written}"))
    assert getattr(by_flag, option.name) == value
    assert by_flag == by_environment == by_file


@pytest.mark.parametrize("text", ["1", "true", "True", "YES"])
def test_a_switch_in_the_environment_is_on(text):
    assert loaded("--model-repository", "m", ATTNSERVE_EXIT_ON_ERROR=text).exit_on_error is True


@pytest.mark.parametrize("text", ["0", "false", "FALSE", "no"])
def test_a_switch_in_the_environment_is_off(text):
    assert loaded("--model-repository", "m", ATTNSERVE_EXIT_ON_ERROR=text).exit_on_error is False


@pytest.mark.parametrize("text", ["", "2", "on", "maybe"])
def test_a_switch_in_the_environment_that_says_neither_is_refused(text):
    with pytest.raises(ConfigError, match=f"ATTNSERVE_EXIT_ON_ERROR must be true or false, got '{text}'"):
        loaded("--model-repository", "m", ATTNSERVE_EXIT_ON_ERROR=text)


@pytest.mark.parametrize(
    ("name", "text"), [("WORKERS", "many"), ("WORKERS", "1.5"), ("WORKERS", ""), ("DEFAULT_TIMEOUT_S", "1s")]
)
def test_a_number_in_the_environment_that_is_none_is_refused_by_its_name(name, text):
    with pytest.raises(ConfigError, match=f"ATTNSERVE_{name}: "):
        loaded("--model-repository", "m", **{f"ATTNSERVE_{name}": text})


@pytest.mark.parametrize("text", ["workres = 2", 'config = "other.toml"', "[server]\nworkers = 2"])
def test_an_unknown_option_in_the_file_is_refused(file, text):
    with pytest.raises(ConfigError, match=r"attnserve\.toml: unknown option '(workres|config|server)'"):
        loaded("--model-repository", "m", "--config", file(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('workers = "2"', "workers must be a int, got '2'"),
        ("workers = 2.0", "workers must be a int, got 2.0"),
        ("workers = true", "workers must be a int, got True"),
        ("exit_on_error = 1", "exit_on_error must be a bool, got 1"),
        ('exit_on_error = "yes"', "exit_on_error must be a bool, got 'yes'"),
        ("grpc_address = 8001", "grpc_address must be a str, got 8001"),
        ("default_timeout_s = true", "default_timeout_s must be a float, got True"),
        ("workers = [1]", r"workers must be a int, got \[1\]"),
    ],
)
def test_a_value_of_another_type_in_the_file_is_refused(file, text, message):
    with pytest.raises(ConfigError, match=message):
        loaded("--model-repository", "m", "--config", file(text))


def test_a_whole_number_of_seconds_in_the_file_is_a_number(file):
    assert loaded("--model-repository", "m", "--config", file("default_timeout_s = 5")).default_timeout_s == 5.0


@pytest.mark.parametrize("text", ["workers = ", "workers", "a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_refused_by_its_name(file, text):
    with pytest.raises(ConfigError, match=r"config file .*attnserve\.toml: "):
        loaded("--model-repository", "m", "--config", file(text))


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"config file .*none\.toml: "):
        loaded("--config", str(tmp_path / "none.toml"))


def test_a_file_that_is_no_text_is_refused_by_its_name(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"config file .*binary\.toml: "):
        loaded("--config", str(path))


POSITIVE = [
    "max_request_bytes",
    "max_streams_per_connection",
    "max_metadata_bytes",
    "max_image_bytes",
    "max_image_pixels",
    "max_images_per_request",
    "max_pending_images",
    "max_pending_bytes",
    "default_timeout_s",
]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_repository": ""}, "model_repository is required (--model-repository DIR)"),
        ({"grpc_address": "8001"}, "grpc_address must be HOST:PORT, got '8001'"),
        ({"grpc_address": ":8001"}, "grpc_address must be HOST:PORT, got ':8001'"),
        ({"http_address": "localhost"}, "http_address must be HOST:PORT, got 'localhost'"),
        ({"http_address": "localhost:"}, "http_address must be HOST:PORT, got 'localhost:'"),
        ({"http_address": "localhost:http"}, "http_address must be HOST:PORT, got 'localhost:http'"),
        ({"http_address": "localhost:-1"}, "http_address must be HOST:PORT, got 'localhost:-1'"),
        ({"http_address": "localhost:65536"}, "http_address must be HOST:PORT, got 'localhost:65536'"),
        ({"placement": "fast"}, "placement must be auto, throughput, latency or WORKERSxTHREADS (4x2), got 'fast'"),
        ({"placement": "33x32"}, "placement may have at most 1024 threads, got 33x32"),
        ({"placement": "2x2", "workers": 2}, "placement 2x2 says how many workers; leave workers at 0"),
        ({"openvino_precision": "bf16", "provider": "cpu"}, "openvino_precision needs provider openvino"),
        ({"provider": "tpu"}, "provider must be one of auto, cpu, openvino, cuda, tensorrt, got 'tpu'"),
        ({"log_level": "loud"}, "log_level must be one of debug, info, warning, error, got 'loud'"),
        (
            {"otel_endpoint": "host:4317"},
            "otel_endpoint must be http://HOST:PORT or https://HOST:PORT, got 'host:4317'",
        ),
        ({"log_format": "xml"}, "log_format must be one of text, json, got 'xml'"),
        (
            {"provider": "tensorrt"},
            "provider tensorrt needs engine_cache: building its engines anew takes minutes a start",
        ),
        (
            {"gpu_plan": "fast"},
            "gpu_plan: 'fast' is not auto and none of nchw, nhwc, heuristic, exhaustive, pageable, "
            "pinned, plain, overlap, graphs, overlapped-graphs",
        ),
        ({"gpu_plan": "graphs,overlap"}, "gpu_plan: graphs and overlap exclude each other"),
        ({"tls_key": "server.key"}, "tls_certificate and tls_key go together; one is missing"),
        ({"tls_client_ca": "ca.crt"}, "tls_client_ca needs tls_certificate and tls_key"),
        ({"http_tls": True}, "http_tls needs tls_certificate and tls_key"),
        (
            {"tls_certificate": "server.crt", "tls_key": "server.key", "transport": "native"},
            "transport native cannot speak TLS; leave transport at grpcio",
        ),
        ({"gpu_devices": "0,0"}, "gpu_devices must be different numbers separated by commas, got '0,0'"),
        ({"gpu_devices": "a"}, "gpu_devices must be different numbers separated by commas, got 'a'"),
        (
            {"rest": True, "transport_processes": 2},
            "rest is served by one process; leave transport_processes at 1",
        ),
        ({"workers": -1}, "workers must not be negative, got -1"),
        ({"workers": 1025}, "workers must be at most 1024, got 1025"),
        ({"decode_threads": 100_000}, "decode_threads must be at most 1024, got 100000"),
        ({"drain_timeout_s": -0.5}, "drain_timeout_s must not be negative, got -0.5"),
        *[({name: 0}, f"{name} must be positive") for name in POSITIVE],
        *[({name: -1}, f"{name} must not be negative, got -1") for name in POSITIVE],
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(fields, message):
    with pytest.raises(ConfigError) as caught:
        ServeConfig(**{"model_repository": "models", **fields})
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["default_timeout_s", "drain_delay_s", "drain_timeout_s"])
def test_seconds_that_are_no_number_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        loaded("--model-repository", "m", f"--{name.replace('_', '-')}", "nan")


@pytest.mark.parametrize("flags", [["--workers", "many"], ["--provider", "tpu"], ["--log-format", "xml"]])
def test_a_wrong_flag_is_wrong_usage(flags):
    with pytest.raises(argparse.ArgumentError):
        loaded("--model-repository", "m", *flags)


def test_the_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServeConfig(model_repository="models").workers = 2


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("0.0.0.0:8001", "0.0.0.0", 8001),
        ("localhost:0", "localhost", 0),
        ("[::1]:8001", "::1", 8001),
        ("[::]:65535", "::", 65535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
    ],
)
def test_an_address_is_split_and_the_brackets_of_ipv6_are_kept_off(address, host, port):
    assert split_address("grpc_address", address) == (host, port)


@pytest.mark.parametrize("address", ["[]:80", "[::1:80", "::1]:80", "[::1]80", "::1"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="grpc_address must be HOST:PORT"):
        split_address("grpc_address", address)


def test_every_flag_shows_its_help_and_its_default():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for option in dataclasses.fields(ServeConfig):
        assert option.metadata["help"].split(";")[0] in text
        assert "--" + option.name.replace("_", "-") in text
    assert "(default: 0.0.0.0:8001)" in text
    assert "(default: true)" in text


@pytest.mark.parametrize(
    ("default", "text"), [(True, "true"), (False, "false"), (60.0, "60.0"), ("auto", "auto"), (0, "0")]
)
def test_defaults_are_shown_as_the_documentation_writes_them(default, text):
    assert shown(default) == text


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_models_to_load_are_named_only_where_not_all_are_loaded(mode):
    with pytest.raises(ConfigError, match="load_models needs model_control_mode explicit"):
        ServeConfig(model_repository="m", model_control_mode=mode, load_models="net")
    assert ServeConfig(model_repository="m", model_control_mode="explicit", load_models="*").load_models == "*"
