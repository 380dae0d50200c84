"""Reading and splitting labelled pictures: Fashion-MNIST's files and folders of class sub-folders."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnserve import datasets
from attnserve.card import Preprocessing
from attnserve.class_folders import classes_of
from attnserve.datasets import Pictures, SplitRule
from attnserve.errors import ConfigError

VIEW = Preprocessing(28, 28)


def write_fashion(folder: Path, part: str, count: int, compress: bool) -> None:
    pixels = (np.arange(count * 784) % 251).astype(np.uint8).tobytes()
    files = {
        f"{part}-images-idx3-ubyte": struct.pack(">IIII", 2051, count, 28, 28) + pixels,
        f"{part}-labels-idx1-ubyte": struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count)),
    }
    for name, data in files.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


def test_fashion_mnist_is_read_gzipped_or_not_and_grey_becomes_rgb(tmp_path: Path) -> None:
    write_fashion(tmp_path, "train", 12, compress=True)
    write_fashion(tmp_path, "t10k", 5, compress=False)
    dataset = datasets.load("fashion-mnist", tmp_path, "ignored", VIEW, None)
    assert dataset.train.images.shape == (12, 28, 28, 3)
    assert dataset.test.labels.tolist() == [0, 1, 2, 3, 4]
    grey = (np.arange(784) % 251).reshape(28, 28)
    for channel in range(3):
        assert (dataset.test.images[0, :, :, channel] == grey).all()
    assert dataset.licence.startswith("MIT")
    assert dataset.labels[9] == "Ankle boot"


def test_the_end_of_fashion_mnists_training_file_can_be_held_out_and_the_record_leads_back(tmp_path: Path) -> None:
    write_fashion(tmp_path, "train", 40, compress=True)
    write_fashion(tmp_path, "t10k", 5, compress=True)
    dataset = datasets.load("fashion-mnist", tmp_path, "", VIEW, SplitRule(validation=0.1))
    assert (len(dataset.train), dataset.validation.labels.tolist()) == (36, [6, 7, 8, 9])
    again = datasets.load("fashion-mnist", tmp_path, "", VIEW, datasets.recorded_rule(dataset.split))
    assert (again.validation.images == dataset.validation.images).all()
    whole = datasets.load("fashion-mnist", tmp_path, "", VIEW, None)
    assert (len(whole.train), len(whole.validation)) == (40, 0)
    assert len(datasets.load("fashion-mnist", tmp_path, "", VIEW, datasets.recorded_rule(whole.split)).train) == 40


@pytest.mark.parametrize("split", [{}, {"kind": "moon"}, {"kind": "random", "phase": 1}])
def test_a_record_that_names_no_split_is_refused(split: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="split"):
        datasets.recorded_rule(split)


def test_missing_fashion_mnist_names_the_debian_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="apt-get install dataset-fashion-mnist"):
        datasets.load_fashion_mnist(tmp_path, VIEW)


@pytest.mark.parametrize("test", [0.2, 0.201, 0.1999, 0.153, 0.247])  # so that some cuts fall within a person
def test_the_split_by_number_puts_no_person_on_both_sides(test: float) -> None:
    # Two hundred people, ten photos each with consecutive numbers, as in the sign language digits; some are missing.
    people = {1118 + 10 * person + photo: person for person in range(200) for photo in range(10)}
    numbers = [number for number in people if number % 37]
    parts = SplitRule("number", test=test, validation=0.1).parts([f"IMG_{n}.JPG" for n in numbers])
    seen = {part: {people[numbers[i]] for i in indices} for part, indices in parts.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert len(parts["test"]) == pytest.approx(test * len(numbers), abs=1)
    assert len(parts["train"]) > 0.6 * len(numbers)


def test_the_random_split_uses_every_picture_once() -> None:
    parts = SplitRule("random", test=0.25, validation=0.25, seed=3).parts(["x.png"] * 40)
    assert {part: len(indices) for part, indices in parts.items()} == {"test": 10, "validation": 10, "train": 20}
    assert sorted(index for indices in parts.values() for index in indices) == list(range(40))


def test_an_impossible_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no number in the file name 'hand\.jpg'"):
        SplitRule("number").parts(["hand.jpg", "IMG_2.jpg"])
    with pytest.raises(ConfigError, match="fractions"):
        SplitRule(test=0.7, validation=0.3)


def test_a_folder_gives_its_sub_folders_names_as_labels(tmp_path: Path) -> None:
    for label, colour in (("no", (200, 0, 0)), ("yes", (0, 200, 0))):
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 30), colour).save(tmp_path / "set" / label / f"{label}{i}.png")
        (tmp_path / "set" / label / "notes.txt").write_text("not a picture")
    dataset = datasets.load(str(tmp_path / "set"), None, "CC0", VIEW, SplitRule(seed=1))
    assert (dataset.name, dataset.licence, dataset.labels) == ("set", "CC0", ("no", "yes"))
    assert len(dataset.train) == 16
    for part in (dataset.train, dataset.test):
        assert (part.images[:, 0, 0, 1] == np.where(part.labels == 1, 200, 0)).all()
    assert SplitRule(**dataset.split) == SplitRule(seed=1)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for name in ("broken.jpg", "c.jpg", "d.jpg"):
            (tmp_path / label / name).write_bytes(b"not a jpeg")
    with pytest.raises(ConfigError, match=r"/[ab]/\w+\.jpg: "):
        datasets.load_folder(tmp_path, "", VIEW, SplitRule())
    with pytest.raises(ConfigError, match="sub-folder"):
        datasets.load_folder(tmp_path / "a", "", VIEW, SplitRule())


def test_broken_pictures_are_left_out_of_their_part_on_request_and_the_others_stay_in_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (28, 28), (10 * number, 0, 0)).save(folder / label / f"{number}.png")
    record = {"dataset": "photos", "split": {"kind": "random", "test": 0.3}}
    whole = datasets.held_out(str(folder), None, record, VIEW, ("a", "b")).test
    (folder / "a/1.png").write_bytes(b"no picture")
    left = datasets.held_out(str(folder), None, record, VIEW, ("a", "b"), leave_out_broken=True).test
    all_left = datasets.held_out(str(folder), None, {}, VIEW, ("a", "b"), leave_out_broken=True).test
    assert (len(all_left), len(all_left.broken)) == (19, 1)
    assert all_left.broken[0].startswith(f"{folder}/a/1.png: ")
    stayed = ~((whole.images[:, 0, 0, 0] == 10) & (whole.labels == 0))
    assert (left.images == whole.images[stayed]).all()
    assert len(left.broken) == len(whole) - len(left)
    with pytest.raises(ConfigError, match=r"a/1\.png"):
        datasets.held_out(str(folder), None, {}, VIEW, ("a", "b"))


def test_colour_statistics_are_numpys() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 9, 11, 3), dtype=np.uint8)
    mean, std = datasets.colour_statistics(Pictures(images, np.zeros(7, np.int64)))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), atol=1e-4)


def test_the_real_fashion_mnist_has_seventy_thousand_pictures() -> None:
    if not datasets.FASHION_MNIST_DIR.is_dir():
        pytest.skip(f"no {datasets.FASHION_MNIST_DIR}; apt-get install dataset-fashion-mnist")
    dataset = datasets.load_fashion_mnist(datasets.FASHION_MNIST_DIR, VIEW)
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10


def test_a_folder_is_a_class_by_label_by_label_without_slashes_or_where_none_is_by_index() -> None:
    clothes = ("T-shirt/top", "Trouser", "a\0b")
    found = classes_of([("T-shirt_top",), ("Trouser", "1"), ("a_b",), ("2",), ("junk",), ()], clothes)
    assert found == {("T-shirt_top",): 0, ("Trouser", "1"): 1, ("a_b",): 2}  # 2: the others are named as labels
    assert classes_of([("2", "1"), ("0",), ("00",), ("3",), ("junk", "1")], clothes) == {("2", "1"): 2, ("0",): 0}
    assert classes_of([("0",), ("1",)], ("1", "0")) == {("0",): 1, ("1",): 0}
    assert classes_of([("cat", "dog")], ("cat", "dog")) == {("cat", "dog"): 1}
    with pytest.raises(ConfigError, match="folder 'a_b': may be the class 'a/b' or 'a_b'"):
        classes_of([("a_b",)], ("a/b", "a_b"))
    assert classes_of([("a/b",), ("c",)], ("a/b", "c")) == {("a/b",): 0, ("c",): 1}  # Fashion-MNIST's own files


def test_pictures_of_another_folder_get_the_networks_class_indices(tmp_path: Path) -> None:
    for name in ("T-shirt_top", "Bag"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (28, 28)).save(tmp_path / "photos" / name / f"{number}.png")
    found = datasets.held_out(str(tmp_path / "photos"), None, {}, VIEW, ("T-shirt/top", "Shirt", "Bag"))
    assert sorted(found.test.labels.tolist()) == [0, 0, 0, 2, 2, 2]
    with pytest.raises(ConfigError, match=r"has not: T-shirt_top; it has Shirt, Bag \(a folder is named as a label"):
        datasets.held_out(str(tmp_path / "photos"), None, {}, VIEW, ("Shirt", "Bag"))
