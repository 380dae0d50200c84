"""The entry point: commands, their help, and what becomes an exit code."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from importlib.metadata import version

import pytest

from attnserve.cli import COMMANDS, build_parser, main
from attnserve.commands.evaluate import time_left
from attnserve.errors import ConfigError, Unavailable


@pytest.fixture
def stage(monkeypatch):
    """Puts a puppet in the place of the command `serve`."""

    def put(run, configure=lambda parser: parser.add_argument("--flag")) -> None:
        puppet = types.ModuleType("attnserve.commands.serve")
        puppet.run, puppet.configure = run, configure
        monkeypatch.setitem(sys.modules, "attnserve.commands.serve", puppet)

    return put


def raising(error: BaseException):
    def run(args: argparse.Namespace) -> int:  # noqa: ARG001
        raise error

    return run


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_command_s_exit_code_is_ours(stage, code):
    stage(lambda args: code if args.flag == "x" else 99)
    assert main(["serve", "--flag", "x"]) == code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("workers must not be negative"), 1, "attnserve serve: workers must not be negative"),
        (Unavailable("no server at localhost:8001"), 1, "attnserve serve: no server at localhost:8001"),
        (KeyboardInterrupt(), 130, "attnserve serve: interrupted"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1,
         "attnserve serve: needs the package 'torch'; see the extras in the README"),
    ],
)  # fmt: skip
def test_a_known_failure_is_one_line_and_an_exit_code(stage, capsys, error, code, line):
    stage(raising(error))
    assert main(["serve"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line + "\n")


def test_an_unknown_failure_is_not_hidden(stage):
    stage(raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        main(["serve"])


@pytest.mark.parametrize(
    "arguments", [[], ["bake"], ["serve", "--no-such-flag"], ["serve", "--workers", "many"], ["--flag"]]
)
def test_wrong_usage_is_exit_code_2_and_says_how(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: attnserve" in capsys.readouterr().err


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"attnserve {version('attnserve')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_module_that_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: attnserve {command}" in capsys.readouterr().out


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for command, summary in COMMANDS.items():
        assert f"{command} {summary}" in text


def test_only_the_chosen_command_is_loaded(stage):
    loaded = []
    stage(lambda _: 0, configure=lambda _: loaded.append("serve"))
    build_parser(only="models" if importlib.util.find_spec("attnserve.commands.models") else "export")
    assert loaded == []
    build_parser(only="serve")
    assert loaded == ["serve"]


def test_serve_without_a_repository_is_a_failure_that_names_the_flag(monkeypatch, capsys):
    monkeypatch.delenv("ATTNSERVE_MODEL_REPOSITORY", raising=False)
    monkeypatch.delenv("ATTNSERVE_CONFIG", raising=False)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "attnserve serve: model_repository is required (--model-repository DIR)\n"


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed here")
def test_a_command_whose_extra_is_missing_names_the_package(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    arguments = ["export", str(tmp_path / "checkpoint.pt"), "--model-repository", str(tmp_path), "--name", "net"]
    assert main(arguments) == 1
    assert "needs the package 'torch'" in capsys.readouterr().err


def test_the_time_left_is_in_seconds_until_minutes_say_something():
    assert [time_left(seconds) for seconds in (0.4, 28.6, 119, 120, 5400)] == [
        "0 s",
        "29 s",
        "119 s",
        "2 min",
        "90 min",
    ]


def test_a_layer_list_without_a_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["evaluate", "photos", "--layer", " ,"])
    assert "--layer: must be names with commas between them" in capsys.readouterr().err
