"""Gradient flow of all layers at once (docs/theory.md §5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from bwdln.dynamics import runge_kutta
from bwdln.dynamics.base import DYNAMICS, Dynamics
from bwdln.networks import Packed, squared_size
from bwdln.types import Array, Scalar


@DYNAMICS.register("gradient_flow")
def gradient_flow(
    gradients: Callable[[Packed], Packed],
    depth: Scalar,
    *,
    end_time: float,
    method: Literal["auto", "euler", "heun", "rk4", "rk32", "rk54", "rkc"] = "auto",
    relative_tolerance: float | None = None,
    absolute_tolerance: float | None = None,
    step_size: float | None = None,
    max_steps: int = 100_000,
    gap_tolerance: float | None = None,
) -> Dynamics:
    """dW_j/dt = −∂L/∂W_j in all layers, from any start, up to flow time `end_time`.

    `depth` is not used: the gradients know their layers.

    `method`: `euler`, `heun`, `rk4` (orders 1, 2, 4) take steps of fixed `step_size`, and no
    tolerances. The others choose their steps, and take no `step_size`: the embedded pairs `rk32`
    and `rk54` of orders 3(2) and 5(4); `rkc`, stabilized, of order 2, for stiff flows at moderate
    tolerances (its error after many steps goes with their power 2/3); `auto`, which is `rk54` and,
    wherever stability limits that, `rkc` if it is cheaper.

    Every step keeps its estimated error, in the Frobenius norm over all layers, within
    `absolute_tolerance` + `relative_tolerance` · ‖weights‖ (null: 1e-9 and 1e-6). A lane ends as
    `stalled` after `max_steps` attempts, rejected ones included, and as `converged` at the first
    record with a relative gap up to `gap_tolerance` (null: never).

    Raises `InvalidOption` for numbers out of range or options that do not go with the method.
    """

    def velocity(weights: Packed) -> Packed:
        return jax.tree.map(jnp.negative, gradients(weights))

    def gradient_norm(weights: Packed) -> Array:
        return jnp.sqrt(squared_size(gradients(weights)))

    return runge_kutta.flow(
        velocity,
        gradient_norm,
        end_time=end_time,
        method=method,
        relative_tolerance=relative_tolerance,
        absolute_tolerance=absolute_tolerance,
        step_size=step_size,
        max_steps=max_steps,
        gap_tolerance=gap_tolerance,
    )
