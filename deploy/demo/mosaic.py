"""Writes mosaic.png beside it: eighty of the Fashion-MNIST test set, ten in a row; `classify --tile 28` reads it.

Their source and licence are in tests/data/README.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
ROWS, COLUMNS, SIDE = 8, 10, 28


def main() -> None:
    with np.load(HERE.parents[1] / "tests/data/fashion_mnist_test_1000.npz") as data:
        things = data["images"][: ROWS * COLUMNS].reshape(ROWS, COLUMNS, SIDE, SIDE)
    pixels = things.transpose(0, 2, 1, 3).reshape(ROWS * SIDE, COLUMNS * SIDE)  # (224, 280) grey
    Image.fromarray(pixels).save(HERE / "mosaic.png", optimize=True)


if __name__ == "__main__":
    main()
