"""Closed forms beside derivatives of the loss itself: the blow-up of curvature, and whole Hessians.

The derivatives are those of the gradients in `losses`, which know nothing of docs/theory.md §4. On the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from bwdln import fits, losses, networks
from bwdln.fits import Law
from bwdln.targets import Target
from bwdln.theory import critical_points, curvature, hessians
from bwdln.theory.checks import LossName
from bwdln.types import Array, Scalar, Spectrum, Weights, Widths

#: The power law of curvature against τ is fitted to so many of the smallest τ.
FITTED = 5
#: As many of the leading modes of a target are looked at: the others decouple.
LEADING = 16
#: As many missing modes are followed.
MODES = 3


# --- the blow-up of curvature ---------------------------------------------------------------------


class BlowUp(NamedTuple):
    """The curvature along which a missing mode is learnt at depth 1, against τ.

    At W = Ω_J S with one latent dimension to spare; J are the largest modes, one fewer than the rank
    (than half of `LEADING` where that is less).

    Attributes:
        index_set: J.
        modes: positions a outside J.
        tau: shape (taus,), ascending.
        closed: 2 (1 − √(λ_a/τ)), shape (modes, targets, taus).
        measured: second derivatives of the loss, by differentiating its gradient; same shape.
        law: for each mode, the power law of the mean measured size at the `FITTED` smallest τ.
        deviation: the largest relative difference of the two.
    """

    index_set: tuple[int, ...]
    modes: tuple[int, ...]
    tau: Float[Array, "taus"]
    closed: Float[Array, "modes targets taus"]
    measured: Float[Array, "modes targets taus"]
    law: tuple[Law, ...]
    deviation: float


def blow_up(eigenvalues: Float[Array, "targets n"], rank: int, *, taus: int = 17) -> BlowUp:
    """The curvature along the raising of the rank against τ, by its closed form and measured (§4).

    τ goes from 1e-8 to 1 times the smallest eigenvalue, over the targets, of the modes that are followed:
    the first that J lacks, and later ones that every target has, among the `LEADING`.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)[:, :LEADING]
    positive = int(np.sum(values > 0, axis=1).min())
    index_set = tuple(range(min(rank, positive, LEADING // 2) - 1))
    left = np.arange(len(index_set), positive)
    modes = tuple(np.unique(left[np.linspace(0, len(left) - 1, MODES).astype(int)]).tolist())
    tau = float(values[:, modes].min()) * np.logspace(-8, 0, taus)
    shape = (len(modes), len(values), taus)
    measured = np.empty(shape)
    for lane, each in enumerate(values):
        for place, size in enumerate(tau):
            measured[:, lane, place] = _second_derivatives(each, size, index_set=index_set, modes=modes)
    raising = jax.vmap(
        lambda size: jax.vmap(lambda each: hessians.rank_raising(each, index_set, tau=size))(values)
    )(tau)
    closed = np.moveaxis(np.asarray(raising), 0, -1)  # (targets, modes outside J, taus)
    closed = np.swapaxes(closed, 0, 1)[np.array(modes) - len(index_set)]
    sizes = np.abs(measured).mean(axis=1)
    law = tuple(fits.power_law(tau, each, FITTED) for each in sizes)
    # Relative to 2 + |curvature|, as the curvature itself passes through 0 at τ = λ.
    deviation = float(np.max(np.abs(measured - closed) / (2 + np.abs(closed))))
    return BlowUp(index_set, modes, tau, closed, measured, law, deviation)


@partial(jax.jit, static_argnames=("index_set", "modes"))
def _second_derivatives(
    eigenvalues: Spectrum, tau: Scalar, *, index_set: tuple[int, ...], modes: tuple[int, ...]
) -> Float[Array, "modes"]:
    """⟨v, ∇²L_τ(W) v⟩ for v = e_a in the spare latent dimension, for each mode a: no closed form in it."""
    target, loss = Target(eigenvalues), losses.bures_wasserstein(tau)
    latent_dim = len(index_set) + 1
    generator = critical_points.end_to_end(target, index_set, latent_dim, tau=tau)
    product: Any = jax.linearize(lambda near: loss.gradient(near, target), generator)[1]
    directions = [jnp.zeros_like(generator).at[mode, -1].set(1) for mode in modes]
    return jnp.stack([jnp.sum(each * product(each)) for each in directions])


# --- automatic differentiation --------------------------------------------------------------------


class Pair(NamedTuple):
    """The spectrum of the Hessian in all layers at a point, (parameters,), both ways, ascending.

    `closed`: §4, with its zeros; `differentiated`: of the Hessian built by automatic differentiation.
    """

    index_set: tuple[int, ...]
    closed: Float[Array, "parameters"]
    differentiated: Float[Array, "parameters"]

    @property
    def deviation(self) -> float:
        """The largest difference, relative to the largest eigenvalue in size; to 1 where all are 0."""
        scale = float(np.abs(self.closed).max()) or 1.0
        return float(np.abs(self.differentiated - self.closed).max()) / scale


def pairs_of_spectra(
    eigenvalues: Spectrum,
    sets: Sequence[tuple[int, ...]],
    widths: Widths,
    *,
    tau: float,
    loss: LossName,
) -> list[Pair]:
    """Closed forms beside spectra by automatic differentiation: all eigenvalues, zeros included.

    The Hessian in all layers of one target is built column by column: for few parameters. Raises
    `InvalidOption` for index sets and widths that do not fit.
    """
    target = Target(jnp.asarray(eigenvalues, dtype=float))
    pairs = []
    for index_set in sets:
        weights = critical_points.layers(target, index_set, widths, tau=tau, loss=loss)
        built = np.linalg.eigvalsh(np.asarray(_hessian(weights, target.eigenvalues, tau, loss=loss)))
        closed = hessians.spectrum(eigenvalues, index_set, depth=len(weights), tau=tau, loss=loss)
        spare = widths[0] - len(index_set) if len(weights) == 1 else 0
        parts = [np.asarray(closed)]
        if spare:
            raising = hessians.rank_raising(eigenvalues, index_set, tau=tau, loss=loss)
            parts.append(np.repeat(np.asarray(raising), spare))
        parts.append(np.zeros(len(built) - sum(map(len, parts))))
        pairs.append(Pair(index_set, np.sort(np.concatenate(parts)), built))
    return pairs


@partial(jax.jit, static_argnames=("loss", "tau"))
def _hessian(
    weights: Weights, eigenvalues: Spectrum, tau: float, *, loss: LossName
) -> Float[Array, "parameters parameters"]:
    """The Hessian of the deep loss, by differentiating its layer gradients."""
    kind = losses.frobenius() if loss == "frobenius" else losses.bures_wasserstein(tau)
    packed = networks.pack(weights)
    operator = curvature.hessian_operator(kind, packed, Target(eigenvalues))
    flat, unravel = ravel_pytree(packed)
    # One column after the other: a decomposition in a product must not be batched (on a CPU).
    return jax.lax.map(lambda each: ravel_pytree(operator(unravel(each)))[0], jnp.eye(flat.size))
