"""The start close to the target: its margin, what it is without one, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starts import KEY, assert_balanced, product, target_of

from bwdln import networks
from bwdln.errors import InvalidOption
from bwdln.initializations import close_to_target
from bwdln.targets import Target

SPECTRA = {
    "flat": np.ones(12),
    "one mode": np.array([2.0]),
    "linear": np.linspace(10, 1, 20),
    "ill-conditioned": np.geomspace(1e6, 1e-5, 8),
    "huge and tiny": np.array([1e140, 1e130]),
    "repeated": np.array([3.0, 3.0, 0.5, 0.5, 0.5]),
}


def distances(generators: np.ndarray, target: Target, tau: float) -> np.ndarray:
    """√L_τ of a batch of generators, in NumPy: ‖Σ_τ^{1/2} − R Q‖ with Q the polar factor."""
    rotated = np.asarray(target.eigenvectors).T @ generators
    left, values, _ = np.linalg.svd(rotated, full_matrices=False)
    root = (left * np.sqrt(values**2 + tau)[:, None, :]) @ left.swapaxes(1, 2)
    scale = np.sqrt(np.asarray(target.eigenvalues))[:, None]
    u, _, v = np.linalg.svd(scale * root)
    return np.linalg.norm(root - scale * (u @ v), axis=(1, 2))


def generators_close_to(target: Target, widths: Any) -> Callable[..., np.ndarray]:
    """End-to-end matrices for many keys; one program for all scales and τ, which are traced."""

    def generator(key: Any, scale: Any, tau: Any) -> Any:
        return networks.end_to_end(close_to_target(key, widths, target, scale=scale, tau=tau))

    compiled = jax.jit(jax.vmap(generator, in_axes=(0, None, None)))
    keys = jax.random.split(jax.random.key(5), 300)
    return lambda count, scale=0.95, tau=0.0: np.asarray(compiled(keys, scale, tau))[:count]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_close_to_target_has_a_margin_for_every_key(spectrum: str) -> None:
    target = target_of(SPECTRA[spectrum])
    n, smallest = len(target.eigenvalues), float(target.eigenvalues[-1])
    generators = generators_close_to(target, (n + 1, n + 2, n))
    for tau in (0.0, 0.3 * smallest, 0.99 * smallest):
        found = distances(generators(300, tau=tau), target, tau)
        room = smallest**0.5 - tau**0.5
        assert (found < room).all()
        assert (found > 0.01 * room / n).all()  # it is a start near the target, not the target


def test_close_to_target_has_a_margin_in_extended_precision() -> None:
    """Where √λ_n is near the rounding of √λ_1, against 60 digits."""
    eigenvalues = [1e12, 1e3, 1.0]
    target, tau = Target(jnp.asarray(eigenvalues), None), 0.9
    found = generators_close_to(target, (3, 4, 3))(5, tau=tau)
    with mpmath.workdps(60):
        root = mpmath.diag([mpmath.sqrt(value) for value in eigenvalues])
        for generator in found:
            matrix = mpmath.matrix(generator.tolist())
            perturbed = matrix * matrix.T + tau * mpmath.eye(3)
            cross = sum(map(mpmath.sqrt, mpmath.eigsy(root * perturbed * root, eigvals_only=True)))
            loss = sum(perturbed[i, i] + eigenvalues[i] for i in range(3)) - 2 * cross
            assert 0 < mpmath.sqrt(loss) < 1 - mpmath.sqrt(tau)


def test_close_to_target_is_the_authors_construction() -> None:
    """A scale small enough is kept: Σ_W + τ I − Σ₀ has the evenly spaced eigenvalues."""
    target = target_of([4.0, 2.0, 1.0, 0.5])
    generators, tau = generators_close_to(target, (4, 5, 4))(5, scale=0.1, tau=0.2), 0.2
    for generator in generators:
        np.testing.assert_allclose(generator, generator.T, atol=1e-13)
        change = generator @ generator.T + tau * np.eye(4) - np.asarray(target.covariance)
        expected = 0.1 * 0.5 * np.array([1.0, 1.25, 1.5, 1.75])
        np.testing.assert_allclose(np.linalg.eigvalsh(change), expected, rtol=1e-11)


def test_close_to_target_halves_no_more_than_it_must() -> None:
    target, tau = target_of(np.append(np.linspace(2, 1, 7), 0.9)), 0.3
    generators = generators_close_to(target, (8, 8))(100, scale=2.9, tau=tau)
    covariance = np.asarray(target.covariance)
    change = generators @ generators.swapaxes(1, 2) + tau * np.eye(8) - covariance
    smallest = np.linalg.eigvalsh(change)[:, 0]
    halvings = np.log2(2.9 * 0.9 / smallest)
    np.testing.assert_allclose(halvings, np.round(halvings), atol=1e-10)
    assert halvings.min() > 0.5
    values, vectors = np.linalg.eigh(covariance - tau * np.eye(8) + 2 * change)
    before = (vectors * np.sqrt(values)[:, None, :]) @ vectors.swapaxes(1, 2)
    assert (distances(before, target, tau) >= 0.9**0.5 - tau**0.5).all()


def test_close_to_target_keeps_small_modes_at_great_depth() -> None:
    target = target_of(np.geomspace(1, 1e-11, 6))
    layers = [np.asarray(layer) for layer in close_to_target(KEY, (6,) * 41, target)]
    assert_balanced(layers, 1.0)
    found = distances(product(layers)[None], target, 0.0)
    assert (found < 1e-11**0.5).all()


# --- one program, with and without a margin -------------------------------------------------------

TRACES: list[None] = []


@jax.jit
@jax.vmap
def lanes(key: Any, eigenvalues: Any, scale: Any, tau: Any) -> Any:
    """Generators (4, 4) in the target's eigenbasis; eigenvalues, scale and τ are traced."""
    TRACES.append(None)
    return close_to_target(key, (4, 4), Target(eigenvalues), scale=scale, tau=tau)[0]


def by_the_formula(eigenvalues: np.ndarray, basis: np.ndarray, scale: float, tau: float) -> np.ndarray:
    """The root of Ω (Λ − τ)₊ Ωᵀ + Γ D Γᵀ, the scale halved until the margin holds, if any can."""
    target, count = Target(jnp.asarray(eigenvalues), jnp.eye(len(eigenvalues))), len(eigenvalues)
    room = eigenvalues[-1] ** 0.5 - tau**0.5
    while True:
        steps = scale * eigenvalues[-1] * (2 - np.arange(1, count + 1) / count)
        covariance = np.diag(np.maximum(eigenvalues - tau, 0)) + (basis * steps) @ basis.T
        values, vectors = np.linalg.eigh(covariance)
        root = (vectors * np.sqrt(values)) @ vectors.T
        if room <= 0 or distances(root[None], target, tau)[0] < room:
            return root
        scale /= 2


@given(st.integers(0, 2**31), st.lists(st.floats(0.05, 2.9), min_size=8, max_size=8))
def test_lanes_with_and_without_a_margin_share_a_program(seed: int, scales: list[float]) -> None:
    random = np.random.default_rng(seed)
    spectra = np.sort(random.uniform(0.1, 3, (8, 4)), axis=1)[:, ::-1]
    # Multiples of λ_n: with a margin, at the border, above λ_n, above all of them.
    tau = spectra[:, -1] * np.array([0, 0.5, 0.9, 1, 1.1, 2, 10, 50])
    keys = jax.random.split(jax.random.key(seed), 8)
    found = np.asarray(lanes(keys, spectra, np.array(scales), tau))
    assert len(TRACES) == 1
    for lane, key in enumerate(keys):
        basis = np.asarray(jax.random.orthogonal(key, 4))
        expected = by_the_formula(spectra[lane], basis, scales[lane], tau[lane])
        np.testing.assert_allclose(found[lane], expected, rtol=0, atol=1e-12)


# --- where no margin exists -----------------------------------------------------------------------


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_without_a_margin_it_is_the_minimizer_and_the_whole_perturbation(spectrum: str) -> None:
    target = target_of(SPECTRA[spectrum])
    eigenvalues, omega = np.asarray(target.eigenvalues), np.asarray(target.eigenvectors)
    n, smallest = len(eigenvalues), float(eigenvalues[-1])
    generators = generators_close_to(target, (n + 1, n + 2, n))
    size = 2.5 * smallest * (2 - np.arange(1, n + 1) / n)
    for tau in (smallest, 1.5 * smallest, 2 * float(eigenvalues[0])):
        minimizer = np.maximum(eigenvalues - tau, 0)
        found = generators(20, scale=2.5, tau=tau)
        covariances = found @ found.swapaxes(1, 2)
        changes = omega.T @ covariances @ omega - np.diag(minimizer)
        rounding = 1e-13 * covariances.max()
        expected = np.broadcast_to(np.sort(size), (20, n))
        np.testing.assert_allclose(np.linalg.eigvalsh(changes), expected, rtol=0, atol=rounding)
        least = np.sum((np.sqrt(eigenvalues) - tau**0.5)[eigenvalues <= tau] ** 2) ** 0.5
        bound = least + np.linalg.norm(size) / (2 * tau**0.5)
        assert (distances(found, target, tau) <= bound * (1 + 1e-12)).all()


def test_it_is_the_same_whether_its_numbers_are_traced_or_known() -> None:
    target = target_of([3.0, 2.0, 0.5])
    generators = generators_close_to(target, (3, 3))
    key = jax.random.split(jax.random.key(5), 300)[0]
    for scale, tau in ((0.95, 0.2), (2.5, 0.2), (0.95, 0.5), (2.5, 2.5)):
        (alone,) = close_to_target(key, (3, 3), target, scale=scale, tau=tau)
        np.testing.assert_allclose(generators(1, scale, tau)[0], alone, rtol=0, atol=1e-13)


def test_small_singular_values_are_accurate_without_a_margin() -> None:
    """Against 60 digits: an absolute error of eps, where a root of the covariance has √eps."""
    eigenvalues, tau, scale = np.array([4.0, 1.0, 1e-10, 1e-12]), 1e-3, 0.95
    (found,) = close_to_target(KEY, (4, 4), Target(jnp.asarray(eigenvalues)), scale=scale, tau=tau)
    basis = np.asarray(jax.random.orthogonal(KEY, 4))
    with mpmath.workdps(60):
        gamma = mpmath.matrix(basis.tolist())
        steps = [scale * eigenvalues[-1] * (2 - index / 4) for index in range(1, 5)]
        minimizer = [max(mpmath.mpf(each) - tau, 0) for each in eigenvalues]
        covariance = mpmath.diag(minimizer) + gamma * mpmath.diag(steps) * gamma.T
        expected = [float(mpmath.sqrt(each)) for each in mpmath.eigsy(covariance, eigvals_only=True)]
    values = np.sort(np.linalg.svd(np.asarray(found), compute_uv=False))
    np.testing.assert_allclose(values, expected, rtol=0, atol=4e-15)
    assert expected[0] < 2e-6


def test_a_tau_that_is_the_smallest_eigenvalue_but_for_rounding_has_no_margin() -> None:
    target = target_of([1.0, 1.0])
    found = generators_close_to(target, (2, 2))(5, tau=1 - 1e-15)
    changes = np.linalg.eigvalsh(found @ found.swapaxes(1, 2))
    np.testing.assert_allclose(changes, np.broadcast_to([0.95, 1.425], (5, 2)), rtol=1e-13)


def test_the_end_to_end_matrix_does_not_depend_on_the_depth() -> None:
    target = target_of(np.linspace(2, 0.5, 5))
    for scale, tau in ((0.95, 0.0), (2.9, 0.3), (0.95, 0.5), (0.95, 1.0)):
        (alone,) = close_to_target(KEY, (6, 5), target, scale=scale, tau=tau)
        for widths in ((6, 5, 5), (6, 7, 9, 5), (6, *[5] * 60)):
            layers = [np.asarray(each) for each in close_to_target(KEY, widths, target, scale=scale, tau=tau)]
            assert_balanced(layers, 2.0)
            np.testing.assert_allclose(product(layers), alone, rtol=0, atol=1e-13)


# --- what is refused ------------------------------------------------------------------------------

IMPOSSIBLE = [
    (
        (4, 3, 4),
        [4.0, 3.0, 2.0, 1.0],
        {},
        "name: got close_to_target with a bottleneck of 3; takes a network as",
    ),
    *[
        (
            (3, 3),
            [2.0, 1.0, 0.0],
            {"tau": tau},
            "name: got close_to_target with a singular target, whose smallest eigenvalue",
        )
        for tau in (0.0, 0.5)
    ],
    ((2, 2), [2.0, 0.5], {"tau": -1.0}, "tau: got -1.0; takes a finite number from 0"),
    ((2, 2), [2.0, 0.5], {"tau": float("nan")}, "tau: got nan; takes a finite number from 0"),
    ((2, 2), [2.0, 0.5], {"tau": float("inf")}, "tau: got inf; takes a finite number from 0"),
    ((2, 2), [2.0, 0.5], {"scale": 0.0}, "scale: got 0.0; takes a number above 0 and below 3"),
    ((2, 2), [2.0, 0.5], {"scale": 3.0}, "scale: got 3.0; takes a number above 0 and below 3"),
    ((2, 2), [1e40, 1.0], {}, "name: got close_to_target where √λ_n = 1 and √λ_1 = 1e+20; takes √λ_n above"),
    ((2, 2), [1e40, 1.0], {"tau": 2.0}, "name: got close_to_target where √λ_n = 1 and √λ_1 = 1e+20"),
]


@pytest.mark.parametrize(("widths", "spectrum", "options", "message"), IMPOSSIBLE)
def test_close_to_target_says_why_it_is_refused(
    widths: Any, spectrum: Any, options: Any, message: str
) -> None:
    target = target_of(spectrum)
    begin = partial(close_to_target, widths=widths, target=target, **options)
    for call in (begin, jax.jit(lambda key: begin(key)), partial(jax.eval_shape, begin)):
        with pytest.raises(InvalidOption) as error:
            call(KEY)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)
