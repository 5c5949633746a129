"""The guards everything numerical is built from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bwdln import linalg


def test_rank_counts_relative_to_the_largest():
    values = jnp.array([[1e5, 1.0, 1e-8], [1.0, 1e-11, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(linalg.numerical_rank(values), [2, 2, 0])


def test_guards():
    x = jnp.array([4.0, 0.0, -1e-20])
    np.testing.assert_array_equal(linalg.safe_sqrt(x), [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(jax.grad(lambda x: linalg.safe_sqrt(x).sum())(x), [0.25, 0.0, 0.0])
    np.testing.assert_array_equal(linalg.safe_divide(x[:2], jnp.array([2.0, 0.0])), [2.0, 0.0])


# --- distances of covariances ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "rank"), [(1, 1), (5, 2), (64, 3), (65, 1), (130, 5), (200, 70), (150, 150)]
)
@pytest.mark.parametrize("closeness", [1.0, 1e-9])
def test_squared_distance_is_that_of_the_matrices(size, rank, closeness):
    rng = np.random.default_rng(size + rank)
    diagonal = np.concatenate([rng.uniform(0.5, 2.0, rank), np.zeros(size - rank)])
    factor = np.zeros((size, rank))
    factor[np.arange(rank), np.arange(rank)] = np.sqrt(diagonal[:rank])
    factor += closeness * rng.normal(size=(size, rank))
    expected = np.sum((factor @ factor.T - np.diag(diagonal)) ** 2)
    found = linalg.squared_distance(jnp.asarray(factor), jnp.asarray(diagonal))
    # Where the two are close, what is left of each entry has lost digits; the sum loses no more.
    np.testing.assert_allclose(found, expected, rtol=1e-12 if closeness == 1 else 1e-6)
    gradient = jax.grad(linalg.squared_distance)(jnp.asarray(factor), jnp.asarray(diagonal))
    by_hand = 4 * (factor @ factor.T - np.diag(diagonal)) @ factor
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(by_hand).max()))
