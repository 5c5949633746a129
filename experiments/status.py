"""Show how a sweep stands: `python -m experiments.status PATH… [--cancel]`.

PATH is the folder of a sweep. Nothing there is changed, be a command at work or not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: only the folder of this file is on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bwdln import engines
from bwdln.errors import InvalidOption
from experiments import display


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print how each sweep stands; what is wrong is said in one line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.status", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="the folder of a sweep")
    parser.add_argument(
        "--cancel",
        action="store_true",
        help="tell its tasks that wait or run to save what they have and to end",
    )
    given = parser.parse_args(arguments)
    try:
        for path in given.paths:
            if given.cancel:
                names = engines.cancel(path)
                print(f"cancelled  {', '.join(names) or 'nothing: no task waits or runs'}")
            else:
                print("\n".join(display.status(engines.look(path))))
    except InvalidOption as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
