"""What `attnserve score` is measured beside, each a process that takes a list of pictures and ends; see `score.py`.

    python tests/bench/score_rivals.py decode|infer|loop MODEL_FOLDER LIST --workers W --batch-size B [--threads T]

`decode` and `infer` are the ceiling: the same decoder and the same session alone, in W processes of one thread. `loop`
is what a person writes: a PyTorch DataLoader with W workers before one session, and a Parquet file at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from attnserve.card import Card, Preprocessing
from attnserve.decode import DecodeLimits, picture_from_bytes, prepare

LIMITS = DecodeLimits(1 << 25, 64_000_000)


def view(path: str, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The model's view of a file, by the decoder that every contender uses."""
    return picture_from_bytes(Path(path).read_bytes(), preprocessing, LIMITS).pixels


def session(model: Path, threads: int) -> ort.InferenceSession:
    """On the CPU; 0 threads: as many as ONNX Runtime takes by itself."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model / "model.onnx", options, providers=["CPUExecutionProvider"])


def decode(model: Path, paths: Sequence[str], _: int) -> None:
    """Read and decode all."""
    preprocessing = card(model).preprocessing
    for path in paths:
        view(path, preprocessing)


def infer(model: Path, paths: Sequence[str], batch_size: int) -> None:
    """Run as many pictures as there are, by the same few."""
    preprocessing, net = card(model).preprocessing, session(model, 1)
    batch = np.stack([view(path, preprocessing) for path in paths[:batch_size]])
    for start in range(0, len(paths), batch_size):
        net.run(["probabilities"], {"images": batch[: len(paths) - start]})


def card(model: Path) -> Card:
    """Of a version's folder."""
    return Card.from_json((model / "model.json").read_text())


def side_by_side(work: Callable[[Path, Sequence[str], int], None], args: argparse.Namespace) -> None:
    """Give every process its share."""
    paths = args.list.read_text().splitlines()
    shares = [paths[start :: args.workers] for start in range(args.workers)]
    processes = [multiprocessing.Process(target=work, args=(args.model, share, args.batch_size)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def loop(args: argparse.Namespace) -> None:
    """DataLoader, session, Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from torch.utils.data import DataLoader, Dataset

    paths, preprocessing = args.list.read_text().splitlines(), card(args.model).preprocessing

    class Pictures(Dataset[NDArray[np.uint8]]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> NDArray[np.uint8]:
            return view(paths[index], preprocessing).copy()  # torch warns of what it may not write to

    net = session(args.model, args.threads)
    loader = DataLoader(Pictures(), batch_size=args.batch_size, num_workers=args.workers)
    found = [net.run(["probabilities"], {"images": batch.numpy()})[0] for batch in loader]
    probabilities = np.concatenate(found)
    columns = {"uri": paths, "label": probabilities.argmax(1), "probabilities": list(probabilities)}
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table(columns), Path(folder, "rows.parquet"), compression="zstd")


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=("decode", "infer", "loop"))
    parser.add_argument("model", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    prepare()
    if args.rival == "loop":
        loop(args)
    else:
        side_by_side({"decode": decode, "infer": infer}[args.rival], args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
