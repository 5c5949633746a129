"""What the studies in a folder claim, and whether it held: the last word on a reproduction of the paper."""

from __future__ import annotations

import json
from pathlib import Path

from bwdln.errors import InvalidOption
from bwdln.studies.base import FINDINGS, Claim, Findings, write_findings, write_table

COLUMNS = ("study", "statement", "source", "predicted", "measured", "held")


def gather(folder: Path) -> Findings | None:
    """The claims of all studies in the folders below one, as a table `claims.csv`; None if there are none.

    Its findings are kept as those of a study are. The score is how many did not hold. Raises `InvalidOption`
    for a file of findings that cannot be read.
    """
    claims = [
        (path.parent.relative_to(folder).as_posix(), claim)
        for path in sorted(folder.rglob(FINDINGS))
        if path.parent != folder
        for claim in read(path)
    ]
    if not claims:
        return None
    rows: list[tuple[str, ...]] = [
        (study, *claim[:4], "yes" if claim.held else "no") for study, claim in claims
    ]
    failed = sum(not claim.held for _, claim in claims)
    notes = [f"{len(claims) - failed} of {len(claims)} claims held"]
    tables = [write_table(folder / "claims.csv", COLUMNS, rows)]
    found = Findings(COLUMNS, rows, notes, [], tables, [], float(failed), False)
    write_findings(
        found, folder, kind="claims", name="claims", title="Claims, and whether they held", seconds=0
    )
    return found


def read(path: Path) -> list[Claim]:
    """The claims in a file of findings. Raises `InvalidOption` for a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Claim(**claim) for claim in content.get("claims", [])]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidOption("path", path, f"findings of a study, in JSON ({error})") from error
