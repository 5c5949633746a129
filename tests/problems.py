"""Problems that several tests share: shapes, spectra, generators, and independent references."""

import jax.numpy as jnp
import numpy as np

from bwdln.config import from_mapping
from bwdln.targets import Target

#: (n, m): square, tall, wide, bottleneck 1, one dimension.
SHAPES = ((1, 1), (4, 1), (3, 3), (5, 2), (3, 5))

SPECTRA = ("distinct", "repeated", "singular", "ill_conditioned")


def spectrum(kind: str, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Descending eigenvalues of a kind in `SPECTRA`; the largest is of order one."""
    values = np.sort(rng.uniform(0.2, 2.0, dimension))[::-1].copy()
    if kind == "repeated":
        values[: (dimension + 1) // 2] = values[0]
    if kind == "singular" and dimension > 1:
        values[-1] = 0.0
    if kind == "ill_conditioned":
        values *= np.geomspace(1.0, 1e-6, dimension)
    return values


def orthogonal(dimension: int, rng: np.random.Generator) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]


def target(kind: str, dimension: int, rng: np.random.Generator) -> Target:
    """A target with a spectrum of that kind and a random basis."""
    basis = orthogonal(dimension, rng)
    return Target(jnp.asarray(spectrum(kind, dimension, rng)), jnp.asarray(basis))


def root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric square root by NumPy."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def bures_wasserstein(generator: np.ndarray, covariance: np.ndarray, tau: float) -> float:
    """The loss as docs/theory.md §2 states it, by NumPy alone."""
    perturbed = generator @ generator.T + tau * np.eye(len(covariance))
    half = root(covariance)
    cross = np.sum(np.linalg.svd(half @ root(perturbed), compute_uv=False))
    return float(np.trace(perturbed) + np.trace(covariance) - 2 * cross)


def frobenius(generator: np.ndarray, covariance: np.ndarray) -> float:
    """‖W Wᵀ − Σ₀‖_F² by NumPy alone."""
    return float(np.sum((generator @ generator.T - covariance) ** 2))


def job(**changes):
    """A small job; a change is a whole group, or an option of one as `group__option`."""
    mapping = {
        "target": {"name": "geometric", "dimension": 5, "condition_number": 10.0},
        "network": {"depth": 3, "bottleneck": 3},
        "initialization": {"name": "xavier_normal"},
        "loss": {"name": "bures_wasserstein", "tau": 0.0},
        "dynamics": {"name": "gradient_descent", "step_size": 0.05, "steps": 60},
        "record": {"count": 6},
        "seeds": 3,
    }
    for name, value in changes.items():
        group, _, option = name.partition("__")
        if option:
            mapping[group] = {**mapping[group], option: value}
        else:
            mapping[group] = value
    return from_mapping(mapping)
