"""Rows of a chunk, what is counted of them, and the digest that finds a row that changed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from attnserve.scoring.items import Item
from attnserve.scoring.job import Settings
from attnserve.scoring.rows import (
    BINS,
    MOST_CAUSES,
    MOST_SLOW,
    OTHER_CAUSES,
    RowDigest,
    Scored,
    Tally,
    cause_of,
    schema,
    table,
    tally,
)

LABELS = ("cat", "dog", "cow")
SETTINGS = Settings("net", "3", "c0ffee", top_k=2)


@pytest.fixture
def new_item():
    return lambda index: Item(index, f"{index}.png", f"/in/{index}.png", f"/in/{index}.png")


@pytest.fixture
def items(new_item):
    return [new_item(index) for index in range(3)]


@pytest.fixture
def scored():
    """A cat, a broken picture, and a dog."""
    probabilities = np.array([[0.75, 0.25, 0.0], [0.125, 0.5, 0.375]], np.float32)
    return Scored([None, "the picture is empty", None], probabilities)


def test_each_item_has_its_row_and_a_broken_one_only_its_error(items, scored):
    rows = table(items, scored, LABELS, SETTINGS)
    assert rows.schema == schema(SETTINGS)
    model = {"model": "net", "version": "3", "card_digest": "c0ffee"}
    nothing = dict.fromkeys(("label", "probability", "top_labels", "top_probabilities", "probabilities"))
    assert rows.to_pylist() == [
        {"index": 0, "id": "0.png", "uri": "/in/0.png", "label": "cat", "probability": 0.75, "error": None,
         "top_labels": ["cat", "dog"], "top_probabilities": [0.75, 0.25], "probabilities": [0.75, 0.25, 0.0], **model},
        {"index": 1, "id": "1.png", "uri": "/in/1.png", "error": "the picture is empty", **nothing, **model},
        {"index": 2, "id": "2.png", "uri": "/in/2.png", "label": "dog", "probability": 0.5, "error": None,
         "top_labels": ["dog", "cow"], "top_probabilities": [0.5, 0.375], "probabilities": [0.125, 0.5, 0.375],
         **model},
    ]  # fmt: skip


def test_a_chunk_of_broken_pictures_is_a_table_like_the_others(new_item):
    scored = Scored(["cannot be read: gone"], np.zeros((0, 3), np.float32))
    rows = table([new_item(0)], scored, LABELS, SETTINGS)
    assert rows.schema == schema(SETTINGS)
    assert rows.column("label").to_pylist() == [None]


def test_full_probabilities_can_be_left_out(items, scored):
    rows = table(items, scored, LABELS, Settings("net", "3", "c0ffee", full=False))
    assert rows.column("probabilities").null_count == 3
    assert rows.column("top_labels").to_pylist()[0] == ["cat", "dog", "cow"]


@pytest.mark.parametrize(("form", "maps", "expected"), [
    ("png", [b"\x89PNG 0", b"\x89PNG 2"], [b"\x89PNG 0", None, b"\x89PNG 2"]),
    ("float16", [np.array([[0, 1]], np.float16), np.array([[2, 3]], np.float16)], [[[0, 1]], None, [[2, 3]]]),
])  # fmt: skip
def test_maps_are_columns_named_by_their_source(items, scored, form, maps, expected):
    scored.maps["gradcam/last"] = maps
    rows = table(items, scored, LABELS, Settings("net", "3", "c0ffee", maps=("gradcam/last",), map_form=form))
    assert rows.column("gradcam/last").to_pylist() == expected


def test_a_tally_counts_labels_confidences_and_causes_and_adds_up(items, scored):
    found = tally(items, scored, LABELS)
    assert (found.rows, found.errors, found.labels) == (3, 1, {"cat": 1, "dog": 1})
    assert {at: number for at, number in enumerate(found.confidences) if number} == {BINS // 2: 1, BINS * 3 // 4: 1}
    assert (found.causes, found.examples) == (
        {"the picture is empty": 1},
        {"the picture is empty": ("1.png", "the picture is empty")},
    )
    twice = Tally.from_json(found.to_json())
    assert twice == found
    twice.add(found)
    assert (twice.rows, twice.errors, twice.labels["cat"], twice.causes["the picture is empty"]) == (6, 2, 2, 2)
    assert sum(twice.confidences) == 4


def test_a_tally_names_the_slowest_pictures_and_adds_up_what_was_read(items, scored):
    scored.reading_s, scored.read_bytes = [0.5, 2.0, 1.0], 300
    found = tally(items, scored, LABELS)
    assert (found.read_bytes, found.slowest) == (300, [(2.0, "1.png"), (1.0, "2.png"), (0.5, "0.png")])
    found.add(Tally.from_json(found.to_json()))
    assert found.read_bytes == 600
    assert found.slowest == [(2.0, "1.png"), (2.0, "1.png"), (1.0, "2.png"), (1.0, "2.png"), (0.5, "0.png")]
    assert MOST_SLOW == 5


def test_a_tally_does_not_grow_with_the_kinds_of_errors(new_item):
    total = Tally()
    letters = "abcdefghijklmnopqrstuvwxyz"
    errors = [f"{first}{second}" for first in letters for second in letters]
    for error in errors:
        total.add(tally([new_item(0)], Scored([error], np.zeros((0, 3), np.float32)), LABELS))
    assert len(total.causes) == len(total.examples) == MOST_CAUSES + 1
    assert total.causes[OTHER_CAUSES] == len(errors) - MOST_CAUSES
    assert total.causes.total() == total.errors == len(errors)


def test_a_certain_answer_is_in_the_last_bin(new_item):
    found = tally([new_item(0)], Scored([None], np.array([[0, 1, 0]], np.float32)), LABELS)
    assert found.confidences[-1] == 1


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("cannot be read: No such file or directory", "cannot be read"),
        ("the picture has 99 bytes; at most 10 are accepted", "the picture has N bytes"),
        ("the picture is broken or cut short", "the picture is broken or cut short"),
    ],
)
def test_a_cause_is_what_failures_of_one_kind_have_in_common(error, cause):
    assert cause_of(error) == cause


def digest_of(*tables: pa.Table) -> str:
    digest = RowDigest()
    for rows in tables:
        digest.add(rows)
    return digest.hex()


def test_the_digest_is_of_the_rows_and_not_of_how_they_are_cut(items, scored):
    rows = table(items, scored, LABELS, SETTINGS)
    whole = digest_of(rows)
    assert digest_of(rows.slice(0, 1), rows.slice(1)) == whole
    assert digest_of(rows.slice(0, 2), rows.slice(2), rows.slice(0, 0)) == whole


@pytest.mark.parametrize("column", ["index", "id", "uri", "label", "probability", "top_labels", "top_probabilities",
                                    "probabilities", "model", "version", "card_digest", "error"])  # fmt: skip
def test_the_digest_tells_of_any_changed_value(items, scored, column):
    rows = table(items, scored, LABELS, SETTINGS)
    values = rows.column(column).to_pylist()
    values[0], values[2] = values[2], values[0]
    if values == rows.column(column).to_pylist():
        values[0] = "another"
    changed = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values, rows.field(column).type))
    assert digest_of(changed) != digest_of(rows)


def test_the_digest_tells_values_from_nothing_and_where_one_ends():
    def of(values):
        return digest_of(pa.table({"a": pa.array(values, pa.list_(pa.string()))}))

    assert (
        len({of(values) for values in ([["a", "b"]], [["ab"]], [["a"], ["b"]], [["a", "b"], None], [["a", "b"], []])})
        == 5
    )
