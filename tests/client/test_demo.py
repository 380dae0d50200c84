"""The parts of the demo that judge and measure; the whole is run by `make demo`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "demo" / "run.py"

TEXT = """\
# TYPE took_seconds histogram
took_seconds_bucket{model="a",method="x",le="0.1"} 2
took_seconds_bucket{model="a",method="x",le="0.2"} 4
took_seconds_bucket{model="a",method="x",le="+Inf"} 4
took_seconds_sum{model="a",method="x"} 0.4
took_seconds_count{model="a",method="x"} 4
took_seconds_bucket{model="a",method="y",le="0.1"} 0
took_seconds_bucket{model="a",method="y",le="0.2"} 4
took_seconds_bucket{model="a",method="y",le="+Inf"} 4
took_seconds_sum{model="a",method="y"} 0.6
took_seconds_count{model="a",method="y"} 4
took_seconds_bucket{model="b",method="x",le="0.1"} 0
took_seconds_bucket{model="b",method="x",le="0.2"} 0
took_seconds_bucket{model="b",method="x",le="+Inf"} 0
took_seconds_sum{model="b",method="x"} 0
took_seconds_count{model="b",method="x"} 0
"""


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_answer_is_right_where_the_file_is_named_after_its_label(demo: ModuleType) -> None:
    answer = {"image": "images/t-shirt-top-19.png", "predictions": [{"label": "T-shirt/top"}]}
    assert demo.is_right(answer)
    assert not demo.is_right({**answer, "image": "images/shirt-4.png"})


def test_histograms_add_up_over_other_labels_and_leave_out_empty_ones(demo: ModuleType) -> None:
    (key,) = found = demo.histograms(TEXT, "took_seconds", ["model"])
    assert key == ("a",)
    assert found[key].row("a").split() == ["a", "8", "125.00", "133.33", "193.33"]


def test_a_quantile_beyond_the_last_bound_is_that_bound(demo: ModuleType) -> None:
    text = 't_bucket{le="0.5"} 1\nt_bucket{le="+Inf"} 10\nt_sum 30\n'
    (histogram,) = demo.histograms(text, "t", []).values()
    assert histogram.quantile_s(0.95) == 0.5


def test_the_demo_has_one_picture_of_each_class(demo: ModuleType) -> None:
    pictures = sorted((demo.ROOT / demo.PICTURES).glob("*.png"))
    labels = (demo.ROOT / "model_repo" / "fashion-mnist-cbam" / "labels.txt").read_text().splitlines()
    right = [
        label
        for label in labels
        for picture in pictures
        if demo.is_right({"image": str(picture), "predictions": [{"label": label}]})
    ]
    assert (len(pictures), right) == (10, labels)
