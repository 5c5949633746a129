"""What a dynamics is, what a lane carries, and how a lane can end."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

from bwdln.networks import Packed
from bwdln.registry import Registry
from bwdln.types import Array, Scalar

#: Name -> function (layer_gradients, *, options) -> Dynamics.
DYNAMICS = Registry("dynamics")


class Outcome(IntEnum):
    """How a lane stands; every value but the first is an end."""

    RUNNING = 0
    CONVERGED = 1
    REACHED_END = 2
    DIVERGED = 3
    STALLED = 4

    @property
    def label(self) -> str:
        """The name in results: `reached_end`."""
        return self.name.lower()


class Dynamics(NamedTuple):
    """A method that moves weights, as two pure functions of one lane, and when it ends.

    `init(weights) -> memory`: what the method carries beside the weights (moments of an optimizer).
    `step(weights, memory, count) -> (weights, memory, duration)`: one step, the `count`-th from 0;
    `duration` is the flow time it covers. It need not look out for overflow: the loop does.
    `steps`: how many steps end the run.
    `gap_tolerance`: the relative gap (gap / tr Σ₀) that ends it sooner, or None.
    """

    init: Callable[[Packed], Any]
    step: Callable[[Packed, Any, Array], tuple[Packed, Any, Scalar]]
    steps: int
    gap_tolerance: Scalar | None


class State(NamedTuple):
    """What is carried from step to step in one lane."""

    # Where the lane is, and what its method remembers.
    weights: Packed
    memory: Any
    # How far it has come: steps taken and flow time covered.
    step: Array
    time: Array
    # How it stands (an `Outcome`), and the squared size of weights that counts as divergence.
    outcome: Array
    limit: Array
