"""What a study is: more than one run, from one configuration, with its own table and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bwdln.config import Config
from bwdln.lanes import Progress
from bwdln.registry import Registry, load_plugins

#: Name -> function (config, folder, on_progress, *, options) -> Findings. The configuration is that of
#: the whole job; a study derives its runs from it. It writes into the folder and replaces nothing there.
STUDIES = Registry("study")

#: Called with where the run in progress stands.
OnProgress = Callable[[Progress], None]


class Findings(NamedTuple):
    """What a study came to, for its user to read.

    `columns` and `rows`: a table of texts. `notes`: sentences. `results`, `tables`, `figures`: the files
    that were written. `score`: what a sweeper that optimizes looks at. `interrupted`: whether Ctrl-C
    ended it early.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]
    results: list[Path]
    tables: list[Path]
    figures: list[Path]
    score: float
    interrupted: bool


def conduct(config: Config, folder: str | Path, on_progress: OnProgress | None = None) -> Findings:
    """Conduct the study that `config.study` chooses, and write what it finds into the folder.

    Raises `InvalidOption`, before anything compiles, for a study that cannot be conducted.
    """
    if config.study is None:
        raise ValueError("the configuration has no study")
    load_plugins(config.plugins)
    choice = STUDIES.resolved(config.study)
    findings: Findings = STUDIES[choice.name](config, Path(folder), on_progress, **dict(choice.options))
    return findings
