"""What NVML says of the GPUs, and how it is scraped; NVML is a puppet."""

from __future__ import annotations

import sys
import types

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from attnserve.gpu.metrics import DESCRIBED, GpuMetrics
from attnserve.gpu.nvml import GpuFacts, Nvml, open_nvml


class NVMLError(Exception):
    pass


class Library:
    """Looks like pynvml on a machine with two GPUs."""

    NVMLError = NVMLError

    def __init__(self, lost=()):
        self.lost = lost
        self.initialised = 0

    def nvmlInit(self):  # noqa: N802
        self.initialised += 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, gpu):  # noqa: N802
        return types.SimpleNamespace(used=100 + gpu, total=1000)

    def nvmlDeviceGetCudaComputeCapability(self, gpu):  # noqa: N802
        return (9, gpu)

    def nvmlDeviceGetUUID(self, gpu):  # noqa: N802
        return f"GPU-{gpu}"

    def nvmlDeviceGetName(self, gpu):  # noqa: N802, ARG002
        return "NVIDIA Puppet"

    def nvmlDeviceGetUtilizationRates(self, gpu):  # noqa: N802
        return types.SimpleNamespace(gpu=25 * (gpu + 1), memory=0)


def test_each_gpu_is_read_with_its_memory_utilisation_and_capability():
    assert Nvml(Library()).read() == [
        GpuFacts(0, "GPU-0", "NVIDIA Puppet", "9.0", 100, 1000, 0.25),
        GpuFacts(1, "GPU-1", "NVIDIA Puppet", "9.1", 101, 1000, 0.5),
    ]


def test_a_lost_gpu_does_not_hide_the_others():
    assert [gpu.index for gpu in Nvml(Library(lost=[0])).read()] == [1]


def test_a_scrape_reads_the_gpus_anew():
    library, registry = Library(), CollectorRegistry()
    GpuMetrics(Nvml(library).read, registry)
    labels = {"gpu": "1", "uuid": "GPU-1", "name": "NVIDIA Puppet"}
    assert registry.get_sample_value("attnserve_gpu_memory_used_bytes", labels) == 101
    assert registry.get_sample_value("attnserve_gpu_memory_bytes", labels) == 1000
    assert registry.get_sample_value("attnserve_gpu_utilization_ratio", labels) == 0.5
    library.lost = [1]
    assert registry.get_sample_value("attnserve_gpu_memory_bytes", labels) is None


def test_the_metrics_are_those_described():
    registry = CollectorRegistry()
    GpuMetrics(Nvml(Library()).read, registry)
    text = generate_latest(registry).decode()
    for name, kind, meaning, _ in DESCRIBED:
        assert f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n" in text


@pytest.mark.parametrize("trouble", ["not installed", "no driver"])
def test_without_nvml_there_is_one_line_in_the_log_and_no_metric(trouble, monkeypatch, caplog):
    caplog.set_level("INFO")
    library = Library()
    library.nvmlInit = lambda: (_ for _ in ()).throw(NVMLError("Shared Library Not Found"))
    monkeypatch.setitem(sys.modules, "pynvml", None if trouble == "not installed" else library)
    assert open_nvml() is None
    (record,) = caplog.records
    assert record.getMessage().startswith("no metrics of GPUs: ")


def test_nvml_is_initialised_before_it_is_asked(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml = open_nvml()
    assert library.initialised == 1
    assert len(nvml.read()) == 2
