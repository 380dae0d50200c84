"""attnserve beside Triton and mosec on the same model files, interleaved in one run with raw ONNX Runtime.

    python tests/bench/compare.py [--quick] [--cells 'small/*' ...] [--list] [--pairs 7] [--folder DIR]

attnserve and Triton (its Python backend) are asked by the same bytes, ModelInfer of the Open Inference Protocol; mosec
by the same pixels as the body of an HTTP request. All run ONNX Runtime with one thread per core and the same largest
batch, and every probability of every answer is checked. Writes compare.json, RESULTS.md and compare.png. A server that
does not start is skipped, and the results say so.
"""

from __future__ import annotations

import sys
from functools import partial

from harness.cells import PEERS
from harness.command import options, run
from harness.processes import attnserve
from harness.session import Contender
from peers.servers import mosec, triton

QUICK = ("small/infer/raw/1x1", "small/infer/raw/1x16", "small/infer/raw/1x64")


def main(argv: list[str]) -> int:
    """Measure and write."""
    args = options(__doc__).parse_args(argv)
    if args.quick and not args.cells:
        args.cells = list(QUICK)
    contenders = [
        Contender(f"attnserve {name}", partial(attnserve, transport=name), transport=name)
        for name in args.transports.split(",")
    ]
    contenders += [Contender("Triton", triton), Contender("mosec", mosec, form="http")]
    return run("compare.py", argv, args, PEERS, contenders)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
