"""Starts: the weights a run begins with, in data coordinates, pure in their key.

A start is called as `start(key, widths, target, *, options)` and returns the layers. It is mapped
over keys; a target's eigenvalues and options that are numbers may be mapped or traced, too. Options
are checked where their numbers are known and skipped where they are traced.

Most starts draw every layer on its own. With `balanced: true` the same distribution is drawn once,
for the end-to-end matrix of shape (n, m), and the draw is spread evenly over the layers: then all
imbalances vanish (docs/theory.md §5). A draw of higher rank than the bottleneck k is replaced by
its best approximation of rank k first. The end-to-end matrix of a start that is balanced by
construction depends on the widths through m, k and n alone (`shortest`).

Importing the package registers every start in `STARTS`.
"""

from bwdln.initializations.base import STARTS, balanced, balanced_by_construction, shortest
from bwdln.initializations.from_file import file
from bwdln.initializations.independent import (
    kaiming_normal,
    kaiming_uniform,
    normal,
    small,
    uniform,
    xavier_normal,
    xavier_uniform,
)
from bwdln.initializations.rotated import rotated
from bwdln.initializations.structured import identity, low_rank, orthogonal
from bwdln.initializations.with_target import aligned, close_to_target

__all__ = [
    "STARTS",
    "aligned",
    "balanced",
    "balanced_by_construction",
    "close_to_target",
    "file",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "low_rank",
    "normal",
    "orthogonal",
    "rotated",
    "shortest",
    "small",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
]
