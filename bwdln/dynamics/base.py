"""What a dynamics is, what a lane carries, and how a lane can end."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Literal, NamedTuple

from bwdln.networks import Packed
from bwdln.registry import Registry
from bwdln.types import Array, Scalar

#: Name -> function (gradients, depth, *, options) -> Dynamics. `gradients(weights)` are those of the
#: loss in the weights given, along a path with its `start` and `follow` (`losses.LayerGradients`);
#: `depth` is the number of layers N, a real number that may be traced.
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


class Step(NamedTuple):
    """What one attempt at a step came to.

    A rejected attempt leaves the weights as they were, covers no time, and changes only the memory.
    """

    weights: Packed
    memory: Any
    # The flow time covered, and the gradients that were evaluated.
    duration: Scalar
    evaluations: Array | int = 1
    accepted: Array | bool = True
    # The gradients that were computed anew, though there was something to go on from (`losses.Path`).
    fallbacks: Array | int = 0
    # Whether the lane cannot go on.
    stalled: Array | bool = False


def _as_they_are(weights: Packed, memory: Any, ago: Scalar) -> Packed:
    return weights


class Dynamics(NamedTuple):
    """A method that moves weights, as pure functions of one lane, and when it ends.

    `init(weights) -> memory`: what the method carries beside the weights (moments of an optimizer).
    `step(weights, memory, count, going) -> Step`: one attempt at a step, when `count` steps were
    taken. Where `going` is false the result is not used, and no work need be spent on it. A method
    of fixed steps need not look out for overflow: the loop does.
    `gradient_norm(weights)`: the norm of the gradient in all layers.
    `end`: where the run ends, on its `clock`: a number of steps, or a flow time.
    `gap_tolerance`: the relative gap (gap / tr Σ₀) that ends it sooner, or None; `absolute_gap_tolerance`:
    the same for the gap itself. `patience`: the flow time it goes on for behind the first record where
    its gap is within one of these.
    `look_back(weights, memory, ago)`: the weights some flow time ago, within the last step: where a
    run is recorded by time and steps go past the times of records.
    `end_to_end`: whether the weights are the generator alone, reduced to shape (n, k), of balanced
    layers, instead of the layers.
    """

    init: Callable[[Packed], Any]
    step: Callable[[Packed, Any, Array, Array], Step]
    gradient_norm: Callable[[Packed], Scalar]
    end: Scalar
    clock: Literal["step", "time"]
    gap_tolerance: Scalar | None = None
    absolute_gap_tolerance: Scalar | None = None
    patience: Scalar = 0.0
    look_back: Callable[[Packed, Any, Scalar], Packed] = _as_they_are
    end_to_end: bool = False


class State(NamedTuple):
    """What is carried from step to step in one lane."""

    # Where the lane is, and what its method remembers.
    weights: Packed
    memory: Any
    # How far it has come: flow time covered, steps taken, attempts rejected, gradients evaluated, and how
    # many of these were computed anew.
    time: Array
    step: Array
    rejected: Array
    evaluations: Array
    fallbacks: Array
    # The flow time of the first record since when its gap is within a tolerance; −1 if it is not.
    within_since: Array
    # How it stands (an `Outcome`), and the squared size of weights that counts as divergence.
    outcome: Array
    limit: Array
