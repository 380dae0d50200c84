"""The flags that say what is to be explained, and their meaning for one model.

Owns their help and every refusal before a picture is sent; knows no connection and no file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnserve.errors import ConfigError

if TYPE_CHECKING:
    from attnserve.client import Explain, ModelInfo

DEFAULT_LAYER, DEFAULT_METHOD = "last", "gradcam"
BEST_CLASSES = 2
"""That are explained where none is chosen: the answer, and what it was nearly mistaken for."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare `--explain` and what it takes; each is None where it was not given."""
    parser.add_argument("--explain", action="store_true",
                        help="save a figure of each picture's attention and Grad-CAM of its best classes")  # fmt: skip
    add_layer(parser)
    parser.add_argument("--class", dest="classes", action="append", metavar="C",
                        help="explain this class, by index or label; may be repeated"
                             f" (default: the {BEST_CLASSES} best of each picture)")  # fmt: skip
    add_method(parser)
    parser.add_argument("--sites", metavar="S[,S2]",
                        help="attention sites to show, or all (default: in a figure of --explain the last of each"
                             " stage, else all)")  # fmt: skip


def add_layer(parser: argparse.ArgumentParser) -> None:
    """Declare `--layer`."""
    parser.add_argument("--layer", metavar="L[,L2]",
                        help=f"layers that explain (default: {DEFAULT_LAYER}, the map before the pool)")  # fmt: skip


def add_method(parser: argparse.ArgumentParser) -> None:
    """Declare `--method`."""
    parser.add_argument("--method", metavar="METHOD",
                        help="gradcam (default), hirescam, layercam, gradcam++ or counterfactual")  # fmt: skip


def wish(args: argparse.Namespace, info: ModelInfo) -> Explain | None:
    """What `--explain` asks of the model, None without it. Raises `ConfigError` for what the model does not have."""
    from attnserve.client import Explain

    if not args.explain:
        for flag, value in (("--layer", args.layer), ("--class", args.classes), ("--method", args.method)):
            if value is not None:
                raise ConfigError(f"{flag} says what to explain: it needs --explain")
        return None
    chosen = layers(args.layer, info)
    method = method_of(args.method, chosen, info)
    classes = [class_index(text, info) for text in args.classes or ()]
    return Explain(chosen, method, classes, top_k=0 if classes else min(BEST_CLASSES, len(info.labels)))


def layers(text: str | None, info: ModelInfo) -> tuple[str, ...]:
    """The layers named, each once. Raises `ConfigError` where the model cannot explain by one, or by none at all."""
    known = [each.layer for each in info.explain_layers]
    if not known:
        raise ConfigError(
            f"{info.name} version {info.version} has no explaining graphs;"
            " `attnserve export` of its checkpoint writes them (--explain-layers for earlier layers)"
        )
    chosen = _named(text or DEFAULT_LAYER)
    for layer in chosen:
        if layer not in known:
            raise ConfigError(
                f"--layer: {info.name} does not explain by {layer!r}; choose {', '.join(known)},"
                " or export it with --explain-layers"
            )
    return chosen


def method_of(text: str | None, chosen: Sequence[str], info: ModelInfo) -> str:
    """The method named, which each of the layers chosen must have. Raises `ConfigError` where one has not."""
    method = text or DEFAULT_METHOD
    for layer in info.explain_layers:
        if layer.layer in chosen and method not in layer.methods:
            raise ConfigError(f"--method: {layer.layer} has no {method!r}; choose {', '.join(layer.methods)}")
    return method


def class_index(text: str, info: ModelInfo) -> int:
    """The class of an index or else of a label. Raises `ConfigError` where it is neither."""
    if text.isascii() and text.isdecimal() and int(text) < len(info.labels):
        return int(text)
    if text in info.labels:
        return info.labels.index(text)
    some = ", ".join(info.labels[:10]) + (", ..." if len(info.labels) > 10 else "")
    raise ConfigError(f"--class: no {text!r}; an index from 0 to {len(info.labels) - 1} or a label: {some}")


def sites(args: argparse.Namespace, info: ModelInfo) -> tuple[str, ...]:
    """The attention sites that are shown, in the order of the network. Raises `ConfigError` for an unknown one."""
    from attnserve.evidence import last_of_each_stage

    if args.sites is not None and not (args.maps or args.explain):
        raise ConfigError("--sites says which maps to save: it needs --maps or --explain")
    known = tuple(site.name for site in info.sites)
    if args.sites is None and args.explain and args.format != "npy":
        return last_of_each_stage(info.sites)
    if args.sites is None or args.sites == "all":
        return known
    chosen = _named(args.sites)
    for site in chosen:
        if site not in known:
            raise ConfigError(f"--sites: {info.name} has no {site!r}; choose {', '.join(known) or 'none'}")
    return tuple(site for site in known if site in chosen)


def _named(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (each.strip() for each in text.split(",")))))
