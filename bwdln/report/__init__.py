"""A page of HTML, one file that holds all it shows, for runs, sweeps, studies and folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bwdln.errors import InvalidOption, check

if TYPE_CHECKING:
    from bwdln.report.reading import Section


def make(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of the results in those folders; returns its path.

    `output`: where; None: `report.html` in the first folder. A page that is there is replaced, at once or not
    at all. Raises `InvalidOption`, with nothing written, for a folder without results, for what is damaged,
    not ours, or newer than this version, and where the page cannot be written.
    """
    from bwdln.report import page, reading  # which load JAX

    check(bool(paths), "path", "none", "one or more folders with results")
    found = [section for path in paths for section in reading.sections(path)]
    first = paths[0] if paths[0].is_dir() else paths[0].parent
    output = first / "report.html" if output is None else output
    content = page.page(found, title(found, paths), output.parent)
    temporary = output.with_name(f".{output.name}.part")
    try:
        temporary.write_text(content, encoding="utf-8", newline="\n")
        temporary.replace(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InvalidOption("output", output, f"a file that can be written ({error.strerror})") from error
    return output


def title(sections: Sequence[Section], paths: Sequence[Path]) -> str:
    """The title of the page: of the claims, of the one result, or of the folder."""
    if len(sections) == 1 or sections[0].kind == "claims":
        return str(sections[0].title)
    return " and ".join(path.resolve().name for path in paths[:3]) + (" and more" if len(paths) > 3 else "")
