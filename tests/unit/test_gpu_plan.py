"""Which ways to run on a GPU there are, which are tried, and which of the measured ones is taken. No GPU needed."""

from __future__ import annotations

import pytest

from attnserve.errors import ConfigError
from attnserve.gpu.plan import (
    GpuOptions,
    Plan,
    cuda_options,
    first_plan,
    is_better,
    parse_devices,
    parse_plan,
    provider_of_layers,
    variants,
    with_workers,
)
from attnserve.gpu.tuning import tune


def test_words_fix_their_dimension_and_leave_the_rest_to_be_measured():
    assert parse_plan("auto") == {}
    assert parse_plan("graphs") == {"mode": "graphs"}
    assert parse_plan("nhwc, exhaustive,plain") == {"layout": "nhwc", "search": "exhaustive", "mode": "plain"}


def test_a_plan_is_written_as_the_words_that_would_fix_it():
    plan = Plan(layout="nhwc", mode="graphs")
    assert str(plan) == "nhwc,heuristic,pageable,graphs"
    assert first_plan(parse_plan(str(plan))) == plan


@pytest.mark.parametrize("text", ["", "fast", "graphs,", "auto,graphs", "plain,overlap", "graphs,graphs"])
def test_other_words_and_two_of_one_kind_are_refused(text):
    with pytest.raises(ConfigError, match="gpu_plan: "):
        parse_plan(text)


def test_devices_are_numbers_and_without_any_it_is_the_first():
    assert parse_devices("") == (0,)
    assert parse_devices("1, 0,12") == (1, 0, 12)
    for text in ("a", "-1", "0,0", "0,00", "0,", "\N{SUPERSCRIPT TWO}"):
        with pytest.raises(ConfigError, match="gpu_devices must be different numbers"):
            parse_devices(text)


def test_several_workers_overlap_one_way_or_the_other():
    assert with_workers({"layout": "nhwc"}, 0) == {"layout": "nhwc"}
    assert with_workers({}, 1) == {}
    assert with_workers({}, 3) == with_workers({"mode": "overlap"}, 3) == {"mode": "overlap"}
    assert with_workers({"mode": "overlapped-graphs"}, 2) == {"mode": "overlapped-graphs"}
    for mode, workers in (("graphs", 2), ("plain", 2), ("overlap", 1), ("overlapped-graphs", 1)):
        with pytest.raises(ConfigError, match=f"gpu_plan: {mode} "):
            with_workers({"mode": mode}, workers)


def test_the_cuda_provider_is_told_the_plan_the_device_and_the_limits():
    options = cuda_options(Plan("nhwc", "exhaustive", "pinned", "graphs"), 3, GpuOptions(mem_limit_bytes=5, tf32=True))
    assert options == {
        "device_id": "3",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "do_copy_in_default_stream": "1",
        "prefer_nhwc": "1",
        "use_tf32": "1",
        "enable_cuda_graph": "1",
        "gpu_mem_limit": "5",
    }


def test_unless_told_otherwise_float32_is_float32_and_memory_has_no_limit():
    options = cuda_options(Plan(), 0, GpuOptions())
    assert (options["use_tf32"], options["prefer_nhwc"], options["enable_cuda_graph"]) == ("0", "0", "0")
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert "gpu_mem_limit" not in options


def test_explaining_graphs_run_beside_their_model_and_never_by_cuda_graph_or_tensorrt():
    gpu = GpuOptions(devices=(2, 0), mem_limit_bytes=9)
    for provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        name, options = provider_of_layers(provider, gpu)
        assert name == "CUDAExecutionProvider"
        assert (options["device_id"], options["enable_cuda_graph"], options["gpu_mem_limit"]) == ("2", "0", "9")
    assert provider_of_layers("CPUExecutionProvider", gpu) == ("CPUExecutionProvider", {})


def test_a_plan_is_better_only_where_it_gains_over_all_sizes_together_more_than_noise():
    old = {1: 1.0, 64: 10.0}
    assert is_better({1: 0.5, 64: 10.0}, old)
    assert is_better({1: 1.1, 64: 8.0}, old)
    assert not is_better(old, old)
    assert not is_better({1: 0.985, 64: 9.85}, old)
    assert not is_better({1: 2.0, 64: 6.0}, old)


def test_variants_differ_in_one_word_from_the_best_and_skip_what_is_fixed_or_barred():
    best = Plan(layout="nhwc")
    modes = ["overlap", "graphs", "overlapped-graphs"]
    assert list(variants(best, "mode", {}, ())) == [Plan("nhwc", mode=mode) for mode in modes]
    assert list(variants(best, "mode", {}, modes[1:])) == [Plan("nhwc", mode="overlap")]
    assert list(variants(best, "mode", {"mode": "plain"}, ())) == []
    assert list(variants(best, "layout", {}, ())) == [Plan()]


class Bench:
    """Tries plans on paper: each takes `cost_s` of the clock and runs as fast as its words say."""

    def __init__(self, clock, cost_s=1.0, broken=(), **speed):
        self._clock, self._cost_s, self._broken, self._speed = clock, cost_s, broken, speed
        self.tried, self.open = [], []

    def attempt(self, plan):
        self._clock.advance(self._cost_s)
        self.tried.append(plan)
        words = str(plan).split(",")
        if any(word in self._broken for word in words):
            raise RuntimeError("cannot")
        seconds = 1.0
        for word in words:
            seconds /= self._speed.get(word, 1.0)
        bench = self

        class Trial:
            def __init__(self):
                self.seconds = {1: seconds, 64: seconds * 20}
                bench.open.append(plan)

            def close(self):
                bench.open.remove(plan)

        return Trial()


def test_tuning_keeps_what_gains_dimension_by_dimension_and_closes_the_rest(clock):
    bench = Bench(clock, nhwc=1.5, exhaustive=0.9, pinned=1.2, overlap=1.3, graphs=1.6)
    plan, trial = tune(bench.attempt, {}, (), budget_s=100, clock=clock)
    assert plan == Plan("nhwc", "heuristic", "pinned", "graphs")
    assert bench.open == [plan]
    assert trial.seconds[1] == pytest.approx(1 / (1.5 * 1.2 * 1.6))
    assert len(bench.tried) == 7


def test_of_the_modes_the_fastest_is_kept(clock):
    for speed, best in (({"overlap": 1.5, "graphs": 1.2}, "overlap"), ({"overlap": 1.2, "graphs": 1.5}, "graphs"),
                        ({"graphs": 1.2, "overlapped-graphs": 1.4}, "overlapped-graphs"),
                        ({"overlap": 1.01, "graphs": 1.01}, "plain")):  # fmt: skip
        assert tune(Bench(clock, **speed).attempt, {}, (), budget_s=100, clock=clock)[0].mode == best


def test_what_is_fixed_is_not_measured(clock):
    bench = Bench(clock, nhwc=3, graphs=3)
    fixed = {"layout": "nchw", "search": "exhaustive", "copies": "pageable", "mode": "plain"}
    assert tune(bench.attempt, fixed, (), budget_s=100, clock=clock)[0] == Plan(search="exhaustive")
    assert len(bench.tried) == 1


def test_the_budget_ends_the_trying_before_it_is_overrun(clock, caplog):
    caplog.set_level("INFO")
    bench = Bench(clock, cost_s=10, nhwc=1.5, graphs=9)
    plan, _ = tune(bench.attempt, {}, (), budget_s=35, clock=clock)
    assert len(bench.tried) == 3
    assert (plan, bench.open) == (Plan("nhwc"), [Plan("nhwc")])
    assert "plan nhwc,heuristic,pageable,graphs: not tried, the time for tuning is over" in caplog.text


def test_a_slow_plan_teaches_what_the_next_one_may_take(clock):
    bench = Bench(clock)
    slow = {"nhwc": 30.0}

    def attempt(plan):
        clock.advance(slow.get(plan.layout, 0.0))
        return bench.attempt(plan)

    tune(attempt, {}, (), budget_s=60, clock=clock)
    assert [str(plan) for plan in bench.tried] == ["nchw,heuristic,pageable,plain", "nhwc,heuristic,pageable,plain"]


def test_the_first_plan_is_opened_even_without_any_time(clock):
    bench = Bench(clock, graphs=2)
    assert tune(bench.attempt, {}, (), budget_s=0, clock=clock)[0] == Plan()
    assert bench.tried == [Plan()]


def test_a_plan_that_cannot_be_used_is_passed_over_aloud(clock, caplog):
    bench = Bench(clock, broken=("graphs", "nhwc"), overlap=1.2)
    assert tune(bench.attempt, {}, (), budget_s=100, clock=clock)[0] == Plan(mode="overlap")
    assert "plan nchw,heuristic,pageable,graphs: cannot be used: cannot" in caplog.text
    assert bench.open == [Plan(mode="overlap")]


def test_a_first_plan_that_cannot_be_used_raises(clock):
    with pytest.raises(RuntimeError, match="cannot"):
        tune(Bench(clock, broken=("plain",)).attempt, {}, (), budget_s=100, clock=clock)
