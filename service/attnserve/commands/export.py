"""`attnserve export`: from a checkpoint to a model repository entry.

Owns the flags; the work is `attnserve.export.entry`'s.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from attnserve.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attnserve.card import Preprocessing
    from attnserve.export.checkpoint import Checkpoint
    from attnserve.export.datasets import Dataset


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.set_defaults(parser=parser)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what `attnserve train` wrote")
    parser.add_argument("--model-repository", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", required=True, metavar="MODEL")
    parser.add_argument("--version", type=int, default=1, metavar="N")
    parser.add_argument("--image-size", type=int, metavar="N", help="the view is N x N (default: as trained)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="one label per line, instead of the checkpoint's")
    parser.add_argument("--max-batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--images", type=Path, metavar="DIR", help="real pictures to check parity on, besides noise")
    parser.add_argument("--evaluate", metavar="DATASET",
                        help="measure the exported model on the test part of its training's data set")  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--force", action="store_true", help="replace the version where it exists")


def run(args: argparse.Namespace) -> int:
    """Write the entry, and say where and how exact it is."""
    import onnxruntime

    from attnserve.export.checkpoint import Checkpoint
    from attnserve.export.entry import Job, Target, write_entry
    from attnserve.export.measure import evaluation
    from attnserve.export.record import command_line

    target = Target(args.model_repository, args.name, args.version, args.max_batch_size, args.force)
    checkpoint = adapted(Checkpoint.load(args.checkpoint), args.image_size, args.labels)
    command = command_line("export", args, args.parser)
    pictures = _pictures(args.images, checkpoint.preprocessing) if args.images else None
    evaluate = None
    if args.evaluate:
        dataset = _dataset(args, checkpoint)
        pictures = dataset.test.images if pictures is None else pictures
        engine = f"onnxruntime {onnxruntime.__version__} CPU"
        evaluate = functools.partial(evaluation, dataset=dataset, measured_with=engine, command=command)

    card = write_entry(checkpoint, target, Job(command, pictures, evaluate))
    print(f"{target.version_folder}: {len(card.sites)} attention sites, parity {max(card.parity.values()):.1e}")
    for entry in card.evaluation:
        print(f"{entry['dataset']} {entry['split']}: accuracy {entry['accuracy']:.4f} on {entry['images']} pictures")
    return 0


def adapted(checkpoint: Checkpoint, image_size: int | None, labels: Path | None) -> Checkpoint:
    """The checkpoint with another view or other labels."""
    if image_size:
        view = dataclasses.replace(checkpoint.preprocessing, height=image_size, width=image_size)
        checkpoint = dataclasses.replace(checkpoint, preprocessing=view)
    if labels:
        try:
            names = tuple(labels.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"labels: {error}") from error
        checkpoint = dataclasses.replace(checkpoint, labels=names)
    if len(checkpoint.labels) != checkpoint.architecture.num_classes:
        raise ConfigError(f"{len(checkpoint.labels)} labels for {checkpoint.architecture.num_classes} classes")
    return checkpoint


def _pictures(folder: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    import numpy as np

    from attnserve.export import datasets

    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in datasets.SUFFIXES]
    if not paths:
        raise ConfigError(f"--images: no pictures in {folder}")
    return np.stack([datasets.picture(path, preprocessing) for path in paths[:5]])  # parity looks at five


def _dataset(args: argparse.Namespace, checkpoint: Checkpoint) -> Dataset:
    """The data set the checkpoint was trained on, split by its own rule."""
    from attnserve.export import datasets

    record = checkpoint.training
    rule = None if args.evaluate == datasets.FASHION_MNIST else datasets.SplitRule(**record["split"])
    dataset = datasets.load(args.evaluate, args.data_dir, record["licence"], checkpoint.preprocessing, rule)
    if dataset.name != record["dataset"]:
        raise ConfigError(f"--evaluate: the checkpoint was trained on {record['dataset']}, its split is of no use here")
    return dataset
