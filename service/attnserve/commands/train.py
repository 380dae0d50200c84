"""`attnserve train`: from labelled pictures to a checkpoint.

Owns the flags and their translation into an architecture, a split, an augmentation and a recipe; trains nothing itself.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from attnserve.errors import ConfigError

if TYPE_CHECKING:
    from attnserve.card import Preprocessing
    from attnserve.datasets import Dataset
    from attnserve.export.architecture import Architecture
    from attnserve.export.training import Recipe, Trainer


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers with commas between, got {text!r}") from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.set_defaults(parser=parser)
    parser.add_argument("dataset", metavar="DATASET", help="`fashion-mnist`, or a folder with a sub-folder per class")
    parser.add_argument("--output", type=Path, required=True, metavar="CKPT", help="saved after every epoch")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from CKPT")
    existing.add_argument("--force", action="store_true", help="replace CKPT where it exists")
    _configure_data(parser.add_argument_group("data"))
    _configure_network(parser.add_argument_group("network"))
    _configure_recipe(parser.add_argument_group("recipe"))
    _configure_augmentation(parser.add_argument_group("augmentation"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="compute in bfloat16 where it is safe")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="stop after the epoch that passes M minutes")


def _configure_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the Fashion-MNIST idx files")
    group.add_argument("--image-size", type=int, metavar="N", help="the model's view is N x N (default 28 or 96)")
    group.add_argument("--licence", default="unknown", help="licence of a folder's pictures, for the model card")
    group.add_argument("--split", choices=("random", "number"), default="random",
                       help="a folder's test part: at random, or the highest numbers in the file names")  # fmt: skip
    group.add_argument("--test-fraction", type=float, default=0.2, metavar="F")
    group.add_argument("--guard", type=int, default=20, metavar="N",
                       help="with --split number, leave out the pictures whose number is less than N before a cut, so"
                       " that nobody's pictures lie on both sides (default: %(default)s)")  # fmt: skip
    group.add_argument("--validation-fraction", type=float, default=0.0, metavar="F",
                       help="part to watch while choosing a recipe; never the test part")  # fmt: skip


def _configure_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--depth", type=int, default=18, help="18, 34, 50 or 101")
    group.add_argument("--stem", choices=("imagenet", "small"), default="small")
    group.add_argument("--stem-stride", type=int, default=2, help="of the small stem, 1 or 2")
    group.add_argument("--widths", type=_numbers, default=(64, 128, 256, 512), metavar="A,B,C,D")
    group.add_argument("--attention", choices=("none", "cbam", "bam"), default="cbam")
    group.add_argument("--placement", choices=("block", "stage"), default="block")
    group.add_argument("--stages", type=_numbers, default=(1, 2, 3, 4), metavar="S,...", help="stages with attention")
    group.add_argument("--reduction", type=int, default=16)
    group.add_argument("--kernel", type=int, default=7, help="CBAM: 3 or 7")
    group.add_argument("--pooling", choices=("avg", "max", "avg+max"), default="avg+max", help="CBAM's channel gate")
    group.add_argument("--dilation", type=int, default=4, help="BAM")
    group.add_argument("--combine", choices=("add", "mul"), default="add", help="BAM: how the branches meet")


def _configure_recipe(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, default=30)
    group.add_argument("--batch-size", type=int, default=128)
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    group.add_argument("--learning-rate", type=float, default=0.1)
    group.add_argument("--weight-decay", type=float, default=5e-4)
    group.add_argument("--warmup-epochs", type=float, default=2.0)
    group.add_argument("--label-smoothing", type=float, default=0.1)
    group.add_argument("--ema-decay", type=float, default=0.999, help="of the weights, per step; 0: none")
    group.add_argument("--seed", type=int, default=0)


def _configure_augmentation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--flip", action="store_true", help="mirror half of the pictures")
    group.add_argument("--shift", type=float, default=0.0, help="largest, as a fraction of the side")
    group.add_argument("--rotate", type=float, default=0.0, help="largest, in degrees")
    group.add_argument("--scale", type=float, default=0.0, help="largest, as a fraction")
    group.add_argument("--jitter", type=float, default=0.0, help="of brightness, contrast, saturation")
    group.add_argument("--erase", type=float, default=0.0, help="chance of a rectangle of noise")


def run(args: argparse.Namespace) -> int:
    """Train, then measure once on the test part; 0 also where --max-minutes ended it early."""
    import torch

    if args.threads is not None:
        if args.threads < 1:
            raise ConfigError(f"--threads must be positive, got {args.threads}")
        torch.set_num_threads(args.threads)
    _check_output(args.output, replace=args.resume or args.force)
    trainer = build_trainer(args)
    print(trainer.dataset.sizes, flush=True)
    if not trainer.run(args.output, args.max_minutes):
        print(f"stopped after epoch {trainer.epoch}; go on with --resume")
        return 0
    _measure(trainer, args.output)
    for entry in trainer.checkpoint.evaluation:
        print(f"{entry['dataset']} {entry['split']}: accuracy {entry['accuracy']:.4f} on {entry['images']} pictures")
    return 0


def _check_output(output: Path, *, replace: bool) -> None:
    """Find out now, not after an epoch, that the checkpoint cannot be written."""
    if output.is_dir():
        raise ConfigError(f"--output: {output} is a folder")
    if output.exists() and not replace:
        raise ConfigError(f"--output: {output} exists; go on from it with --resume, or replace it with --force")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--output: {error}") from error


def build_trainer(args: argparse.Namespace) -> Trainer:
    """The training that the flags describe, new or taken up from its checkpoint."""
    from attnserve.export.checkpoint import Checkpoint
    from attnserve.export.training import Trainer

    dataset, preprocessing = load_dataset(args)
    checkpoint = Checkpoint(_architecture(args, len(dataset.labels)), preprocessing, dataset.labels, {})
    checkpoint.training = _training_record(args, dataset)
    if args.resume:
        saved = Checkpoint.load(args.output)
        if saved.resume is None:
            raise ConfigError(f"{args.output} is finished; there is nothing to resume")
        if saved.training["command"] != checkpoint.training["command"]:
            raise ConfigError(f"--resume: the checkpoint was started by `{saved.training['command']}`")
        checkpoint = saved
    return Trainer(_recipe(args), checkpoint, dataset)


def load_dataset(args: argparse.Namespace) -> tuple[Dataset, Preprocessing]:
    """The data set and the preprocessing, with mean and deviation measured on its training part."""
    import dataclasses

    from attnserve import datasets
    from attnserve.card import Preprocessing

    size = args.image_size or (28 if args.dataset == datasets.FASHION_MNIST else 96)
    preprocessing = Preprocessing(size, size)
    rule = datasets.SplitRule(args.split, args.test_fraction, args.validation_fraction, args.guard, args.seed)
    dataset = datasets.load(args.dataset, args.data_dir, args.licence, preprocessing, rule)
    if args.validation_fraction and not len(dataset.validation):
        raise ConfigError(
            f"--validation-fraction {args.validation_fraction:g} leaves no picture to validate on ({dataset.sizes});"
            " take a larger one, or leave it out"
        )
    mean, std = datasets.colour_statistics(dataset.train)
    return dataset, dataclasses.replace(preprocessing, mean=mean, std=std)


def _architecture(args: argparse.Namespace, num_classes: int) -> Architecture:
    from attnserve.export.architecture import Architecture, Attention

    attention = None
    if args.attention != "none":
        names = ("placement", "stages", "reduction", "kernel", "pooling", "dilation", "combine")
        attention = Attention(args.attention, **{name: getattr(args, name) for name in names})
    return Architecture(args.depth, num_classes, args.stem, args.stem_stride, args.widths, attention)


def _recipe(args: argparse.Namespace) -> Recipe:
    import torch

    from attnserve.export.augment import Augmentation
    from attnserve.export.training import Recipe

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = (
        "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "warmup_epochs", "label_smoothing",
        "ema_decay", "seed", "amp",
    )  # fmt: skip
    variations = ("flip", "shift", "rotate", "scale", "jitter", "erase")
    augmentation = Augmentation(**{name: getattr(args, name) for name in variations})
    return Recipe(**{name: getattr(args, name) for name in names}, device=device, augmentation=augmentation)


def _training_record(args: argparse.Namespace, dataset: Dataset) -> dict[str, object]:
    from attnserve.record import command_line, versions

    return {
        "dataset": dataset.name,
        "licence": dataset.licence,
        "images": len(dataset.train),
        "split": dataset.split,
        "command": command_line("train", args, args.parser),
        "seed": args.seed,
        "versions": versions("torch", "numpy", "pillow"),
    }


def _measure(trainer: Trainer, output: Path) -> None:
    """Measure the finished weights on the test part, once, and record it in the checkpoint."""
    from attnserve.measure import evaluation

    checkpoint = trainer.checkpoint
    checkpoint.evaluation = evaluation(trainer.classifier, trainer.dataset, "torch", checkpoint.training["command"])
    checkpoint.save(output)
