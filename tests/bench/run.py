"""The server beside the ceiling of raw ONNX Runtime, interleaved in one run: shares, latencies, CPU time, memory.

    python tests/bench/run.py [--quick] [--cells 'small/unary/*' ...] [--list] [--pairs 7] [--folder DIR]

Writes run.json, RESULTS.md and run.png. The transports are measured side by side; one that the server refuses is
skipped, and the results say so. A wrong answer or an error ends the run.
"""

from __future__ import annotations

import sys
from functools import partial

from harness.cells import FULL, QUICK
from harness.command import options, run
from harness.processes import attnserve
from harness.session import Contender


def main(argv: list[str]) -> int:
    """Measure and write."""
    args = options(__doc__).parse_args(argv)
    transports = args.transports.split(",")
    contenders = [Contender(name, partial(attnserve, transport=name), transport=name) for name in transports]
    return run("run.py", argv, args, QUICK if args.quick and not args.cells else FULL, contenders)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
