"""Fetch the libraries of the page anew: `python bwdln/report/vendor/refresh.py [NAME=VERSION …]`.

Run by hand, from anywhere, where npm is installed; the page itself never needs a network. Without arguments
it fetches the versions that `versions.json` names and so checks what lies here; `vega=6.4.0` changes one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
VERSIONS = HERE / "versions.json"


class Library(NamedTuple):
    """Where in its package a library and its license are, and what kind of license it is."""

    script: str
    license: str
    kind: str


#: In the order a page loads them.
LIBRARIES = {
    "jquery": Library("dist/jquery.slim.min.js", "LICENSE.txt", "MIT"),
    "datatables.net": Library("js/dataTables.min.js", "License.txt", "MIT"),
    "vega": Library("build/vega.min.js", "LICENSE", "BSD-3-Clause"),
    "vega-lite": Library("build/vega-lite.min.js", "LICENSE", "BSD-3-Clause"),
    "vega-embed": Library("build/vega-embed.min.js", "LICENSE", "BSD-3-Clause"),
}


def main(arguments: list[str]) -> None:
    """Fetch every library and write it, its license and `versions.json` beside this file."""
    known = json.loads(VERSIONS.read_text(encoding="utf-8")) if VERSIONS.is_file() else {}
    wanted = {name: entry["version"] for name, entry in known.items()}
    wanted |= dict(each.split("=", 1) for each in arguments)
    entries = {name: fetched(name, wanted.get(name, "latest")) for name in LIBRARIES}
    VERSIONS.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    for name, entry in entries.items():
        print(name, entry["version"], "same" if known.get(name) == entry else "changed")


def fetched(name: str, version: str) -> dict[str, str]:
    """Fetch one library; its entry in `versions.json`."""
    library = LIBRARIES[name]
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            script, text, about = (
                _member(archive, each) for each in (library.script, library.license, "package.json")
            )
    script = b"\n".join(line for line in script.splitlines() if not line.startswith(b"//# sourceMappingURL"))
    file, license = f"{name}.min.js", f"{name}.LICENSE.txt"
    (HERE / file).write_bytes(script + b"\n")
    (HERE / license).write_bytes(b"\n".join(line.rstrip() for line in text.splitlines()) + b"\n")
    return {
        "version": json.loads(about)["version"],
        "license": library.kind,
        "license_file": license,
        "file": file,
        "sha256": hashlib.sha256((HERE / file).read_bytes()).hexdigest(),
    }


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(f"package/{name}")
    if file is None:
        raise FileNotFoundError(name)
    return file.read()


if __name__ == "__main__":
    main(sys.argv[1:])
