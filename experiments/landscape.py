"""Look at the critical points of a loss: `python -m experiments.landscape --help`.

Tab completion runs this file as a script; it looks for the text @hydra.main in it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

if not __package__:  # run as a script: only the folder of this file is on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bwdln.config import Landscape
from experiments import command_line

log = logging.getLogger("experiments.landscape")  # also where this is __main__


def look(config: Landscape, folder: Path) -> float:
    """Look at the landscape of a configuration, save tables and figures in the folder, and print both.

    Returns the mean condition number at the minimizer. Ctrl-C ends it early, with exit status 130.
    """
    # JAX: not at the start, so that --help is quick.
    from bwdln import results
    from bwdln.studies import base, landscape
    from experiments import train

    log.info("configuration:\n%s", json.dumps(config.mapping(), indent=2))
    for name, value in results.provenance().items():
        log.info("%s: %s", name, value)
    began = time.perf_counter()
    found = landscape.conduct(config, folder)
    train.show_findings(found)
    about = {"name": "landscape", "title": base.title(landscape.conduct)}
    base.write_findings(found, folder, kind="landscape", seconds=time.perf_counter() - began, **about)
    tables = [*(("table", path) for path in found.tables), *train.page(config.report, folder)]
    train.report(train.ending(folder, tables, found.figures, time.perf_counter() - began))
    if found.interrupted:
        sys.exit(command_line.INTERRUPTED)
    return found.score


main = command_line.application(look, "landscape", command_line.landscape)

if __name__ == "__main__":
    main()
