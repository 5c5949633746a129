"""Losses and gradients as others compute them, each called in its fairest form.

A peer takes `Pairs` and returns a call without arguments, which returns values (batch,) and gradients
(batch, n, k), ready. What it was given beside W is said in `given`; what is made once, as roots of the
target, is not timed. Peers differentiate with respect to W through W Wᵀ.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.suite import measure


class Pairs(NamedTuple):
    """Generators W (batch, n, k), each with its target, in data coordinates."""

    generators: np.ndarray
    eigenvalues: np.ndarray
    bases: np.ndarray
    covariances: np.ndarray
    roots: np.ndarray
    tau: float


Call = Callable[[], tuple[Any, Any]]


class Peer(NamedTuple):
    """One way to the loss and its gradient."""

    name: str
    package: str
    build: Callable[[Pairs], Call]
    given: str
    threads: tuple[int, ...] = (1,)
    # Where n³ times the batch is larger it takes minutes: it is named and left out.
    most: float = float("inf")


def available() -> list[Peer]:
    """The peers whose packages are installed."""
    some = measure.thread_counts()
    every = [
        Peer("NumPy, SVD, closed form", "numpy", numpy_svd, "root", some),
        Peer("PyTorch, svdvals, autograd", "torch", torch_svdvals, "root", some),
        Peer("PyTorch, eigvalsh, autograd", "torch", torch_eigvalsh, "root", some),
        Peer("POT (torch, paired)", "ot", pot_torch, "covariance, as the constant source", some),
        Peer("POT (torch, one by one)", "ot", pot_one_by_one, "covariance, as the constant source"),
        Peer("POT (jax, paired, jit)", "ot", pot_jax, "covariance, as the constant source"),
        Peer("OTT, sqrtm at 1e-12", "ott", ott_sqrtm, "root; threshold set by us", most=2e7),
        Peer("OTT, Bures as it comes", "ott", ott_bures, "covariance", most=2e7),
        Peer("geomstats (torch)", "geomstats", geomstats_torch, "covariance, as the constant point", some),
        Peer("JAX, autodiff of eigvalsh", "jax", jax_eigvalsh, "root"),
    ]
    return [each for each in every if measure.installed(each.package)]


# --- NumPy ----------------------------------------------------------------------------------------


def numpy_svd(pairs: Pairs) -> Call:
    """The closed form by singular vectors of R W, or of [R W, √τ R]."""
    roots, generators, n = pairs.roots, pairs.generators, pairs.roots.shape[-1]
    k = generators.shape[-1]
    traces = np.trace(pairs.covariances, axis1=1, axis2=2) + n * pairs.tau

    def call() -> tuple[Any, Any]:
        whole = roots @ generators
        if pairs.tau:
            whole = np.concatenate([whole, np.sqrt(pairs.tau, dtype=roots.dtype) * roots], axis=2)
        left, singular, right = np.linalg.svd(whole, full_matrices=False)
        values = np.sum(generators**2, axis=(1, 2)) + traces - 2 * singular.sum(axis=1)
        return values, 2 * (generators - roots @ (left @ right[:, :, :k]))

    return call


# --- PyTorch --------------------------------------------------------------------------------------


def _torch_autograd(pairs: Pairs, nuclear: Callable[[Any, Any, Any], Any]) -> Call:
    """‖W‖² + n τ + tr Σ₀ − 2 tr (R Σ_W R)^{1/2} and its gradient by autograd."""
    import torch

    generators = torch.tensor(pairs.generators, requires_grad=True)
    roots, covariances = torch.tensor(pairs.roots), torch.tensor(pairs.covariances)
    traces = covariances.diagonal(dim1=1, dim2=2).sum(1) + pairs.roots.shape[-1] * pairs.tau

    def call() -> tuple[Any, Any]:
        values = (generators**2).sum((1, 2)) + traces - 2 * nuclear(generators, roots, covariances)
        (gradients,) = torch.autograd.grad(values.sum(), generators)
        return values.detach(), gradients

    return call


def torch_svdvals(pairs: Pairs) -> Call:
    """Through the singular values of R W, or of [R W, √τ R]."""
    import torch

    def nuclear(generators: Any, roots: Any, covariances: Any) -> Any:
        whole = roots @ generators
        whole = torch.cat([whole, pairs.tau**0.5 * roots], 2) if pairs.tau else whole
        return torch.linalg.svdvals(whole).sum(1)

    return _torch_autograd(pairs, nuclear)


def torch_eigvalsh(pairs: Pairs) -> Call:
    """Through the eigenvalues of Wᵀ Σ₀ W (k × k), or for τ > 0 of R (W Wᵀ + τ I) R."""
    import torch

    def nuclear(generators: Any, roots: Any, covariances: Any) -> Any:
        overlap = roots @ generators
        gram = overlap @ overlap.mT + pairs.tau * covariances if pairs.tau else overlap.mT @ overlap
        return torch.linalg.eigvalsh(gram).sqrt().sum(1)

    return _torch_autograd(pairs, nuclear)


def _torch_distance(pairs: Pairs, distance: Callable[[Any, Any], Any]) -> Call:
    """A library's squared distance between Σ₀ and W Wᵀ + τ I, and its gradient in W by autograd."""
    import torch

    generators = torch.tensor(pairs.generators, requires_grad=True)
    covariances = torch.tensor(pairs.covariances)
    lift = pairs.tau * torch.eye(covariances.shape[-1], dtype=covariances.dtype)

    def call() -> tuple[Any, Any]:
        values = distance(covariances, generators @ generators.mT + lift)
        (gradients,) = torch.autograd.grad(values.sum(), generators)
        return values.detach(), gradients

    return call


def pot_torch(pairs: Pairs) -> Call:
    """POT with PyTorch, all pairs in one call."""
    import ot
    import torch

    means = torch.zeros(pairs.roots.shape[:2], dtype=torch.tensor(pairs.roots[:0]).dtype)

    def distance(target: Any, generated: Any) -> Any:
        return ot.gaussian.bures_wasserstein_distance(means, means, target, generated, paired=True) ** 2

    return _torch_distance(pairs, distance)


def pot_one_by_one(pairs: Pairs) -> Call:
    """POT with PyTorch, a call for each pair."""
    import ot
    import torch

    mean = torch.zeros(pairs.roots.shape[1], dtype=torch.tensor(pairs.roots[:0]).dtype)

    def distance(target: Any, generated: Any) -> Any:
        each = zip(target, generated, strict=True)
        distances = [ot.gaussian.bures_wasserstein_distance(mean, mean, a, b) for a, b in each]
        return torch.stack(distances) ** 2

    return _torch_distance(pairs, distance)


def geomstats_torch(pairs: Pairs) -> Call:
    """The squared distance of geomstats with PyTorch."""
    os.environ["GEOMSTATS_BACKEND"] = "pytorch"
    import torch

    before = torch.get_default_dtype()
    if not hasattr(np, "trapz"):  # geomstats 2.8 asks NumPy for it, which calls it otherwise from 2.4 on
        np.trapz = np.trapezoid
    from geomstats.geometry.spd_matrices import SPDBuresWassersteinMetric, SPDMatrices

    torch.set_default_dtype(before)
    space = SPDMatrices(pairs.roots.shape[-1], equip=False).equip_with_metric(SPDBuresWassersteinMetric)
    return _torch_distance(pairs, space.metric.squared_dist)


# --- JAX ------------------------------------------------------------------------------------------


def jitted(function: Callable[..., Any], *arguments: Any) -> Call:
    """The call of a compiled function of batches, which waits for the result."""
    run, placed = jax.jit(function), jax.device_put(arguments)
    return lambda: jax.block_until_ready(run(*placed))


def _jax_autodiff(pairs: Pairs, value: Callable[[Any, Any, Any], Any], one_by_one: bool = False) -> Call:
    """A loss of (W, Σ₀, R) of one pair with its gradient, batched by vmap, or pair after pair on a CPU."""
    both = jax.value_and_grad(value)
    batched = jax.vmap(both)
    if one_by_one and jax.default_backend() == "cpu":
        # Batches of the Schur decompositions in these gradients wait for one another, for ever.
        batched = functools.partial(lax.map, lambda pair: both(*pair))
        return jitted(lambda *batch: batched(batch), pairs.generators, pairs.covariances, pairs.roots)
    return jitted(batched, pairs.generators, pairs.covariances, pairs.roots)


def _perturbed(generator: Any, tau: float) -> Any:
    return generator @ generator.T + tau * jnp.eye(len(generator), dtype=generator.dtype)


def jax_eigvalsh(pairs: Pairs) -> Call:
    """Through the eigenvalues of Wᵀ Σ₀ W (k × k), or for τ > 0 of R Σ_W R."""

    def value(generator: Any, covariance: Any, root: Any) -> Any:
        overlap = root @ generator
        gram = root @ _perturbed(generator, pairs.tau) @ root if pairs.tau else overlap.T @ overlap
        eigenvalues = jnp.linalg.eigvalsh(gram)
        traces = jnp.sum(generator**2) + len(root) * pairs.tau + jnp.trace(covariance)
        return traces - 2 * jnp.sum(jnp.sqrt(eigenvalues))

    return _jax_autodiff(pairs, value)


def pot_jax(pairs: Pairs) -> Call:
    """POT with JAX, all pairs in one call, compiled."""
    import ot

    means = jnp.zeros(pairs.roots.shape[:2], pairs.roots.dtype)
    lift = pairs.tau * jnp.eye(pairs.roots.shape[-1], dtype=pairs.roots.dtype)

    def total(generators: Any, covariances: Any) -> tuple[Any, Any]:
        generated = generators @ generators.mT + lift
        distances = ot.gaussian.bures_wasserstein_distance(means, means, covariances, generated, paired=True)
        return jnp.sum(distances**2), distances**2

    def both(generators: Any, covariances: Any) -> tuple[Any, Any]:
        (_, values), gradients = jax.value_and_grad(total, has_aux=True)(generators, covariances)
        return values, gradients

    return jitted(both, pairs.generators, pairs.covariances)


def ott_sqrtm(pairs: Pairs) -> Call:
    """The root of R Σ_W R by OTT's Newton-Schulz iterations, to a tolerance that suits the precision."""
    from ott.math import matrix_square_root

    threshold = 1e-12 if pairs.roots.dtype == np.float64 else 1e-5

    def value(generator: Any, covariance: Any, root: Any) -> Any:
        inner = matrix_square_root.sqrtm_only(
            root @ _perturbed(generator, pairs.tau) @ root, threshold, 0, 1, 200, 1e-6
        )
        traces = jnp.sum(generator**2) + len(root) * pairs.tau + jnp.trace(covariance)
        return traces - 2 * jnp.trace(inner)

    return _jax_autodiff(pairs, value, one_by_one=True)


def ott_bures(pairs: Pairs) -> Call:
    """OTT's cost between Gaussians with its own settings."""
    from ott.geometry import costs

    n = pairs.roots.shape[-1]
    cost = costs.Bures(n)

    def value(generator: Any, covariance: Any, root: Any) -> Any:
        mean = jnp.zeros(n, generator.dtype)
        return cost(
            costs.mean_and_cov_to_x(mean, covariance, n),
            costs.mean_and_cov_to_x(mean, _perturbed(generator, pairs.tau), n),
        )

    return _jax_autodiff(pairs, value, one_by_one=True)
