"""The loader on a committed model: what it makes, and what it refuses for want of memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from attnserve import model_config
from attnserve.errors import ConfigError, DoesNotFit
from attnserve.loading import Loader

FOLDER = Path(__file__).parents[2] / "model_repo" / "fashion-mnist-bam"
FILE_BYTES = (FOLDER / "1" / "model.onnx").stat().st_size
NEEDED = FILE_BYTES + 28 * 28 * 64 * 256  # its file, and a guess at the activations


@pytest.fixture
def config():
    return model_config.read(FOLDER)[0]


@pytest.fixture
def load(ears, config):
    """Loads the model with that much memory available, and closes it after the test."""
    made = []

    def run(room=None, previous=None, reserve=0, folder=FOLDER, version="1"):
        loader = Loader(provider="cpu", workers=1, listener=ears, reserve_bytes=reserve, available_bytes=lambda: room)
        made.append(loader.load(folder, version, config, previous))
        return made[-1]

    yield run
    for model in made:
        model.scheduler.close()


def test_a_loaded_model_knows_its_files_and_what_it_took(load):
    model = load()
    assert model.key == ("fashion-mnist-bam", "1")
    assert model.file_bytes == FILE_BYTES
    assert model.memory_bytes >= FILE_BYTES
    assert model.output_bytes["probabilities"] == 4 * 10
    assert model.output_bytes["features"] == 4 * 128 * 2 * 2


def test_what_just_fits_is_loaded_and_a_byte_less_is_refused(load):
    load(NEEDED)
    load(NEEDED + 10, reserve=10)
    for room, reserve in ((NEEDED - 1, 0), (NEEDED + 9, 10)):
        with pytest.raises(DoesNotFit, match=r"model\.onnx: loading needs about \d+ MiB of memory"):
            load(room, reserve=reserve)


def test_what_another_version_took_beyond_its_file_stands_for_the_activations(load, config):
    previous = dataclasses.replace(load(), file_bytes=1000, memory_bytes=50_001_000)
    load(FILE_BYTES + 50_000_000, previous)
    with pytest.raises(DoesNotFit):
        load(FILE_BYTES + 49_999_999, previous)
    config.max_batch_size = 32  # the other version ran other batches, so its figure says nothing
    other = dataclasses.replace(previous.files, config=type(config)(max_batch_size=64))
    load(FILE_BYTES + 49_999_999, dataclasses.replace(previous, files=other))


def test_a_version_without_a_model_is_refused_by_name(load):
    with pytest.raises(ConfigError, match=r"7/model\.onnx: "):
        load(version="7")
