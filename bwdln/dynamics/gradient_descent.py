"""Gradient descent on all layers at once, by any optimizer of optax (docs/theory.md §5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import optax.contrib

from bwdln.dynamics.base import DYNAMICS, Dynamics, Step
from bwdln.errors import check
from bwdln.losses import LayerGradients
from bwdln.networks import Packed, squared_size
from bwdln.registry import Choice, Registry
from bwdln.types import Array, Scalar

#: Name -> function (learning_rate, *, options) -> optax.GradientTransformation.
OPTIMIZERS = Registry("optimizer")
#: Name -> function (steps, *, options) -> schedule: the factor on the step size at a step count.
SCHEDULES = Registry("schedule")

Schedule = Callable[[Array], Scalar]


class Memory(NamedTuple):
    """What descent carries beside the weights: the optimizer's moments, and what follows the gradient."""

    moments: Any
    path: Any


@DYNAMICS.register("gradient_descent")
def gradient_descent(
    gradients: Callable[[Packed], Packed],
    depth: Scalar,
    *,
    step_size: float,
    steps: int,
    gap_tolerance: float | None = None,
    absolute_gap_tolerance: float | None = None,
    patience: float = 0.0,
    optimizer: Choice = Choice("descent"),
    schedule: Choice = Choice("constant"),
) -> Dynamics:
    """W_j ← W_j − η ∂L/∂W_j, or what the optimizer makes of these gradients.

    `gradients` are those in the layers; `LayerGradients` are followed from step to step. `step_size` η
    may be traced; the schedule multiplies it. Flow time advances by the step size of the step, with every
    optimizer, so that descent and flow share an axis.

    A run ends at a record where for a flow time `patience` its gap has been up to
    `absolute_gap_tolerance`, or up to `gap_tolerance` times the trace of the target (null: never).

    Raises `InvalidOption` for a step size ≤ 0, steps < 1, a negative tolerance or patience.
    """
    positive = not isinstance(step_size, int | float) or 0 < step_size < float("inf")
    check(positive, "step_size", step_size, "a finite number above 0")
    check(1 <= steps < 2**31, "steps", steps, "an integer from 1 to 2^31 - 1")
    tolerances = {"gap_tolerance": gap_tolerance, "absolute_gap_tolerance": absolute_gap_tolerance}
    for name, value in tolerances.items():
        fine = not isinstance(value, int | float) or value >= 0
        check(fine, name, value, "null or a number from 0")
    patient = not isinstance(patience, int | float) or 0 <= patience < float("inf")
    check(patient, "patience", patience, "a flow time from 0")
    factor: Schedule = SCHEDULES.build(schedule, steps)

    def transformation(learning_rate: Scalar) -> optax.GradientTransformation:
        return OPTIMIZERS.build(optimizer, learning_rate)

    first = transformation(step_size)
    path = gradients if isinstance(gradients, LayerGradients) else None

    def init(weights: Packed) -> Memory:
        return Memory(first.init(weights), path.start(weights) if path else ())

    def step(weights: Packed, memory: Memory, count: Array, going: Array) -> Step:
        size = step_size * factor(count)
        found, known, anew = path.follow(weights, memory.path) if path else (gradients(weights), (), 0)
        updates, moments = transformation(size).update(found, memory.moments, weights)
        weights = optax.apply_updates(weights, updates)
        return Step(weights, Memory(moments, known), size, fallbacks=anew)

    return Dynamics(
        init=init,
        step=step,
        gradient_norm=lambda weights: jnp.sqrt(squared_size(gradients(weights))),
        end=steps,
        clock="step",
        gap_tolerance=gap_tolerance,
        absolute_gap_tolerance=absolute_gap_tolerance,
        patience=patience,
    )


# --- optimizers -----------------------------------------------------------------------------------


@OPTIMIZERS.register("descent")
def descent(learning_rate: Scalar) -> optax.GradientTransformation:
    """Plain gradient descent."""
    return optax.sgd(learning_rate)


@OPTIMIZERS.register("momentum")
def momentum(learning_rate: Scalar, *, decay: float = 0.9) -> optax.GradientTransformation:
    """Heavy-ball momentum: the update is the sum of past gradients, weighted by powers of `decay`."""
    _check_fraction("decay", decay)
    return optax.sgd(learning_rate, momentum=decay)


@OPTIMIZERS.register("nesterov")
def nesterov(learning_rate: Scalar, *, decay: float = 0.9) -> optax.GradientTransformation:
    """Nesterov's accelerated gradient with constant momentum `decay`."""
    _check_fraction("decay", decay)
    return optax.sgd(learning_rate, momentum=decay, nesterov=True)


@OPTIMIZERS.register("adam")
def adam(
    learning_rate: Scalar, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam, with decay `b1` of the first moment and `b2` of the second."""
    _check_fraction("b1", b1)
    _check_fraction("b2", b2)
    _check_positive("eps", eps)
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


@OPTIMIZERS.register("rmsprop")
def rmsprop(learning_rate: Scalar, *, decay: float = 0.9, eps: float = 1e-8) -> optax.GradientTransformation:
    """RMSprop: gradients divided by the root of their decaying mean square."""
    _check_fraction("decay", decay)
    _check_positive("eps", eps)
    return optax.rmsprop(learning_rate, decay=decay, eps=eps)


@OPTIMIZERS.register("muon")
def muon(learning_rate: Scalar, *, beta: float = 0.95, nesterov: bool = True) -> optax.GradientTransformation:
    """Muon: momentum whose matrix is brought close to its polar factor by Newton-Schulz steps."""
    _check_fraction("beta", beta)
    matrix = optax.contrib.MuonDimensionNumbers()
    stacked = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    def axes(weights: Packed) -> Packed:
        kinds = [[stacked if b.ndim == 3 else matrix for b in blocks] for blocks in weights]
        return Packed(*map(tuple, kinds))

    return optax.contrib.muon(learning_rate, beta=beta, nesterov=nesterov, muon_weight_dimension_numbers=axes)


def _check_fraction(option: str, value: float) -> None:
    check(0 <= value < 1, option, value, "a number from 0 to below 1")


def _check_positive(option: str, value: float) -> None:
    check(0 < value < float("inf"), option, value, "a number above 0")


# --- schedules ------------------------------------------------------------------------------------


@SCHEDULES.register("constant")
def constant(steps: int) -> Schedule:
    """The step size as given, at every step."""
    return lambda count: 1.0


@SCHEDULES.register("cosine")
def cosine(steps: int, *, final_fraction: float = 0.0) -> Schedule:
    """From 1 down to `final_fraction` along half a cosine, over the whole run."""
    _check_final(final_fraction)
    return optax.cosine_decay_schedule(1.0, steps, alpha=final_fraction)


@SCHEDULES.register("linear")
def linear(steps: int, *, final_fraction: float = 0.0) -> Schedule:
    """From 1 down to `final_fraction` along a straight line, over the whole run."""
    _check_final(final_fraction)
    return optax.linear_schedule(1.0, final_fraction, steps)


@SCHEDULES.register("exponential")
def exponential(steps: int, *, final_fraction: float = 0.01) -> Schedule:
    """From 1 down to `final_fraction` by the same factor at every step, over the whole run."""
    check(0 < final_fraction <= 1, "final_fraction", final_fraction, "a number in (0, 1]")
    return optax.exponential_decay(1.0, steps, final_fraction)


@SCHEDULES.register("warmup_cosine")
def warmup_cosine(steps: int, *, warmup_steps: int = 100, final_fraction: float = 0.0) -> Schedule:
    """From 0 up to 1 in `warmup_steps` along a line, then down as `cosine` over the rest."""
    _check_final(final_fraction)
    check(0 <= warmup_steps < steps, "warmup_steps", warmup_steps, f"an integer from 0 below {steps}")
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps, steps, final_fraction)


def _check_final(value: float) -> None:
    check(0 <= value <= 1, "final_fraction", value, "a number from 0 to 1")
