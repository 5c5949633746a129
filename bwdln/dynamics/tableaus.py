"""The coefficients of the explicit Runge-Kutta methods, and the names of all methods of flows."""

from __future__ import annotations

from typing import NamedTuple


class Tableau(NamedTuple):
    """An explicit method: k_1 = v(W), k_i = v(W + h Σ_j a_ij k_j), W₊ = W + h Σ b_i k_i.

    The velocity at W₊ counts as one more stage, the last, in `error` and `dense`.
    """

    order: int
    # Rows a_ij from the second stage on, and b_i.
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    # W₊ minus the weights by the embedded method of order one less, over h.
    error: tuple[float, ...] | None = None
    # The correction of the cubic between the ends, over h θ² (1 − θ)².
    dense: tuple[float, ...] | None = None


TABLEAUS = {
    "euler": Tableau(1, (), (1.0,)),
    "heun": Tableau(2, ((1.0,),), (1 / 2, 1 / 2)),
    "rk4": Tableau(4, ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    # Bogacki and Shampine.
    "rk32": Tableau(
        3,
        ((1 / 2,), (0.0, 3 / 4)),
        (2 / 9, 1 / 3, 4 / 9),
        error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    ),
    # Dormand and Prince; the continuous extension is Shampine's, as in Hairer's program.
    "rk54": Tableau(
        5,
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        dense=(
            -12715105075 / 11282082432,
            0.0,
            87487479700 / 32700410799,
            -10690763975 / 1880347072,
            701980252875 / 199316789632,
            -1453857185 / 822651844,
            69997945 / 29380423,
        ),
    ),
}

#: `rkc` is the stabilized method; `auto` takes `rk54` or `rkc`, whichever is cheaper at the moment.
METHODS = ("auto", *TABLEAUS, "rkc")
FIXED = tuple(name for name, tableau in TABLEAUS.items() if tableau.error is None)
