"""Takes the pictures of Pillow's tests out of its source distribution: python unpack_corpus.py SDIST FOLDER."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path, PurePosixPath


def unpack(source: Path, folder: Path) -> int:
    """Write every file of Tests/images below the folder; returns how many there are."""
    count = 0
    with tarfile.open(source) as archive:
        for member in archive:
            _, *inside = PurePosixPath(member.name).parts
            if member.isfile() and inside[:2] == ["Tests", "images"]:
                member.name = str(PurePosixPath(*inside[2:]))
                archive.extract(member, folder, filter="data")
                count += 1
    return count


if __name__ == "__main__":
    print(f"{unpack(Path(sys.argv[1]), Path(sys.argv[2]))} files of Pillow's tests in {sys.argv[2]}")
