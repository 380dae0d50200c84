"""What makes the broken inputs: it leaves whole what it does not mean to break."""

from __future__ import annotations

import io
import random
import tarfile
import zlib

import pytest

import messages
import pictures
import seeds
import unpack_corpus

FILES = [data for data in seeds.pictures() if pictures.format_of(data)]


def cases(count: int = 200) -> list[random.Random]:
    return [random.Random(case) for case in range(count)]


@pytest.mark.parametrize("data", FILES[:19], ids=range(19))
def test_a_picture_taken_apart_is_put_together_again(data):
    format = pictures.format_of(data)
    assert format.join(format.split(data)) == data


def test_every_chunk_of_a_broken_png_has_its_checksum():
    whole = [data for data in FILES if data.startswith(pictures.PNG)]
    for rng in cases():
        data, at = pictures.mutated(rng, whole), len(pictures.PNG)
        while at < len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            assert zlib.crc32(data[at + 4 : end]).to_bytes(4, "big") == data[end : end + 4]
            at = end + 4
        assert at == len(data)


@pytest.mark.parametrize("whole", [seeds.tensors, seeds.requests, seeds.graphs, seeds.configs])
def test_a_broken_message_is_a_message_and_most_are_new(whole):
    whole = whole()
    mutator = messages.Mutator(whole, [])
    made = [mutator.message(rng) for rng in cases()]
    assert all(type(each).FromString(each.SerializeToString()).ByteSize() == each.ByteSize() for each in made)
    assert sum(each not in whole for each in made) > 150


def test_the_same_state_makes_the_same_case():
    mutator = messages.Mutator(seeds.requests(), [])
    assert [mutator.wire(rng) for rng in cases()] == [mutator.wire(rng) for rng in cases()]
    assert [pictures.mutated(rng, FILES) for rng in cases()] == [pictures.mutated(rng, FILES) for rng in cases()]


def test_only_the_pictures_are_taken_out_of_a_source_distribution(tmp_path):
    with tarfile.open(tmp_path / "pillow-1.tar.gz", "w:gz") as archive:
        for name in ("Tests/images/a.png", "Tests/images/deep/b.jpg", "Tests/test_image.py", "src/images/c.png"):
            archive.addfile(tarfile.TarInfo(f"pillow-1/{name}"), io.BytesIO())
    assert unpack_corpus.unpack(tmp_path / "pillow-1.tar.gz", tmp_path / "images") == 2
    found = sorted(str(path.relative_to(tmp_path / "images")) for path in (tmp_path / "images").rglob("*.*"))
    assert found == ["a.png", "deep/b.jpg"]
