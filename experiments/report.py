"""Make a page of HTML of results: `python -m experiments.report PATH… [--output FILE] [--claims]`.

PATH is the folder of a run, of a sweep, of a study or a landscape, or a folder of such folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: only the folder of this file is on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bwdln import report
from bwdln.errors import InvalidOption, check


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, write the page and say where it is; what is wrong is said in one line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a folder with results, or with such folders"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page; default: report.html in the first PATH"
    )
    parser.add_argument(
        "--claims",
        action="store_true",
        help="gather what the studies in PATH claim: a table, first on the page",
    )
    given = parser.parse_args(arguments)
    try:
        if given.claims:
            _claims(given.paths)
        page = report.make(given.paths, given.output)
    except InvalidOption as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        sys.exit(1)
    print(f"report   {page} ({page.stat().st_size / 1e6:.1f} MB)")


def _claims(paths: Sequence[Path]) -> None:
    """Gather the claims of the studies in each folder, and print them with whether they held."""
    from bwdln.studies import claims
    from experiments import display

    for path in paths:
        found = claims.gather(path)
        check(found is not None, "--claims", path, "a folder of studies that claim something")
        assert found is not None
        print("\n".join([*display.claims(found.rows), *found.notes]))


if __name__ == "__main__":
    main()
