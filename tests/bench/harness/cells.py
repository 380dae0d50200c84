"""What can be measured, by name, and what is by default; knows no server and no model file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

SMALL, LARGE = "fashion-mnist-cbam", "resnet50-cbam"
SHORT_NAMES = {SMALL: "small", LARGE: "resnet50"}
TRANSPORTS = ("grpcio", "native")


@dataclass(frozen=True)
class Cell:
    """One load.

    Attributes:
        model: `SMALL` or `LARGE`.
        form: `unary` (Classify), `stream` (ClassifyStream) or `infer` (ModelInfer, probabilities of all classes).
        picture: `raw` pixels of the view's size, or `jpeg` files.
        images: Per request.
        concurrency: Requests on their way at once: of as many callers, or of a few streams together.
        transports: Which of the server's transports are measured side by side.
    """

    model: str
    form: str
    picture: str
    images: int
    concurrency: int
    transports: tuple[str, ...] = TRANSPORTS

    @property
    def name(self) -> str:
        """E.g. `small/unary/raw/1x16`: one image per request, 16 at once."""
        return f"{SHORT_NAMES[self.model]}/{self.form}/{self.picture}/{self.images}x{self.concurrency}"


def _cells(model: str, loads: str, transports: tuple[str, ...] = TRANSPORTS) -> list[Cell]:
    """Of `FORM/PICTURE/IMAGESxCONCURRENCY ...`."""
    found = []
    for form, picture, size in (load.split("/") for load in loads.split()):
        images, concurrency = map(int, size.split("x"))
        found.append(Cell(model, form, picture, images, concurrency, transports))
    return found


FULL = (
    *_cells(SMALL, "unary/raw/1x1 unary/raw/1x4 unary/raw/1x16 unary/raw/1x64"),
    *_cells(SMALL, "unary/raw/8x1 unary/raw/8x4 unary/raw/8x16 unary/raw/32x1 unary/raw/32x4 unary/raw/32x16"),
    *_cells(SMALL, "unary/jpeg/1x1 unary/jpeg/1x16 unary/jpeg/1x64 unary/jpeg/32x4"),
    *_cells(SMALL, "stream/raw/1x1 stream/raw/1x16 stream/raw/1x64 stream/jpeg/1x16"),
    # A call is next to nothing beside 80 ms of this network: where the transport cannot matter, one of them is enough.
    *_cells(LARGE, "unary/raw/1x1 unary/raw/1x16 unary/raw/1x64 unary/raw/32x4"),
    *_cells(LARGE, "unary/raw/1x4 unary/raw/8x4 unary/jpeg/1x1 unary/jpeg/1x16 unary/jpeg/32x4", ("grpcio",)),
    *_cells(LARGE, "stream/raw/1x16 stream/jpeg/1x16", ("grpcio",)),
)
QUICK = (
    *_cells(SMALL, "unary/raw/1x1 unary/raw/1x16 unary/raw/1x64 unary/raw/32x4 unary/jpeg/1x16 stream/raw/1x16"),
    *_cells(LARGE, "unary/raw/1x16 unary/raw/8x4", ("grpcio",)),
)
PEERS = (
    *_cells(SMALL, "infer/raw/1x1 infer/raw/1x4 infer/raw/1x16 infer/raw/1x64"),
    *_cells(LARGE, "infer/raw/1x1 infer/raw/1x4 infer/raw/1x16 infer/raw/1x64", ("grpcio",)),
)


def chosen(cells: Iterable[Cell], patterns: Iterable[str]) -> list[Cell]:
    """Those whose name fits one of the patterns (`small/*`); all of them where there is no pattern."""
    patterns = list(patterns)
    return [cell for cell in cells if not patterns or any(fnmatch(cell.name, pattern) for pattern in patterns)]
