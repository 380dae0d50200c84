"""Copies by cuda-bindings, over a puppet of its runtime whose device is this machine's memory."""

from __future__ import annotations

import ctypes
import types

import numpy as np
import pytest

from attnserve.gpu.pinned_copies import PinnedCopies

UINT8, FLOAT = np.dtype(np.uint8), np.dtype(np.float32)


class Runtime:
    """Each function returns its status first, as cuda.bindings.runtime does."""

    cudaHostAllocDefault, cudaStreamNonBlocking = 0, 1  # noqa: N815
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")  # noqa: N815

    def __init__(self):
        self.calls = []
        self.blocks = {}
        self.failing = None
        self.waiting = []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == self.failing:
                return (Status(700), *self.results(name, arguments))
            return (Status(0), *self.results(name, arguments))

        call.__name__ = name
        return call

    def results(self, name, arguments):
        if name == "cudaHostAlloc":
            block = ctypes.create_string_buffer(b"\x07" * arguments[0], arguments[0])
            self.blocks[ctypes.addressof(block)] = block
            return [ctypes.addressof(block)]
        if name == "cudaFreeHost":
            del self.blocks[arguments[0]]
        if name == "cudaMemcpyAsync":  # happens when somebody waits for it
            self.waiting.append(arguments[:3])
        if name == "cudaStreamSynchronize":
            for target, source, size in self.waiting:
                ctypes.memmove(target, source, size)
            self.waiting.clear()
        return ["stream"] if name == "cudaStreamCreateWithFlags" else []


class Status(int):
    def __repr__(self):
        return f"<error {int(self)}>"


class Tensor:
    """An OrtValue, as far as it is looked at."""

    def __init__(self, content):
        self.content = content

    def data_ptr(self):
        return self.content.ctypes.data

    def shape(self):
        return list(self.content.shape)

    def data_type(self):
        return {"float32": "tensor(float)", "float16": "tensor(float16)"}[self.content.dtype.name]


@pytest.fixture
def runtime():
    return Runtime()


@pytest.fixture
def copies(runtime):
    return PinnedCopies(2, runtime)


def test_staged_memory_is_page_locked_black_and_of_its_shape(copies, runtime):
    staged = copies.stage((2, 3, 1), UINT8)
    assert (staged.shape, staged.dtype, staged.sum()) == ((2, 3, 1), UINT8, 0)
    assert list(runtime.blocks) == [staged.ctypes.data]
    assert copies.stage((4,), FLOAT).nbytes == 16


def test_an_upload_has_arrived_when_it_returns(copies):
    staged, device = copies.stage((2, 3), UINT8), np.zeros((2, 3), UINT8)
    staged[...] = [[1, 2, 3], [4, 5, 6]]
    copies.upload(staged, Tensor(device))
    np.testing.assert_array_equal(device, staged)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_download_brings_only_the_rows_asked_for(copies, runtime, dtype):
    device = np.arange(12).reshape(4, 3).astype(dtype)
    found = copies.download(Tensor(device), 2)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, device[:2])
    (copy,) = [call for call in runtime.calls if call[0] == "cudaMemcpyAsync"]
    assert copy[3:] == (6 * found.itemsize, "down", "stream")
    device[...] = 0
    assert found[1, 2] == 5


def test_every_call_is_on_its_own_device(copies, runtime):
    copies.download(Tensor(np.zeros((1, 1), FLOAT)), 1)
    names = [call[:2] for call in runtime.calls]
    assert names[0] == ("cudaSetDevice", 2)
    assert names[names.index(next(name for name in names if name[0] == "cudaMemcpyAsync")) - 1] == ("cudaSetDevice", 2)


def test_closing_frees_all_memory_and_the_stream(copies, runtime):
    copies.stage((2,), UINT8)
    copies.stage((3,), UINT8)
    copies.close()
    assert not runtime.blocks
    assert runtime.calls[-1] == ("cudaStreamDestroy", "stream")


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_an_error_of_cuda_names_the_call_and_the_error(copies, runtime, function):
    runtime.failing = function
    with pytest.raises(RuntimeError, match=f"{function}: <error 700>"):
        copies.download(Tensor(np.zeros((1, 1), FLOAT)), 1)
