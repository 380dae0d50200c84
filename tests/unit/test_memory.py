"""What memory is left, and what a version takes, from literal numbers."""

from __future__ import annotations

import pytest

from attnserve.memory import available_bytes, estimate_bytes, read_text, refusal, resident_bytes

MEMINFO = "MemTotal: 8000 kB\nMemFree: 1000 kB\nMemAvailable:    5000 kB\n"
GROUP = "/sys/fs/cgroup"
OLD = "/sys/fs/cgroup/memory"


def reader(**files: str):
    """A reader of these files."""
    return {"/proc/meminfo": MEMINFO, **files}.get


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 5_120_000),
        ({"/proc/meminfo": "MemTotal: 8000 kB\n"}, None),
        # version 2, in a container: the group is the root
        ({f"{GROUP}/memory.max": "1000000\n", f"{GROUP}/memory.current": "400000\n"}, 600_000),
        ({f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "400000\n"}, 5_120_000),
        ({f"{GROUP}/memory.max": "9000000\n", f"{GROUP}/memory.current": "0\n"}, 5_120_000),
        ({f"{GROUP}/memory.max": "1000\n", f"{GROUP}/memory.current": "2000\n"}, 0),
        # file pages that the kernel drops when it needs room
        (
            {
                f"{GROUP}/memory.max": "1000000",
                f"{GROUP}/memory.current": "400000",
                f"{GROUP}/memory.stat": "anon 1\ninactive_file 300000\nactive_file 7\n",
            },
            900_000,
        ),
        # version 2, as a service: its own group and those around it
        (
            {
                "/proc/self/cgroup": "0::/system.slice/attnserve.service\n",
                f"{GROUP}/system.slice/attnserve.service/memory.max": "3000000",
                f"{GROUP}/system.slice/attnserve.service/memory.current": "1000000",
            },
            2_000_000,
        ),
        (
            {
                "/proc/self/cgroup": "0::/system.slice/attnserve.service\n",
                f"{GROUP}/system.slice/memory.max": "2500000",
                f"{GROUP}/system.slice/memory.current": "1000000",
                f"{GROUP}/system.slice/attnserve.service/memory.max": "3000000",
                f"{GROUP}/system.slice/attnserve.service/memory.current": "1000000",
            },
            1_500_000,
        ),
        # version 1
        (
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/1\n",
                f"{OLD}/docker/1/memory.limit_in_bytes": "1000000",
                f"{OLD}/docker/1/memory.usage_in_bytes": "900000",
                f"{OLD}/docker/1/memory.stat": "cache 1\ntotal_inactive_file 50000\n",
                f"{OLD}/memory.limit_in_bytes": "9223372036854771712",
                f"{OLD}/memory.usage_in_bytes": "900000",
            },
            150_000,
        ),
        # the path is the host's, and not to be found in the container
        (
            {
                "/proc/self/cgroup": "0::/../../kubepods/pod1\n",
                f"{GROUP}/memory.max": "1000000",
                f"{GROUP}/memory.current": "100000",
            },
            900_000,
        ),
    ],
)
def test_what_is_available_is_the_least_of_the_machine_and_every_group(files, expected):
    assert available_bytes(reader(**files)) == expected


def test_here_something_is_available_and_something_is_taken():
    assert available_bytes() > 1 << 20
    assert resident_bytes() > 1 << 20
    assert read_text("/proc/no-such-thing") is None
    assert resident_bytes(reader()) == 0


@pytest.mark.parametrize(
    ("file_bytes", "pixels", "measured", "expected"),
    [
        (100_000_000, 0, None, 450_000_000),
        (1000, 13, None, 4500),
        (1000, 14, None, 1000 + 14 * 256),
        (1000, 14, 3500, 4500),
        (1000, 0, 3501, 4501),
        (1000, 14, 0, 4500),
    ],
)
def test_the_estimate_is_the_peak_of_the_load_or_of_the_batches(file_bytes, pixels, measured, expected):
    assert estimate_bytes(file_bytes, pixels, measured) == expected


MIB = 1 << 20


@pytest.mark.parametrize(
    ("needed", "reserve", "room", "reason"),
    [
        (100 * MIB, 0, 100 * MIB, None),
        (100 * MIB, 0, None, None),
        (100 * MIB, 0, 99 * MIB, "loading needs about 100 MiB of memory, 99 MiB are available"),
        (100 * MIB, 50 * MIB, 150 * MIB, None),
        (
            100 * MIB,
            50 * MIB,
            149 * MIB,
            "loading needs about 100 MiB of memory and 50 MiB must stay free (memory_reserve_bytes), "
            "149 MiB are available",
        ),
    ],
)
def test_a_load_is_refused_with_the_figures_where_it_does_not_fit(needed, reserve, room, reason):
    assert refusal(needed, reserve, room) == reason
