"""`attnserve classify --tile`: large pictures in tiles; one prediction for each picture, and maps over the whole of it.

Owns its flags, the two ways to print and the exit code; what the files hold is `attnserve.tiles.files`'.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnserve.commands.connecting import reason
from attnserve.errors import ConfigError

if TYPE_CHECKING:
    from attnserve.client import Client, Explain, ModelInfo, Prediction
    from attnserve.tiles import Source, TiledResult
    from attnserve.tiles.files import TileFiles


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags; imports nothing heavy."""
    parser.add_argument("--tile", type=_pixels, metavar="S",
                        help="cut each picture (TIFF too) into tiles of S x S pixels; maps show the whole")  # fmt: skip
    parser.add_argument("--stride", type=_pixels, metavar="T",
                        help="pixels from one tile to the next; overlaps are averaged (default: S)")  # fmt: skip


def _pixels(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number of pixels, at least 1, got {text!r}")
    return int(text)


def check(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for flags that do not go together."""
    if args.tile is None:
        if args.stride is not None:
            raise ConfigError("--stride: needs --tile")
        return
    if args.stride is not None and args.stride > args.tile:
        raise ConfigError(
            f"--stride: {args.stride} leaves gaps between tiles of {args.tile} pixels; at most {args.tile}"
        )


def run(
    client: Client,
    info: ModelInfo,
    args: argparse.Namespace,
    explain: Explain | None,
    sites: Sequence[str],
    folder: Path | None,
) -> int:
    """Classify every picture in tiles; 1 if any failed, or any tile of one.

    Args:
        explain: One answer for all tiles: without classes, those that are best for the whole picture.
        sites: Whose maps are stitched.
        folder: For the maps; None for none.
    """
    from attnserve.client import ClientError
    from attnserve.decode import prepare
    from attnserve.tiles import classify_tiles, open_picture
    from attnserve.tiles.files import TileFiles

    prepare()  # the user's own pictures may have more pixels than Pillow's limit
    files = TileFiles(folder, args.format or "png") if folder else None
    report = _JsonLines(info, args.top_k) if args.json else _Table(info, args.top_k, args.images)
    failed = 0
    for index, image in enumerate(args.images):
        try:
            with open_picture(Path(image)) as source:
                result = classify_tiles(
                    client,
                    source,
                    model=info.name,
                    version=info.version,
                    tile=args.tile,
                    stride=args.stride,
                    attention=folder is not None and bool(sites),
                    sites=sites,
                    explain=explain,
                    timeout_s=args.timeout_s,
                )
                complete = report.answered(image, result)
                saved = files is None or _saved(files, Path(image), index, source, result, args.top_k)
                failed += not (complete and saved)
        except (ClientError, OSError) as error:
            failed += 1
            report.failed(image, error)
    if files and files.written:
        notes = sys.stderr if args.json else sys.stdout
        print(f"{len(files.written)} files written to {folder}: {files.written[0].name} ...", file=notes)
    return 1 if failed else 0


def _saved(files: TileFiles, image: Path, index: int, source: Source, result: TiledResult, classes: int) -> bool:
    try:
        files.save(image, index, source, result, classes)
    except OSError as error:
        print(f"attnserve classify: {image}: --maps: {error}", file=sys.stderr)
        return False
    return True


def _missing(result: TiledResult) -> str | None:
    """What to say of tiles that failed."""
    if not result.failures:
        return None
    first = result.failures[0]
    number = f"{len(result.failures)} of {result.grid.tiles} tiles failed"
    return f"{number}; the first, at row {first.top} and column {first.left} of pixels: {first.error}"


class _JsonLines:
    """One object for each picture and line; nothing else on stdout."""

    def __init__(self, info: ModelInfo, top_k: int) -> None:
        self._info, self._top_k = info, top_k

    def answered(self, image: str, result: TiledResult) -> bool:
        """Print what was found; whether every tile was answered."""
        grid = result.grid
        shape = {"rows": len(grid.tops), "columns": len(grid.lefts), "tile": [grid.tile_height, grid.tile_width]}
        mean, greatest = result.predictions("mean", self._top_k), result.predictions("max", self._top_k)
        self._print(image, mean, greatest, _missing(result), shape | {"stride": grid.stride})
        return not result.failures

    def failed(self, image: str, error: Exception) -> None:
        self._print(image, (), (), reason(error), None)

    def _print(
        self,
        image: str,
        mean: Sequence[Prediction],
        greatest: Sequence[Prediction],
        error: str | None,
        grid: dict[str, Any] | None,
    ) -> None:
        line = {
            "image": image,
            "model": self._info.name,
            "version": self._info.version,
            "predictions": [_plain(each) for each in mean],
            "max_predictions": [_plain(each) for each in greatest],
            "grid": grid,
            "error": error,
        }
        print(json.dumps(line), flush=True)


def _plain(prediction: Prediction) -> dict[str, str | int | float]:
    return {"label": prediction.label, "index": prediction.index, "probability": prediction.probability}


class _Table:
    """Columns for people; what failed goes to stderr."""

    def __init__(self, info: ModelInfo, top_k: int, images: list[str]) -> None:
        self._top_k = top_k
        self._image_width = max(map(len, ("image", *images)))
        self._label_width = max(map(len, ("label", *info.labels)))
        print(f"{info.name} version {info.version}, {info.execution_provider}")
        self._row("image", "rank", "label", "mean", "max")

    def answered(self, image: str, result: TiledResult) -> bool:
        """Print what was found; whether every tile was answered."""
        for rank, each in enumerate(result.predictions(top_k=self._top_k), start=1):
            greatest = f"{result.max[each.index]:.4f}"
            self._row(image if rank == 1 else "", str(rank), each.label, f"{each.probability:.4f}", greatest)
        missing = _missing(result)
        if missing:
            print(f"attnserve classify: {image}: {missing}", file=sys.stderr)
        return missing is None

    def failed(self, image: str, error: Exception) -> None:
        print(f"attnserve classify: {image}: {reason(error)}", file=sys.stderr)

    def _row(self, image: str, rank: str, label: str, mean: str, greatest: str) -> None:
        image = "".join(each if each.isprintable() else "?" for each in image)  # a name must not steer the terminal
        print(
            f"{image:<{self._image_width}}  {rank:>4}  {label:<{self._label_width}}  {mean:>6}  {greatest:>6}".rstrip()
        )
