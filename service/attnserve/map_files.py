"""Attention maps as files: one figure for each picture, or the arrays as the server sent them.

Owns the names of the files; the drawing is `attnserve.render`'s. Knows no server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from attnserve.client.messages import Classification
from attnserve.decode import DecodeLimits, upright_rgb
from attnserve.errors import ConfigError, InvalidArgument
from attnserve.render import Panel, figure

OWN_PICTURES = DecodeLimits(max_bytes=1 << 30, max_pixels=1 << 28)
"""For pictures that the user has; the server, which has seen them before, has limits of its own."""


class MapFiles:
    """Writes the maps of one picture after another into a folder, which is made if need be.

    Args:
        form: `png` writes `<stem>.attention.png`, every site over the photo; `npy` writes `<stem>.<site>.spatial.npy`,
            (h, w) float32 at feature resolution.

    Attributes:
        written: The files written so far.
    """

    def __init__(self, folder: Path, form: Literal["png", "npy"]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"maps: {error}") from error
        self._folder = folder
        self._save = self._save_figure if form == "png" else self._save_arrays
        self._taken: set[str] = set()
        self.written: list[Path] = []

    def save(self, image: Path, index: int, answer: Classification) -> None:
        """Write the maps of picture number `index`; raises `OSError` where a file cannot be read or written.

        A stem that an earlier picture had gets `-<index>` appended.
        """
        stem = image.stem
        while stem in self._taken:
            stem = f"{stem}-{index}"
        self._taken.add(stem)
        self._save(image, stem, answer)

    def _save_figure(self, image: Path, stem: str, answer: Classification) -> None:
        try:
            photo = upright_rgb(image.read_bytes(), OWN_PICTURES)
        except InvalidArgument as error:
            raise OSError(str(error)) from error
        path = self._folder / f"{stem}.attention.png"
        figure(photo, _title(image, answer), _panels(answer)).save(path)
        self.written.append(path)

    def _save_arrays(self, image: Path, stem: str, answer: Classification) -> None:  # noqa: ARG002
        for site in answer.attention:
            if site.spatial is not None and site.spatial.values is not None:
                path = self._folder / f"{stem}.{site.site.replace('/', '_')}.spatial.npy"
                np.save(path, site.spatial.values)
                self.written.append(path)


def _title(image: Path, answer: Classification) -> str:
    predictions = "  ·  ".join(f"{each.label} {each.probability:.1%}" for each in answer.predictions)
    return f"{image.name}\n{predictions}\n{answer.model} version {answer.version}"


def _panels(answer: Classification) -> list[Panel]:
    """A panel for each site: BAM's gate, averaged over channels, CBAM's spatial gate, a transformer's shares."""
    panels = []
    for site in answer.attention:
        shown = site.spatial if site.combined is None else site.combined
        if shown is not None and shown.values is not None:
            panels.append(Panel(site.site, shown.values, answer.view))
    return panels
