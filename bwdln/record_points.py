"""When a run is looked at: at the start, and at points on the clock of its dynamics after that."""

from __future__ import annotations

import numpy as np

from bwdln.config import Record
from bwdln.dynamics.base import Dynamics
from bwdln.errors import check

#: Decades that logarithmic records of a flow span, unless told otherwise.
FLOW_DECADES = 4.0


def record_points(dynamics: Dynamics, record: Record) -> np.ndarray:
    """Where on the clock of the dynamics the records are: 0, then `count` increasing points.

    Raises `InvalidOption` for more records than steps.
    """
    if dynamics.clock == "step":
        return record_steps(int(dynamics.end), record)
    end, number = float(dynamics.end), np.arange(1, record.count + 1)
    if record.spacing == "linear" or record.count == 1:
        points = end * (number / record.count)
    else:
        decades = FLOW_DECADES if record.decades is None else record.decades
        points = end * 10 ** (-decades * (record.count - number) / (record.count - 1))
    return np.append(0.0, points)


def record_steps(steps: int, record: Record) -> np.ndarray:
    """The step counts of the records: 0, then `count` increasing ones up to `steps`.

    Raises `InvalidOption` for more records than steps.
    """
    check(record.count <= steps, "record.count", record.count, f"an integer up to steps = {steps}")
    number = np.arange(1, record.count + 1)
    if record.spacing == "linear":
        return np.append(0, np.rint(number * (steps / record.count)).astype(int))
    first = 1 if record.decades is None else max(1.0, steps * 10**-record.decades)
    spaced = np.geomspace(first, steps, record.count) if record.count > 1 else np.array([steps])
    whole = np.rint(spaced).astype(int)
    # Where rounding makes two the same, the later one moves on, but none beyond the end.
    later = np.maximum.accumulate(whole - number) + number
    return np.append(0, np.minimum(later, steps - record.count + number))
