"""The loss along paths between critical points against the losses of the matrices themselves."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SPECTRA, orthogonal, spectrum
from problems import bures_wasserstein as reference_bures
from problems import frobenius as reference_frobenius

from bwdln import losses
from bwdln.errors import InvalidOption
from bwdln.targets import Target
from bwdln.theory import critical_points, paths

KINDS = (("bures_wasserstein", 0.0), ("bures_wasserstein", 0.3), ("frobenius", 0.0))
VALUES = (2.0, 1.4, 0.9, 0.6, 0.4)
PLACES = np.array([0, 0.01, 0.3, 0.5, 0.8, 1])
#: Two modes differ; all differ, one larger than the other; nothing is shared; nothing differs.
PAIRS = (((0, 2, 3), (1, 2, 4)), ((3, 1), (0, 4)), ((0, 1), (4, 3)), ((2, 4), (4, 2)), ((), ()))


@functools.cache
def measured(name, tau):
    loss = losses.frobenius() if name == "frobenius" else losses.bures_wasserstein(tau)
    return jax.jit(lambda weights, sigma: losses.deep_value(loss, weights, sigma))


def matched(first, second):
    """The index sets with the modes of both in the same places, the others in ascending order."""
    common = sorted({*first} & {*second})
    return tuple((*common, *sorted({*each} - {*common})) for each in (first, second))


@pytest.mark.parametrize(("name", "tau"), KINDS)
@pytest.mark.parametrize("widths", [(3, 5), (6, 4, 5), (3, 6, 4, 5)])
def test_equals_the_loss_on_the_straight_line_of_the_layers(name, tau, widths):
    sigma = Target(jnp.asarray(VALUES), jnp.asarray(orthogonal(5, np.random.default_rng(0))))
    for first, second in PAIRS:
        ends = [
            critical_points.layers(sigma, each, widths, tau=tau, loss=name) for each in matched(first, second)
        ]
        expected = [
            measured(name, tau)(tuple((1 - t) * a + t * b for a, b in zip(*ends, strict=True)), sigma)
            for t in PLACES
        ]
        found = paths.along(VALUES, first, second, PLACES, depth=len(widths) - 1, tau=tau, loss=name)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "tau"), KINDS)
def test_depth_one_is_the_line_in_function_space(name, tau):
    sigma = Target(jnp.asarray(VALUES), None)
    for first, second in PAIRS:
        start, end = (
            critical_points.end_to_end(sigma, each, 4, tau=tau, loss=name) for each in matched(first, second)
        )
        line = [measured(name, tau)(((1 - t) * start + t * end,), sigma) for t in PLACES]
        found = paths.along(VALUES, first, second, PLACES, tau=tau, loss=name)
        np.testing.assert_allclose(found, line, rtol=1e-12, atol=1e-13)


def columns(eigenvalues, first, second, place, depth, tau):
    """The generator on the path of balanced layers at a real depth: all layers but the last are diag(u)."""
    first, second = matched(first, second)
    scale = np.sqrt(np.asarray(eigenvalues) - tau, where=np.asarray(eigenvalues) > tau, out=np.zeros(5))
    old, new = scale[list(first)] ** (1 / depth), scale[list(second)] ** (1 / depth)
    last = np.zeros((5, len(first)))
    for column, (a, b) in enumerate(zip(first, second, strict=True)):
        last[a, column] += (1 - place) * old[column]
        last[b, column] += place * new[column]
    return last * ((1 - place) * old + place * new) ** (depth - 1)


@settings(max_examples=30)
@given(
    st.sampled_from(SPECTRA),
    st.sampled_from(KINDS),
    st.floats(1, 20),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_any_spectrum_depth_and_pair_against_numpy(kind, loss, depth, place, seed):
    name, tau = loss
    rng = np.random.default_rng(seed)
    eigenvalues = spectrum(kind, 5, rng)
    learnable = int(np.sum(eigenvalues > tau))
    size = int(rng.integers(0, learnable + 1))
    first, second = (tuple(rng.permutation(learnable)[:size].tolist()) for _ in range(2))
    generator = columns(eigenvalues, first, second, place, depth, tau)
    sigma = np.diag(eigenvalues)
    expected = (
        reference_frobenius(generator, sigma)
        if name == "frobenius"
        else reference_bures(generator, sigma, tau)
    )
    options = {"depth": depth, "tau": tau, "loss": name}
    found = paths.along(eigenvalues, first, second, np.array([place, 0, 1]), **options)
    # The reference takes roots of rounding below zero.
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    for end, index_set in zip(found[1:], (first, second), strict=True):
        value = critical_points.value(eigenvalues, index_set, tau=tau, loss=name)
        np.testing.assert_allclose(end, value, rtol=1e-12, atol=1e-13)
    back = paths.along(eigenvalues, second, first, np.array([1 - place]), **options)
    np.testing.assert_allclose(back, found[:1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("name", "tau"), KINDS)
def test_lanes_of_targets_depths_and_taus(name, tau):
    spectra = jnp.asarray([VALUES, (3.0, 2.0, 1.5, 1.0, 0.5)])
    depths = jnp.array([1.0, 2.5])

    def one(eigenvalues, depth, tau):
        return paths.along(eigenvalues, (0, 3), (1, 2), PLACES, depth=depth, tau=tau, loss=name)

    found = jax.jit(jax.vmap(one))(spectra, depths, jnp.full(2, tau))
    for lane, (eigenvalues, depth) in enumerate(zip(spectra, depths, strict=True)):
        np.testing.assert_allclose(found[lane], one(eigenvalues, float(depth), tau), rtol=1e-13)


def test_is_finite_and_differentiable_at_its_ends():
    for (name, tau), depth in itertools.product(KINDS, (1.0, 3.0)):

        def at_end(eigenvalues, name=name, tau=tau, depth=depth):
            return paths.along(eigenvalues, (0,), (1,), jnp.array([0.0]), depth=depth, tau=tau, loss=name)[0]

        slope = jax.grad(at_end)(jnp.array([2.0, 1.0, 0.0]))
        expected = jax.grad(lambda e, name=name, tau=tau: critical_points.value(e, (0,), tau=tau, loss=name))(
            jnp.array([2.0, 1.0, 0.0])
        )
        np.testing.assert_allclose(slope, expected, atol=1e-12)


def test_a_large_problem_needs_no_matrices():
    eigenvalues = np.geomspace(2, 1e-3, 500)
    first, second = tuple(range(250)), tuple(range(250, 500))
    found = paths.along(eigenvalues, first, second, np.linspace(0, 1, 11), depth=50.0)
    np.testing.assert_allclose(found[0], eigenvalues[250:].sum(), rtol=1e-12)
    np.testing.assert_allclose(found[-1], eigenvalues[:250].sum(), rtol=1e-12)
    assert np.all(np.isfinite(found))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((0, 1), (2,), PLACES), {}, "second: got 1 positions; takes 2, as many as the first"),
        (((0, 5), (1, 2), PLACES), {}, "index_set: got position 5"),
        (((0,), (4,), PLACES), {"tau": 0.5}, "index_set: got position 4, of the eigenvalue 0.4"),
        (((0,), (1,), [0.5, 1.1]), {}, "places: got numbers outside; takes numbers from 0 to 1"),
        (((0,), (1,), [np.nan]), {}, "places: got numbers outside"),
        (((0,), (1,), 0.5), {}, r"places: got shape \(\); takes one dimension"),
        (((0,), (1,), PLACES), {"depth": 0.5}, "depth: got 0.5; takes a finite number from 1"),
        (((0,), (1,), PLACES), {"tau": 0.1, "loss": "frobenius"}, "tau: got 0.1; takes 0 with frobenius"),
        (((0,), (1,), PLACES), {"loss": "kl"}, "loss: got kl"),
    ],
)
def test_refuses_bad_input_in_one_line(arguments, options, message):
    with pytest.raises(InvalidOption, match=f"^{message}") as caught:
        paths.along(VALUES, *arguments, **options)
    assert "\n" not in str(caught.value)
