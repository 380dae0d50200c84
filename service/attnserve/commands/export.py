"""`attnserve export`: from a checkpoint to a model repository entry.

Owns the flags; the work is `attnserve.export.entry`'s.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attnserve.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from attnserve.card import Card, Preprocessing
    from attnserve.export.augment import Augmentation
    from attnserve.export.calibration import CalibrationSet
    from attnserve.export.checkpoint import Checkpoint
    from attnserve.export.precision import Precision


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.set_defaults(parser=parser)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a torch or safetensors file, from anyone")
    parser.add_argument("--model-repository", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", required=True, metavar="MODEL")
    parser.add_argument("--version", type=int, default=1, metavar="N")
    parser.add_argument("--image-size", type=int, metavar="N", help="the view is N x N (default: as trained)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="one label per line, instead of the checkpoint's")
    parser.add_argument("--max-batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--images", type=Path, metavar="DIR", help="real pictures to check parity on, besides noise")
    parser.add_argument("--evaluate", metavar="DATASET",
                        help="measure the exported model: on the test part of what it was trained on, or on all"
                        " pictures of another folder with a sub-folder per class")  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the Fashion-MNIST idx files")
    parser.add_argument("--explain-layers", type=_names, default=(), metavar="NAMES",
                        help="earlier layers to explain classes by (Grad-CAM), separated by commas: layer1 to layer4,"
                        " attention sites or a transformer's blocks; each gets a file of the model's size")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace the version where it exists")
    _add_precision_arguments(parser.add_argument_group("precision and calibration"))
    _configure_dialect(parser.add_argument_group("what the checkpoint does not say (`attnserve inspect` lists it)"))


def _configure_dialect(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dialect", metavar="NAME", help="whose code wrote the checkpoint, where several fit")
    group.add_argument("--combine", choices=("add", "mul"), help="BAM: how the branches meet")
    group.add_argument("--dilation", type=int, metavar="D", help="BAM: of the spatial branch's 3x3 convolutions")
    group.add_argument("--spatial-order", choices=("avg,max", "max,avg"), help="CBAM: what the spatial gate stacks")
    group.add_argument("--pooling", choices=("avg", "max", "avg+max"), help="CBAM: what the channel gate pools")
    group.add_argument("--residual", choices=("yes", "no"), help="CBAM: whether it adds its input to its output")
    group.add_argument("--heads", type=int, metavar="N", help="ViT: attention heads in every block")
    group.add_argument("--resize", type=int, metavar="N", help="length of the shorter side before the centre crop")
    group.add_argument("--interpolation", choices=("nearest", "bilinear", "bicubic"))
    group.add_argument("--mean", type=_colour, metavar="R,G,B", help="on the scale of 0 to 1")
    group.add_argument("--std", type=_colour, metavar="R,G,B")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _colour(text: str) -> tuple[float, float, float]:
    red, green, blue = map(float, text.split(","))
    return red, green, blue


def _add_precision_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32",
                       help="how the file computes; its inputs and outputs are the same for all")  # fmt: skip
    group.add_argument("--calibration-images", type=Path, metavar="DIR",
                       help="real pictures for fp16's and int8's ranges (default: --calibrate's)")  # fmt: skip
    group.add_argument("--max-accuracy-drop", type=float, default=0.5, metavar="POINTS",
                       help="refuse fp16 or int8 where it costs more on --evaluate's pictures")  # fmt: skip
    group.add_argument("--calibrate", metavar="DATASET",
                       help="fit the temperature of the probabilities on `fashion-mnist`'s training part or on a"
                       " folder with a sub-folder per class")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the entry, and say where and how exact it is."""
    import onnxruntime

    from attnserve import datasets
    from attnserve.export.entry import Job, Target, write_entry
    from attnserve.measure import evaluation
    from attnserve.record import command_line

    target = Target(args.model_repository, args.name, args.version, args.max_batch_size, args.force)
    checkpoint = labelled(_load(args), args.labels)
    command = command_line("export", args, args.parser)
    pictures = _pictures(args.images, checkpoint.preprocessing) if args.images else None
    evaluate, held_out = None, None
    if args.evaluate:
        view = checkpoint.preprocessing
        dataset = datasets.held_out(args.evaluate, args.data_dir, checkpoint.training, view, checkpoint.labels)
        held_out = dataset.test
        pictures = held_out.images if pictures is None else pictures
        engine = f"onnxruntime {onnxruntime.__version__} CPU"
        evaluate = functools.partial(evaluation, dataset=dataset, measured_with=engine, command=command)

    calibration, precision = _numbers(args, checkpoint)
    job = Job(
        command,
        pictures,
        evaluate,
        held_out=held_out,
        calibration=calibration,
        precision=precision,
        explain_layers=args.explain_layers,
    )
    card = write_entry(checkpoint, target, job)
    print(f"{target.version_folder}: {len(card.sites)} attention sites, parity {max(card.parity.values()):.1e}")
    for entry in card.evaluation:
        print(f"{entry['dataset']} {entry['split']}: accuracy {entry['accuracy']:.4f} on {entry['images']} pictures")
    _report(card)
    return 0


def _load(args: argparse.Namespace) -> Checkpoint:
    """The checkpoint as the flags complete it; notes what was assumed."""
    from attnserve.export.dialects.loader import TRAIN, Choices, recognise

    facts = {name: getattr(args, name) for name in ("combine", "dilation", "spatial_order", "pooling", "heads")}
    if args.residual:
        facts["residual"] = args.residual == "yes"
    view = {name: getattr(args, name) for name in ("resize", "interpolation", "mean", "std")}
    view |= {"height": args.image_size, "width": args.image_size}
    found = recognise(
        args.checkpoint,
        Choices(
            args.dialect,
            {name: value for name, value in facts.items() if value is not None},
            {name: value for name, value in view.items() if value is not None},
        ),
    )
    checkpoint = found.settled()
    if found.dialect != TRAIN:
        print(f"{args.checkpoint.name}: dialect {found.dialect}")
        if not args.labels:
            print(f"no --labels: the classes are called {checkpoint.labels[0]!r} to {checkpoint.labels[-1]!r}")
    return checkpoint


def _numbers(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[CalibrationSet | None, Precision]:
    """What the flags say of the temperature and of the precision."""
    from attnserve.export.calibration import calibration_set
    from attnserve.export.precision import CALIBRATION_IMAGES, Precision

    calibration, images = None, None
    if args.calibrate:
        augmentation = functools.partial(_training_augmentation, checkpoint)
        calibration = calibration_set(args.calibrate, args.data_dir, checkpoint, augmentation)
        images = calibration.pictures.images
    if args.calibration_images and args.precision != "fp32":
        images = _pictures(args.calibration_images, checkpoint.preprocessing, CALIBRATION_IMAGES)
    return calibration, Precision(args.precision, images, args.max_accuracy_drop)


def _training_augmentation(checkpoint: Checkpoint) -> Augmentation:
    """How the training varied its pictures, read from the command line that the checkpoint carries."""
    from attnserve.commands import train
    from attnserve.export.augment import Augmentation

    parser = argparse.ArgumentParser(exit_on_error=False)
    train.configure(parser)
    try:
        words = shlex.split(str(checkpoint.training["command"]))[2:]
        args = parser.parse_args(words)
    except (KeyError, ValueError, argparse.ArgumentError, SystemExit) as error:
        raise ConfigError("--calibrate: the checkpoint does not tell how its training varied the pictures") from error
    return Augmentation(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Augmentation)})


def _report(card: Card) -> None:
    """What precision and calibration changed, one line each."""
    if cost := card.quantisation:
        print(
            f"{card.precision}: accuracy {cost['accuracy']:.4f}, fp32 {cost['accuracy_fp32']:.4f},"
            f" same answer {cost['agreement']:.4f} of {cost['images']} pictures"
        )
    if fitted := card.calibration:
        measured = fitted.get("test", fitted["fit"])
        print(
            f"temperature {fitted['temperature']}, fitted on {fitted['dataset']}, {fitted['part']}: ECE"
            f" {measured['ece_before']:.4f} -> {measured['ece_after']:.4f} on {measured['images']} pictures"
        )
        for doubt in fitted["doubts"]:
            print(f"attnserve export: doubtful temperature: {doubt}", file=sys.stderr)


def labelled(checkpoint: Checkpoint, labels: Path | None) -> Checkpoint:
    """The checkpoint with other labels."""
    if labels:
        try:
            names = tuple(labels.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"labels: {error}") from error
        checkpoint = dataclasses.replace(checkpoint, labels=names)
    if len(checkpoint.labels) != checkpoint.architecture.num_classes:
        raise ConfigError(f"{len(checkpoint.labels)} labels for {checkpoint.architecture.num_classes} classes")
    return checkpoint


def _pictures(folder: Path, preprocessing: Preprocessing, most: int = 5) -> NDArray[np.uint8]:
    import numpy as np

    from attnserve import datasets
    from attnserve.measure import spaced

    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in datasets.SUFFIXES]
    if not paths:
        raise ConfigError(f"no pictures in {folder}")
    return np.stack([datasets.picture(path, preprocessing) for path in paths[spaced(len(paths), most)]])
