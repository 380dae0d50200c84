"""The model repository on disk: which versions are served, and that their files are what the card says."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest
from google.protobuf import text_format

from attnserve.card import Preprocessing, sha256_of
from attnserve.errors import ConfigError
from attnserve.inference import model_config_pb2 as pb
from attnserve.repository import chosen_versions, found_in, look_at, look_at_model, read_version, warn_of_strays

SMALLEST_MODEL = b"\x08\x0a\x3a\x03\x12\x01g\x42\x02\x10\x14"  # what write_entry writes


@pytest.fixture
def config(config_text):
    return text_format.Parse(config_text, pb.ModelConfig())


def refusal(folder, config, version="1") -> str:
    with pytest.raises(ConfigError) as caught:
        read_version(folder, version, config)
    return str(caught.value)


def test_a_version_is_read_with_its_card_and_labels(write_entry, config):
    files = read_version(write_entry(), "1", config)
    assert files.key == ("net", "1")
    assert files.model_path.read_bytes() == SMALLEST_MODEL
    assert files.labels == files.card.labels == ("cat", "dog")
    assert files.config is config


def test_models_are_found_by_name_and_hidden_folders_and_files_are_not(tmp_path):
    for name in ("zebra/1", "ant/1", ".git/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README.md").write_text("no model")
    assert list(look_at(tmp_path)) == ["ant", "zebra"]


def test_a_folder_with_neither_config_nor_version_is_no_model_and_is_named(tmp_path, caplog):
    """A volume of its own has lost+found."""
    for name in ("lost+found", "only-a-version/3"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "only-a-config").mkdir()
    (tmp_path / "only-a-config" / "config.pbtxt").write_text("")
    assert list(look_at(tmp_path)) == ["only-a-config", "only-a-version"]
    warn_of_strays(tmp_path)
    assert [record.args[0].name for record in caplog.records] == ["lost+found"]


def test_a_repository_that_is_no_folder_is_refused(tmp_path):
    assert look_at(tmp_path) == {}
    (tmp_path / "file").write_text("")
    for name in ("none", "file"):
        with pytest.raises(ConfigError, match=f"model repository .*{name} cannot be read"):
            look_at(tmp_path / name)


def test_a_look_changes_with_the_files_of_the_model_and_with_nothing_else(write_entry):
    folder = write_entry()
    first = look_at_model(folder)
    assert first == look_at_model(folder)
    assert [name for name, _, _ in first.versions["1"]] == ["model.json", "model.onnx"]
    (folder / ".config.pbtxt.swp").write_text("an editor's")
    (folder / "1" / ".DS_Store").write_text("a file manager's")
    assert look_at_model(folder) == first
    (folder / "1" / "explain").mkdir()
    (folder / "1" / "explain" / "last.onnx").write_bytes(b"")
    deeper = look_at_model(folder)
    assert deeper != first
    os.utime(folder / "1" / "model.onnx", ns=(1, 1))
    assert look_at_model(folder) != deeper


def test_a_mark_changes_with_what_the_answers_depend_on_and_not_with_the_version_policy(write_entry, config):
    folder = write_entry()
    write_entry_files = look_at_model(folder)

    def mark(look=write_entry_files, **changes):
        changed = pb.ModelConfig()
        changed.CopyFrom(config)
        for name, value in changes.items():
            getattr(changed, name).MergeFrom(value) if name == "version_policy" else setattr(changed, name, value)
        return found_in(folder, look, changed).marks["1"]

    assert mark(version_policy=policy("all { }")) == mark()
    assert mark(max_batch_size=4) != mark()
    (folder / "notes.txt").write_text("nobody reads this")
    assert mark(look_at_model(folder)) == mark()
    os.utime(folder / "labels.txt", ns=(1, 1))
    assert mark(look_at_model(folder)) != mark()


def policy(text: str) -> pb.ModelVersionPolicy:
    return text_format.Parse(text, pb.ModelVersionPolicy())


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", ["10"]),
        ("latest { }", ["10"]),
        ("latest { num_versions: 0 }", ["10"]),
        ("latest { num_versions: 1 }", ["10"]),
        ("latest { num_versions: 2 }", ["9", "10"]),
        ("latest { num_versions: 99 }", ["1", "2", "9", "10"]),
        ("all { }", ["1", "2", "9", "10"]),
        ("specific { versions: [ 9, 2 ] }", ["2", "9"]),
        ("specific { versions: 1 }", ["1"]),
        ("specific { versions: [ 2, 2 ] }", ["2"]),
    ],
)
def test_the_policy_chooses_versions_as_numbers_oldest_first(text, chosen):
    assert chosen_versions(Path("net"), ["10", "9", "2", "1"], policy(text)) == chosen


@pytest.mark.parametrize("text", ["specific { versions: [ 1, 3, 4 ] }", "specific { versions: [ 3, 1, 4 ] }"])
def test_a_specific_version_that_is_missing_is_refused(text):
    with pytest.raises(ConfigError, match="version_policy asks for 3, 4, which is not there"):
        chosen_versions(Path("net"), ["1", "2"], policy(text))


@pytest.mark.parametrize("text", ["", "all { }", "latest { num_versions: 2 }", "specific { }"])
def test_a_model_without_a_version_is_refused(text):
    with pytest.raises(ConfigError, match="no version to serve"):
        chosen_versions(Path("net"), [], policy(text))


@pytest.mark.parametrize("name", ["01", "1.5", "v2", "-2", "+2", "2 ", "٢", "²", "0x2", "1_0", "2e1"])
def test_a_folder_that_is_no_plain_decimal_is_no_version(tmp_path, name):
    for version in ("1", name):
        (tmp_path / version).mkdir()
    assert list(look_at_model(tmp_path).versions) == ["1"]


def test_a_file_is_no_version(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").write_text("")
    assert list(look_at_model(tmp_path).versions) == ["1"]


def test_a_changed_model_is_refused(write_entry, config):
    folder = write_entry()
    (folder / "1" / "model.onnx").write_bytes(b"tampered with")
    message = refusal(folder, config)
    assert "model.onnx: SHA-256 is " in message
    assert message.endswith(f"the card says {hashlib.sha256(SMALLEST_MODEL).hexdigest()}")


def test_every_file_of_the_card_is_checked_in_subfolders_too(write_entry, config):
    folder = write_entry()
    (folder / "1" / "explain").mkdir()
    extra = folder / "1" / "explain" / "last.onnx"
    extra.write_bytes(b"gradients")
    digests = {"model.onnx": sha256_of(folder / "1" / "model.onnx"), "explain/last.onnx": sha256_of(extra)}
    card = dataclasses.replace(read_version(folder, "1", config).card, files=digests)
    (folder / "1" / "model.json").write_text(card.to_json())
    assert read_version(folder, "1", config).card.files == digests
    extra.write_bytes(b"other gradients")
    assert "explain/last.onnx: SHA-256 is" in refusal(folder, config)


@pytest.mark.parametrize("digest", ["", "0" * 64, "E3B0", None, 5])
def test_a_digest_that_is_none_is_refused(write_entry, config, digest):
    assert "SHA-256 is" in refusal(write_entry(files={"model.onnx": digest}), config)


def test_a_version_of_another_model_is_refused_by_both_names(write_entry, config):
    folder = write_entry()
    renamed = folder.rename(folder.parent / "other")
    assert refusal(renamed, config).endswith("other/1/model.json: name 'net' is not the folder's, 'other'")


@pytest.mark.parametrize("files", [{}, {"labels.txt": "0" * 64}, {"Model.onnx": "0" * 64}])
def test_a_card_that_names_no_digest_of_the_model_is_refused(write_entry, config, files):
    assert refusal(write_entry(files=files), config).endswith("names no SHA-256 for model.onnx")


@pytest.mark.parametrize("files", [["model.onnx"], []])
def test_a_card_whose_files_are_no_table_is_refused(write_entry, config, files):
    assert "files must map paths" in refusal(write_entry(files=files), config)


@pytest.mark.parametrize("name", ["../labels.txt", "../../../../etc/passwd", "/etc/passwd", "x/../../labels.txt", ".."])
def test_a_card_that_names_a_file_outside_its_folder_is_refused_before_the_file_is_read(write_entry, config, name):
    folder = write_entry()
    card = read_version(folder, "1", config).card
    outside = dataclasses.replace(card, files={**card.files, name: "0" * 64})
    (folder / "1" / "model.json").write_text(outside.to_json())
    assert refusal(folder, config).endswith(f"file {name!r} lies outside the version's folder")


def test_a_link_that_leads_outside_is_refused(write_entry, config, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(SMALLEST_MODEL)  # even one of the right digest
    folder = write_entry()
    (folder / "1" / "model.onnx").unlink()
    (folder / "1" / "model.onnx").symlink_to(secret)
    assert "file 'model.onnx' lies outside the version's folder" in refusal(folder, config)


def test_a_link_within_the_version_is_followed(write_entry, config):
    folder = write_entry()
    (folder / "1" / "model.onnx").rename(folder / "1" / "blob")
    (folder / "1" / "model.onnx").symlink_to("blob")
    assert read_version(folder, "1", config).model_path.read_bytes() == SMALLEST_MODEL


def test_a_version_that_is_itself_a_link_is_read(write_entry, config, tmp_path):
    """As Kubernetes mounts volumes."""
    folder = write_entry()
    (folder / "1").rename(tmp_path / "..data")
    (folder / "1").symlink_to(tmp_path / "..data")
    assert list(look_at_model(folder).versions) == ["1"]
    assert read_version(folder, "1", config).key == ("net", "1")


@pytest.mark.parametrize("name", ["1/model.json", "1/model.onnx", "labels.txt"])
def test_a_missing_file_is_refused_by_its_name(write_entry, config, name):
    folder = write_entry()
    (folder / name).unlink()
    assert f"net/{name}: " in refusal(folder, config)


@pytest.mark.parametrize("name", ["1/model.json", "1/model.onnx", "labels.txt"])
def test_a_folder_where_a_file_should_be_is_refused_by_its_name(write_entry, config, name):
    folder = write_entry()
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"net/{name}: " in refusal(folder, config)


def test_a_card_with_a_name_that_no_file_can_have_is_refused(write_entry, config):
    folder = write_entry()
    card = read_version(folder, "1", config).card
    impossible = dataclasses.replace(card, files={**card.files, "a\0b": "0" * 64})
    (folder / "1" / "model.json").write_text(impossible.to_json())
    assert "model.json" in refusal(folder, config)


def test_a_broken_card_is_refused_by_its_name(write_entry, config):
    folder = write_entry()
    (folder / "1" / "model.json").write_text("{")
    assert "net/1/model.json: card: " in refusal(folder, config)


@pytest.mark.parametrize(
    "labels", ["cat\n", "cat\ndog\neel\n", "dog\ncat\n", "cat\ndog\n\n", "", "Cat\ndog\n", "cat\ndog \n"]
)
def test_labels_that_differ_from_the_card_s_are_refused(write_entry, config, labels):
    assert "differ from the card's 2" in refusal(write_entry(labels=labels), config)


@pytest.mark.parametrize("labels", ["cat\ndog", "cat\ndog\n", "cat\r\ndog\r\n"])
def test_labels_may_end_as_files_do(write_entry, config, labels):
    folder = write_entry()
    (folder / "labels.txt").write_bytes(labels.encode())
    assert read_version(folder, "1", config).labels == ("cat", "dog")


def test_a_label_may_hold_what_unicode_calls_the_end_of_a_line(write_entry, config):
    folder = write_entry()
    card = read_version(folder, "1", config).card
    (folder / "labels.txt").write_text("a\u2028b\nc d\n", encoding="utf-8")
    odd = dataclasses.replace(card, labels=("a\u2028b", "c d"))
    (folder / "1" / "model.json").write_text(odd.to_json(), encoding="utf-8")
    assert read_version(folder, "1", config).labels == odd.labels


def test_another_label_file_is_read_where_the_config_names_one(write_entry, config):
    folder = write_entry()
    (folder / "labels.txt").rename(folder / "names.txt")
    config.output[0].label_filename = "names.txt"
    assert read_version(folder, "1", config).labels == ("cat", "dog")


def test_another_number_of_classes_in_the_config_is_refused(write_entry, config):
    config.output[0].dims[:] = [3]
    assert 'output "probabilities" has dims [3], labels 2' in refusal(write_entry(), config)


def test_another_view_in_the_config_is_refused(write_entry, config):
    message = refusal(write_entry(preprocessing=Preprocessing(3, 2)), config)
    assert message.endswith("the card's view is not the 2 x 3 of config.pbtxt")


@pytest.mark.parametrize(
    ("chosen", "fallback"),
    [
        ("", ("9", "2", "1")),
        ("latest { num_versions: 2 }", ("2", "1")),
        ("latest { num_versions: 9 }", ()),
        ("all { }", ()),
        ("specific { versions: [ 9 ] }", ()),
    ],
)
def test_older_versions_may_stand_in_where_the_policy_asks_for_the_newest(tmp_path, config, chosen, fallback):
    for version in ("1", "2", "9", "10"):
        (tmp_path / "net" / version).mkdir(parents=True)
    config.version_policy.CopyFrom(policy(chosen))
    found = found_in(tmp_path / "net", look_at_model(tmp_path / "net"), config)
    assert found.fallback == fallback


def test_links_that_lead_out_of_the_repository_are_refused(write_entry, config, tmp_path):
    folder = write_entry()
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    (folder / "1").rename(outside)
    (folder / "1").symlink_to(outside)
    assert refusal(folder, config) == f"{folder / '1'}: it lies outside the repository"


@pytest.mark.parametrize("name", ["../../labels.txt", "/etc/passwd"])
def test_a_label_file_outside_the_repository_is_refused_unread(write_entry, config, name):
    folder = write_entry()
    config.output[0].label_filename = name
    assert "it lies outside" in refusal(folder, config)


def test_a_label_file_with_a_name_that_no_file_can_have_is_refused(write_entry, config):
    config.output[0].label_filename = "labels\0.txt"
    assert "embedded null byte" in refusal(write_entry(), config)


def test_links_that_lead_in_a_circle_are_refused(write_entry, config):
    folder = write_entry()
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to("labels.txt")
    assert "labels.txt" in refusal(folder, config)


@pytest.mark.parametrize("name", ["1/model.json", "1/model.onnx", "labels.txt"])
def test_a_folder_in_place_of_a_file_is_not_held_open(write_entry, config, name):
    folder = write_entry()
    (folder / name).unlink()
    (folder / name).mkdir()
    before = os.listdir("/proc/self/fd")
    refusal(folder, config)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["1/model.json", "1/model.onnx", "labels.txt"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(write_entry, config, name):
    folder = write_entry()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"net/{name}: it is no file" in refusal(folder, config)


@pytest.mark.parametrize("name", ["1/model.json", "labels.txt"])
def test_no_more_than_a_bound_is_read_of_a_text(write_entry, config, name):
    folder = write_entry()
    os.truncate(folder / name, 1 << 40)  # takes no room on the disk
    assert "it is larger than" in refusal(folder, config)


def test_a_graph_that_leads_to_another_file_is_refused_though_its_digest_is_right(write_entry, config):
    """A tensor of one initializer whose data_location (field 14) is EXTERNAL."""
    elsewhere = b"\x08\x0a\x3a\x07\x12\x01g\x2a\x02\x70\x01\x42\x02\x10\x14"
    folder = write_entry()
    (folder / "1" / "model.onnx").write_bytes(elsewhere)
    card = folder / "1" / "model.json"
    before, after = (hashlib.sha256(data).hexdigest() for data in (SMALLEST_MODEL, elsewhere))
    card.write_text(card.read_text().replace(before, after))
    assert "whose data lies in another file" in refusal(folder, config)
