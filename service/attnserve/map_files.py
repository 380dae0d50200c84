"""Maps of attention and of classes as files: one figure for each picture, or the arrays as the server sent them.

Owns the names of the files; what they show is `attnserve.evidence`'s, the drawing `attnserve.render`'s. Knows no
server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from attnserve.canvas import printable
from attnserve.client.messages import Classification, SpatialMap
from attnserve.decode import DecodeLimits, upright_rgb
from attnserve.errors import ConfigError, InvalidArgument
from attnserve.evidence import ATTENTION_NOTE, EVIDENCE_NOTE, attention_panels, explanation_panels, header
from attnserve.render import figure, figure_svg

MapForm: TypeAlias = Literal["png", "svg", "npy"]

OWN_PICTURES = DecodeLimits(max_bytes=1 << 30, max_pixels=1 << 28)
"""For pictures that the user has; the server, which has seen them before, has limits of its own."""


class Names:
    """Names of files for one picture after another, each of one line and in the folder, whatever the picture's is."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def stem(self, image: Path, index: int) -> str:
        """The picture's stem; with `-<index>` appended where an earlier picture had it."""
        stem = safe(image.stem)
        while stem in self._taken:
            stem = f"{stem}-{index}"
        self._taken.add(stem)
        return stem


def safe(name: str) -> str:
    """The name with `_` for slashes and for what a terminal or a file manager might obey: controls, directions."""
    return "".join(each if each.isprintable() and each not in "/\\" else "_" for each in name)


def folder_of_maps(folder: Path) -> Path:
    """The folder, made if need be. Raises `ConfigError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"--maps: {printable(str(folder))} is a file; maps are saved in a folder") from None
    except OSError as error:
        raise ConfigError(f"--maps: {error}") from error
    return folder


class MapFiles:
    """Writes the maps of one picture after another into a folder, which is made if need be.

    Args:
        form: `png` and `svg` write one figure, `<stem>.attention.<form>`, or `<stem>.explanation.<form>` where the
            answer has explanations: every map of the answer over the photo. `npy` writes (h, w) float32 at feature
            resolution: `<stem>.<site>.spatial.npy` and `<stem>.<method>.<layer>.<class index>.npy`.
        top_k: How many predictions a figure names; 0 for all of the answer.

    Attributes:
        written: The files written so far.
    """

    def __init__(self, folder: Path, form: MapForm, top_k: int = 0) -> None:
        self._folder = folder_of_maps(folder)
        self._form = form
        self._top_k = top_k
        self._names = Names()
        self.written: list[Path] = []

    def save(self, image: Path, index: int, answer: Classification) -> None:
        """Write the maps of picture number `index`; raises `OSError` where a file cannot be read or written."""
        stem = self._names.stem(image, index)
        if self._form == "npy":
            self._save_arrays(stem, answer)
        else:
            self._save_figure(image, stem, answer)

    def _save_figure(self, image: Path, stem: str, answer: Classification) -> None:
        try:
            photo = upright_rgb(image.read_bytes(), OWN_PICTURES)
        except InvalidArgument as error:
            raise OSError(str(error)) from error
        panels, groups = attention_panels(answer), explanation_panels(answer)
        notes = [ATTENTION_NOTE] * bool(panels) + [EVIDENCE_NOTE] if groups else []
        path = self._folder / f"{stem}.{'explanation' if groups else 'attention'}.{self._form}"
        shown = answer.predictions[: self._top_k or None]
        title = "\n".join(header(str(image), shown, answer.model, answer.version))
        if self._form == "svg":
            path.write_text(figure_svg(photo, title, panels, groups, notes), encoding="utf-8")
        else:
            figure(photo, title, panels, groups, notes).save(path)
        self.written.append(path)

    def _save_arrays(self, stem: str, answer: Classification) -> None:
        for site in answer.attention:
            self._save_array(stem, f"{site.site}.spatial", site.spatial)
        for each in answer.explanations:
            self._save_array(stem, f"{each.method}.{each.layer}.{each.class_index}", each.map)

    def _save_array(self, stem: str, name: str, found: SpatialMap | None) -> None:
        if found is not None and found.values is not None:
            path = self._folder / f"{stem}.{safe(name)}.npy"
            np.save(path, found.values)
            self.written.append(path)
