"""What every part of the theory takes, said in one line where it gets something else.

Numbers are looked at where they are known; inside a transformation of JAX they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from bwdln.errors import check, check_one_of
from bwdln.initializations.base import known
from bwdln.types import Array, Scalar, Spectrum

#: The losses the closed forms are about, by the names of `losses`.
LossName: TypeAlias = Literal["bures_wasserstein", "frobenius"]
#: Positions in the descending eigenvalues, from 0.
IndexSet: TypeAlias = Sequence[int] | Array


def check_loss(loss: str, tau: Scalar) -> None:
    """Refuse other losses, a τ that is no finite number from 0, and one above 0 with Frobenius."""
    check_one_of("loss", loss, LossName)
    if known(tau):
        check(0 <= tau < np.inf, "tau", tau, "a finite number from 0")
        check(loss != "frobenius" or tau == 0, "tau", tau, "0 with frobenius: it has no tau")


def check_depth(depth: Scalar) -> None:
    """Refuse depths below 1."""
    if known(depth):
        check(1 <= depth < np.inf, "depth", depth, "a finite number from 1")


def check_spectrum(eigenvalues: Spectrum) -> None:
    """Refuse eigenvalues that are not finite, not non-negative, or not in descending order."""
    check(np.ndim(eigenvalues) == 1, "eigenvalues", f"shape {np.shape(eigenvalues)}", "one dimension, (n,)")
    check(len(eigenvalues) > 0, "eigenvalues", "none", "at least one")
    if known(eigenvalues):
        values = np.asarray(eigenvalues)
        sound = bool(np.all(np.isfinite(values)) and np.all(values >= 0))
        check(sound, "eigenvalues", values[~(np.isfinite(values) & (values >= 0))], "finite numbers from 0")
        ordered = bool(np.all(values[:-1] >= values[1:]))
        check(ordered, "eigenvalues", "an ascending pair", "descending numbers")


def check_index_set(
    eigenvalues: Spectrum, index_set: IndexSet, *, tau: Scalar, loss: str, rank: int | None = None
) -> None:
    """Refuse positions that are out of range or repeated, modes not above τ, and more than `rank`."""
    count = len(index_set)
    check(rank is None or count <= rank, "index_set", f"{count} positions", f"at most the rank {rank}")
    if not known(index_set):
        return
    fractions = [each for each in index_set if each != int(each)]
    check(not fractions, "index_set", fractions, "integers")
    positions = [int(each) for each in index_set]
    last = len(eigenvalues) - 1
    for each in positions:
        check(0 <= each <= last, "index_set", f"position {each}", f"positions from 0 to {last}")
    repeated = sorted({each for each in positions if positions.count(each) > 1})
    check(not repeated, "index_set", f"{repeated} more than once", "different positions")
    if known(eigenvalues) and known(tau):
        level = tau if loss == "bures_wasserstein" else 0
        low = [each for each in positions if not eigenvalues[each] > level]
        got = f"position {low[0]}, of the eigenvalue {float(eigenvalues[low[0]]):g}" if low else ""
        takes = f"modes whose eigenvalue is above {f'tau = {float(level):g}' if level else 0}"
        check(not low, "index_set", got, takes)
