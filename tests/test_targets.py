"""Targets: spectra against independent NumPy, bases, data, and the one line for bad input."""

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bwdln import data, targets
from bwdln.data import SAMPLES
from bwdln.errors import InvalidOption
from bwdln.registry import Choice
from bwdln.targets import TARGETS, Target, from_covariance, from_samples

CONFIGS = Path(__file__).parent.parent / "configs" / "target"
REQUIRED = {"explicit": {"eigenvalues": (3.0, 1.0)}}
FAMILIES = ["zipf", "random", "power_law", "geometric", "spiked", "explicit"]
DRAWN = [targets.zipf_spectrum, targets.random_spectrum]
few = settings(max_examples=25, deadline=None)


def random_covariance(seed, dimension, rank):
    factor = np.random.default_rng(seed).standard_normal((dimension, rank))
    return factor @ factor.T


def refusal(name, **options):
    """The message of the `InvalidOption` that a configured target raises."""
    with pytest.raises(InvalidOption) as caught:
        TARGETS.build(Choice.of({"name": name, **options}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_is_decomposition(target, covariance, tolerance=1e-13):
    values, vectors = np.asarray(target.eigenvalues), np.asarray(target.eigenvectors)
    size = values[0]
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(values.size), atol=1e-13)
    np.testing.assert_allclose((vectors * values) @ vectors.T, covariance, rtol=0, atol=tolerance * size)
    assert np.all(np.diff(values) <= 0) and np.all(values >= 0)
    largest = np.abs(vectors).argmax(axis=0)
    assert np.all(vectors[largest, np.arange(values.size)] > 0)


# --- Target ---------------------------------------------------------------------------------------


def test_a_target_is_its_covariance_and_root():
    covariance = random_covariance(0, 6, 4)
    target = from_covariance(covariance)
    assert target.dimension == 6
    np.testing.assert_allclose(target.covariance, covariance, atol=1e-13)
    np.testing.assert_allclose(target.root @ target.root, covariance, atol=1e-13)
    np.testing.assert_allclose(target.root, target.root.T, atol=1e-14)


def test_in_the_eigenbasis_everything_is_diagonal_and_nothing_moves():
    target = targets.zipf(dimension=6)
    there, matrix = target.in_eigenbasis(), jnp.arange(12.0).reshape(6, 2)
    assert there.eigenvectors is None and there.dimension == 6
    np.testing.assert_array_equal(there.covariance, np.diag(target.eigenvalues))
    np.testing.assert_allclose(there.root, np.diag(np.sqrt(target.eigenvalues)), rtol=1e-15)
    np.testing.assert_array_equal(there.to_eigenbasis(matrix), matrix)
    np.testing.assert_array_equal(there.from_eigenbasis(matrix), matrix)
    rotated = target.to_eigenbasis(matrix)
    np.testing.assert_allclose(target.eigenvectors @ rotated, matrix, atol=1e-13)
    np.testing.assert_allclose(target.from_eigenbasis(rotated), matrix, atol=1e-13)
    generated = rotated @ rotated.T
    in_data = target.eigenvectors @ generated @ target.eigenvectors.T
    np.testing.assert_allclose(in_data, matrix @ matrix.T, atol=1e-12)


def test_a_stack_of_targets_is_a_batch_of_lanes():
    lanes = [from_covariance(random_covariance(seed, 4, 2 + seed)) for seed in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)

    @jax.jit
    @jax.vmap
    def quantities(target):
        matrix = jnp.ones((target.dimension, 2))
        there = target.in_eigenbasis()
        return target.covariance, target.root, there.root, target.to_eigenbasis(matrix)

    for lane, *got in zip(lanes, *quantities(stack), strict=True):
        expected = (
            lane.covariance,
            lane.root,
            lane.in_eigenbasis().root,
            lane.to_eigenbasis(jnp.ones((4, 2))),
        )
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-13)


def test_the_root_of_a_singular_target_has_a_finite_derivative():
    target = Target(jnp.array([4.0, 0.0]), None)
    derivative = jax.grad(lambda values: Target(values, None).root.sum())(target.eigenvalues)
    np.testing.assert_allclose(derivative, [0.25, 0.0])


# --- spectra --------------------------------------------------------------------------------------


def authors(values, rank, s_min, reading):
    """THEORY §7 word for word, on descending values, in NumPy."""
    dimension, rank = len(values), rank or len(values)
    if values.min() < s_min:
        values = values + s_min - values[rank - 1] + 1 / dimension
    values = np.where(np.arange(dimension) < rank, values, 0)
    return values**2 if reading == "singular_values" else values


def drawn_by_numpy(spectrum, key, dimension):
    """The authors' values before lift and cut, from the same normal numbers."""
    if spectrum is targets.random_spectrum:
        return np.linalg.svd(np.asarray(jax.random.normal(key, (dimension, dimension))))[1]
    matrix_key, noise_key = jax.random.split(key)
    sigma = np.linalg.norm(np.asarray(jax.random.normal(matrix_key, (dimension, dimension))), 2)
    values = sigma / np.arange(1, dimension + 1) + np.asarray(jax.random.normal(noise_key, (dimension,)))
    values = np.sort(values)[::-1]
    return values - values.min() + 1 / dimension


@pytest.mark.parametrize("spectrum", DRAWN)
@pytest.mark.parametrize("reading", typing.get_args(targets.Reading))
@pytest.mark.parametrize("dimension", [1, 6])
@pytest.mark.parametrize("s_min", [0.0, 0.05, 3.0])
def test_the_authors_spectra_are_as_theory_section_7_says(spectrum, reading, dimension, s_min):
    for seed in range(3):
        for rank in sorted({None, 1, (dimension + 1) // 2, dimension}, key=str):
            key = jax.random.key(seed)
            got = spectrum(key, dimension, rank=rank, s_min=s_min, reading=reading)
            expected = authors(drawn_by_numpy(spectrum, key, dimension), rank, s_min, reading)
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@few
@given(
    seed=st.integers(0, 2**31),
    dimension=st.sampled_from([1, 6]),
    rank=st.integers(1, 6),
    s_min=st.floats(0.3, 50),
    zipf=st.booleans(),
)
def test_the_lift_makes_the_smallest_s_min_plus_one_over_n(seed, dimension, rank, s_min, zipf):
    """Also when only values beyond the rank lie below s_min: then the lift lowers the others."""
    spectrum, rank = targets.zipf_spectrum if zipf else targets.random_spectrum, min(rank, dimension)
    key = jax.random.key(seed)
    values = np.asarray(spectrum(key, dimension, rank=rank, s_min=s_min))
    if spectrum(key, dimension)[-1] < s_min:
        np.testing.assert_allclose(values[rank - 1], s_min + 1 / dimension, rtol=1e-12)
    assert np.all(values[:rank] >= s_min) and np.all(values[rank:] == 0) and np.all(np.diff(values) <= 0)


@pytest.mark.parametrize("name", ["zipf", "random"])
def test_no_lift_is_a_lift_to_zero(name):
    never, zero = TARGETS[name](s_min=None), TARGETS[name](s_min=0.0)
    np.testing.assert_array_equal(never.eigenvalues, zero.eigenvalues)


def test_power_law_and_geometric_are_their_formulas():
    positions = np.arange(1, 9)
    power = targets.power_law_spectrum(1.5, 8, rank=6, largest=3.0)
    np.testing.assert_allclose(power, np.where(positions <= 6, 3.0 / positions**1.5, 0), rtol=1e-14)
    geometric = targets.geometric_spectrum(1e6, 8, rank=6, largest=2.0)
    np.testing.assert_allclose(geometric[:6], 2.0 * np.geomspace(1, 1e-6, 6), rtol=1e-13)
    assert np.all(geometric[6:] == 0)
    np.testing.assert_array_equal(targets.geometric_spectrum(1.0, 1), [1.0])
    np.testing.assert_array_equal(targets.power_law_spectrum(0.0, 3), np.ones(3))


@few
@given(dimension=st.sampled_from([2, 6, 20]), log=st.floats(0, 12), data=st.data())
def test_the_geometric_condition_number_is_the_one_asked_for(dimension, log, data):
    rank = data.draw(st.integers(2, dimension))
    values = targets.geometric_spectrum(10.0**log, dimension, rank=rank)
    np.testing.assert_allclose(values[0] / values[rank - 1], 10.0**log, rtol=1e-12)


def test_spiked_is_the_spikes_and_the_bulk_in_order():
    np.testing.assert_array_equal(targets.spiked_spectrum([2.0, 5.0], 4, bulk=0.5), [5, 2, 0.5, 0.5])
    target = targets.spiked(dimension=4, spikes=(2.0, 5.0), bulk=0.0)
    np.testing.assert_array_equal(target.eigenvalues, [5, 2, 0, 0])
    np.testing.assert_array_equal(targets.spiked(dimension=1, spikes=(2.0,)).eigenvalues, [2])


def test_explicit_eigenvalues_come_back_in_order():
    target = targets.explicit(eigenvalues=(1.0, 0.0, 3.0, 1.0))
    np.testing.assert_array_equal(target.eigenvalues, [3, 1, 1, 0])
    assert target.eigenvectors.shape == (4, 4)


LANES = {
    "zipf s_min": (lambda x: targets.zipf_spectrum(jax.random.key(3), 6, s_min=x), [0.0, 0.5, 5.0]),
    "random s_min": (lambda x: targets.random_spectrum(jax.random.key(3), 6, s_min=x), [0.0, 0.5, 5.0]),
    "zipf rank": (lambda x: targets.zipf_spectrum(jax.random.key(3), 6, rank=x, s_min=2.0), [1, 3, 6]),
    "random key": (lambda x: targets.random_spectrum(jax.random.key(x), 6), [0, 1, 7]),
    "exponent": (lambda x: targets.power_law_spectrum(x, 6, rank=4), [0.0, 1.0, 2.5]),
    "condition number": (lambda x: targets.geometric_spectrum(x, 6), [1.0, 10.0, 1e9]),
    "geometric rank": (lambda x: targets.geometric_spectrum(50.0, 6, rank=x), [1, 2, 6]),
    "bulk": (lambda x: targets.spiked_spectrum(jnp.array([5.0, 2.0]), 6, bulk=x), [0.0, 1.0, 2.0]),
    "spike": (lambda x: targets.spiked_spectrum(jnp.stack([x, 2 * x]), 6), [1.0, 2.0, 3.0]),
    "basis": (lambda x: targets.random_basis(jax.random.key(x), 6), [0, 1, 7]),
}


@pytest.mark.parametrize("name", LANES)
def test_lanes_equal_single_calls(name):
    spectrum, values = LANES[name]
    for lane, value in zip(jax.jit(jax.vmap(spectrum))(jnp.array(values)), values, strict=True):
        single = spectrum(jnp.asarray(value) if name == "spike" else value)
        np.testing.assert_allclose(lane, single, rtol=1e-12, atol=1e-13)


# --- bases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 2, 20, 100])
def test_a_random_basis_is_orthogonal(dimension):
    basis = np.asarray(targets.random_basis(jax.random.key(1), dimension))
    np.testing.assert_allclose(basis.T @ basis, np.eye(dimension), atol=1e-13)


def test_a_random_basis_has_the_moments_of_haar_measure():
    """E Q = 0, E Q_ij² = 1/n, E Q_ij⁴ = 3/(n(n+2)), E (tr Q)² = 1; the mean fails without the signs."""
    n, count = 3, 5_000
    bases = np.asarray(
        jax.vmap(lambda key: targets.random_basis(key, n))(jax.random.split(jax.random.key(0), count))
    )
    np.testing.assert_allclose(bases.mean(axis=0), 0, atol=5 / np.sqrt(n * count))
    np.testing.assert_allclose((bases**2).mean(axis=0), 1 / n, atol=5 * 0.3 / np.sqrt(count))
    np.testing.assert_allclose((bases**4).mean(axis=0), 3 / (n * (n + 2)), atol=5 * 0.3 / np.sqrt(count))
    np.testing.assert_allclose(
        (np.trace(bases, axis1=1, axis2=2) ** 2).mean(), 1, atol=5 * 2 / np.sqrt(count)
    )
    np.testing.assert_allclose(np.sign(np.linalg.det(bases)).mean(), 0, atol=5 / np.sqrt(count))


@pytest.mark.parametrize("name", FAMILIES)
def test_one_seed_determines_a_family_and_another_changes_it(name):
    build = lambda seed: TARGETS[name](seed=seed, **REQUIRED.get(name, {}))  # noqa: E731
    first, again, other = build(1), build(1), build(2)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.abs(first.eigenvectors - other.eigenvectors).max() > 0.1
    changes = name in ("zipf", "random")
    assert np.any(first.eigenvalues != other.eigenvalues) == changes
    basis = np.asarray(first.eigenvectors)
    np.testing.assert_allclose(basis.T @ basis, np.eye(first.dimension), atol=1e-13)


def test_families_share_the_basis_of_a_seed():
    one, other = targets.zipf(seed=4), targets.geometric(seed=4)
    np.testing.assert_array_equal(one.eigenvectors, other.eigenvectors)


# --- covariances and samples ----------------------------------------------------------------------


@few
@given(
    seed=st.integers(0, 10**6), dimension=st.integers(1, 30), rank=st.integers(1, 30), log=st.floats(-30, 30)
)
def test_a_covariance_comes_back(seed, dimension, rank, log):
    rank = min(rank, dimension)
    covariance = 10.0**log * random_covariance(seed, dimension, rank)
    target = from_covariance(covariance)
    assert_is_decomposition(target, covariance)
    assert np.sum(np.asarray(target.eigenvalues) > 0) <= rank


def test_repeated_eigenvalues_and_rounding_below_zero_are_no_obstacle():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    covariance = (basis * [3, 3, 1, 1, 0, 0]) @ basis.T
    target = from_covariance(covariance)
    assert_is_decomposition(target, covariance)
    np.testing.assert_array_equal(target.eigenvalues[4:], 0)
    almost = (basis * [1, 1, 1, 1, 1e-13, -1e-13]) @ basis.T
    np.testing.assert_array_equal(from_covariance(almost).eigenvalues[4:], 0)


@pytest.mark.parametrize("dimension", [3, 20, 200])
def test_a_covariance_computed_in_float32_is_accepted(dimension):
    samples = np.random.default_rng(dimension).standard_normal((1000, dimension // 2 + 1))
    samples = (samples @ np.random.default_rng(1).standard_normal((dimension // 2 + 1, dimension))).astype(
        "f4"
    )
    values = from_covariance(samples.T @ samples / np.float32(1000)).eigenvalues
    assert np.sum(np.asarray(values) > 0) == dimension // 2 + 1


def test_a_float32_covariance_is_judged_by_its_own_precision():
    covariance = random_covariance(1, 40, 10).astype(np.float32)
    covariance[0, 1] *= 1 + 5e-7
    assert np.sum(np.asarray(from_covariance(covariance).eigenvalues) > 0) == 10
    with pytest.raises(InvalidOption, match="differs from its transpose"):
        from_covariance(covariance.astype(np.float64))


def test_eigenvector_signs_do_not_depend_on_rounding_between_equal_components():
    half = np.full((2, 2), 0.5)
    for noise in (0.0, 1e-16, -1e-16):
        vectors = from_covariance(half + np.diag([noise, -noise])).eigenvectors
        np.testing.assert_allclose(vectors, np.array([[1, 1], [1, -1]]) / np.sqrt(2), atol=1e-14)


@few
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 40),
    dimension=st.integers(1, 20),
    center=st.booleans(),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
)
def test_samples_have_their_covariance(seed, count, dimension, center, offset):
    samples = np.random.default_rng(seed).standard_normal((count, dimension)) + offset
    target = from_samples(samples, center=center)
    expected = (
        np.cov(samples.T, bias=True).reshape(dimension, dimension) if center else samples.T @ samples / count
    )
    assert_is_decomposition(target, expected, 1e-12)
    rank = min(count - 1 if center else count, dimension)
    assert np.sum(np.asarray(target.eigenvalues) > 0) <= rank


def test_small_eigenvalues_of_samples_keep_their_digits():
    """Forming XᵀX loses all but one digit of an eigenvalue 1e-11 times the largest."""
    random = np.random.default_rng(3)
    left = np.linalg.qr(random.standard_normal((50, 3)))[0]
    right = np.linalg.qr(random.standard_normal((3, 3)))[0]
    exact = np.array([1.0, 1e-3, 1e-11])
    for samples in (
        (left * np.sqrt(50 * exact)) @ right.T,
        (left[:, :3] * np.sqrt(50 * exact)) @ left[:, :3].T,
    ):
        values = from_samples(samples, center=False).eigenvalues[:3]
        np.testing.assert_allclose(values, exact, rtol=1e-9)


def test_few_samples_in_many_dimensions_give_a_whole_basis():
    target = from_samples(np.random.default_rng(0).standard_normal((4, 50)))
    basis = np.asarray(target.eigenvectors)
    np.testing.assert_allclose(basis.T @ basis, np.eye(50), atol=1e-13)
    assert np.sum(np.asarray(target.eigenvalues) > 0) == 3


def test_without_centering_the_mean_counts():
    samples = np.array([[1.0, 0.0], [3.0, 0.0]])
    np.testing.assert_allclose(from_samples(samples).eigenvalues, [1, 0], atol=0)
    np.testing.assert_allclose(from_samples(samples, center=False).eigenvalues, [5, 0], rtol=1e-15)


def test_everything_is_float64():
    for target in (from_samples(np.eye(3, dtype=np.int8)), from_covariance(jnp.eye(3, dtype=jnp.float32))):
        assert {leaf.dtype for leaf in target} == {np.dtype("float64")}


ASYMMETRIC = np.array([[2.0, 1.0], [0.5, 2.0]])
BAD_COVARIANCES = {
    "not square": (np.ones((3, 4)), "covariance: got shape (3, 4); takes a square matrix, shape (n, n)"),
    "a stack": (np.ones((2, 2, 2)), "got shape (2, 2, 2)"),
    "empty": (np.ones((0, 0)), "got shape (0, 0)"),
    "not finite": (
        np.array([[1, np.nan], [np.nan, np.inf]]),
        "covariance: got 3 of 4 entries not finite; takes finite numbers only",
    ),
    "not symmetric": (
        ASYMMETRIC,
        "covariance: got a matrix that differs from its transpose by 0.25 of its largest entry; "
        "takes a symmetric matrix (to 1e-12)",
    ),
    "indefinite": (
        np.diag([4.0, -1.0]),
        "covariance: got a matrix whose smallest eigenvalue is -0.25 times the largest in size; "
        "takes a positive semidefinite matrix (to 1e-12)",
    ),
    "slightly indefinite": (np.diag([1.0, -1e-11]), "smallest eigenvalue is -1e-11 times the largest"),
    "negative": (np.diag([-1.0, -2.0]), "smallest eigenvalue is -1 times the largest in size"),
    "zero": (np.zeros((2, 2)), "covariance: got zeros only; takes a covariance with some variance"),
    "huge": (np.eye(2) * 1e160, "got entries up to 1e+160"),
    "complex": (np.eye(2) * 1j, "got an array of complex128; takes an array of real numbers"),
    "texts": ([["a"]], "got an array of <U1"),
    "objects": (np.array([[None]]), "got an array of object"),
}
BAD_SAMPLES = {
    "one row": (
        np.ones((1, 3)),
        "samples: got shape (1, 3); takes two samples or more, one a row: shape (count, n)",
    ),
    "a vector": (np.ones(3), "got shape (3,)"),
    "no features": (np.ones((3, 0)), "got shape (3, 0)"),
    "not finite": (np.array([[1.0, np.nan], [2.0, 3.0]]), "got 1 of 4 entries not finite"),
    "all equal": (
        np.full((5, 2), 0.1),
        "samples: got samples that are all equal; takes samples with some variance",
    ),
    "tiny": (np.eye(3) * 1e-170, "samples with some variance"),
    "huge": (np.eye(3) * 1e80, "got entries up to 1e+80; takes entries up to 1e+75 in size"),
    "ragged": ([[1, 2], [3]], "got rows of different lengths"),
}


@pytest.mark.parametrize("name", BAD_COVARIANCES)
def test_a_bad_covariance_is_refused_in_one_line(name, tmp_path):
    covariance, message = BAD_COVARIANCES[name]
    with pytest.raises(InvalidOption) as caught:
        from_covariance(covariance)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples_are_refused_in_one_line(name):
    samples, message = BAD_SAMPLES[name]
    with pytest.raises(InvalidOption) as caught:
        from_samples(samples)
    assert message in str(caught.value)


def test_samples_that_are_all_zero_have_no_second_moment():
    with pytest.raises(InvalidOption, match="samples that are all zero"):
        from_samples(np.zeros((3, 2)), center=False)


# --- options --------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ("zipf", {"rank": 21}, "target.rank: got 21; takes an integer from 1 to dimension (20), or null"),
    ("random", {"rank": 0}, "target.rank: got 0; takes an integer from 1 to dimension (20), or null"),
    (
        "power_law",
        {"dimension": 5, "rank": 6},
        "target.rank: got 6; takes an integer from 1 to dimension (5), or null",
    ),
    ("geometric", {"rank": -1}, "target.rank: got -1"),
    *[(name, {"dimension": 0}, "target.dimension: got 0; takes an integer from 1") for name in FAMILIES[:-1]],
    ("zipf", {"dimension": 2.5}, "target.dimension: got 2.5; takes an integer"),
    ("zipf", {"s_min": -0.5}, "target.s_min: got -0.5; takes a number from 0 to 1e+75, or null"),
    ("random", {"s_min": float("inf")}, "target.s_min: got inf"),
    ("random", {"s_min": float("nan")}, "target.s_min: got nan"),
    (
        "zipf",
        {"reading": "eigenvalue"},
        "target.reading: got 'eigenvalue'; takes eigenvalues or singular_values",
    ),
    *[
        (
            name,
            {"seed": -1, **REQUIRED.get(name, {})},
            "target.seed: got -1; takes an integer from 0 to 2^32 - 1",
        )
        for name in FAMILIES
    ],
    ("zipf", {"seed": 2**32}, "target.seed: got 4294967296"),
    ("zipf", {"dimensions": 3}, "target.dimensions: got 3; takes one of dimension, "),
    ("zip", {}, "target: got zip; takes one of digits, "),
    ("power_law", {"exponent": -1.0}, "target.exponent: got -1.0; takes a number from 0"),
    ("power_law", {"exponent": float("inf")}, "target.exponent: got inf"),
    (
        "power_law",
        {"exponent": 20.0},
        "target.exponent: got 20.0, which makes the smallest eigenvalue 9.5e-27 of the largest; "
        "takes what leaves it 0 or at least 1e-12 of the largest",
    ),
    ("power_law", {"largest": 0.0}, "target.largest: got 0.0; takes a number above 0, at most 1e+150"),
    ("geometric", {"largest": float("inf")}, "target.largest: got inf"),
    (
        "geometric",
        {"condition_number": 0.9},
        "target.condition_number: got 0.9; takes a number from 1 to 1e+12",
    ),
    (
        "geometric",
        {"condition_number": 1e13},
        "target.condition_number: got 10000000000000.0; takes a number from 1 to",
    ),
    (
        "geometric",
        {"rank": 1},
        "target.condition_number: got 100.0; takes 1 when only one eigenvalue is not zero",
    ),
    (
        "spiked",
        {"spikes": [0.5]},
        "target.spikes: got 0.5 (1 of 1); takes numbers from bulk (1) to 1e+150, not all 0",
    ),
    ("spiked", {"spikes": [0.0], "bulk": 0.0}, "target.spikes: got zeros only; takes numbers from bulk (0)"),
    ("spiked", {"spikes": []}, "target.spikes: got 0 numbers; takes a list of 1 to dimension (20) numbers"),
    ("spiked", {"dimension": 2}, "target.spikes: got 3 numbers; takes a list of 1 to dimension (2) numbers"),
    ("spiked", {"bulk": -1.0}, "target.bulk: got -1.0; takes a number from 0 to 1e+150"),
    (
        "spiked",
        {"spikes": [1e20]},
        "target.spikes: got 1e+20 above a bulk of 1, which makes the smallest eigenvalue 1e-20 of",
    ),
    ("explicit", {}, "target.eigenvalues: got nothing; takes a list, each a number"),
    (
        "explicit",
        {"eigenvalues": []},
        "target.eigenvalues: got an empty list; takes one number for each dimension",
    ),
    (
        "explicit",
        {"eigenvalues": [1.0, -2.0, float("inf")]},
        "target.eigenvalues: got -2.0, inf (2 of 3); takes numbers from 0 to 1e+150, not all 0",
    ),
    ("explicit", {"eigenvalues": [1.0, float("nan")]}, "target.eigenvalues: got "),
    ("explicit", {"eigenvalues": [0.0, 0.0]}, "target.eigenvalues: got zeros only; takes numbers from 0"),
    ("explicit", {"eigenvalues": [1.0, 1e-14]}, "target.eigenvalues: got 1e-14 beside 1, which makes"),
    (
        "image_patches",
        {"side": 513},
        "target.side: got 513; takes an integer from 2 to 511: camera has 512 x 512 pixels, room for two",
    ),
    ("image_patches", {"image": "text", "side": 173}, "target.side: got 173; takes an integer from 2 to 172"),
    ("image_patches", {"side": 1}, "target.side: got 1; takes an integer from 2"),
    (
        "image_patches",
        {"count": 1},
        "target.count: got 1; takes an integer from 2 to 255025, the patches of side 8",
    ),
    ("image_patches", {"side": 512}, "target.side: got 512"),
    ("image_patches", {"image": "astronaut"}, "target.image: got 'astronaut'; takes brick or camera"),
    ("digits", {"side": 8}, "target.side: got 8; takes nothing: digits has no options"),
    ("file", {}, "target.path: got nothing; takes a text"),
    ("file", {"path": "a.npy", "kind": "sample"}, "target.kind: got 'sample'; takes samples or covariance"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD_OPTIONS)
def test_a_bad_option_is_refused_in_one_line(name, options, message):
    assert refusal(name, **options).startswith(message)


@pytest.mark.parametrize(
    "call",
    [
        lambda: targets.zipf(reading="singular"),
        lambda: targets.image_patches(image="astronaut"),
        lambda: targets.file(path="a.npy", kind="covariances"),
        lambda: targets.zipf(s_min=float("nan")),
        lambda: targets.power_law(exponent=float("nan")),
        lambda: targets.explicit(eigenvalues=(1.0, float("nan"))),
    ],
)
def test_a_direct_call_is_checked_too(call):
    with pytest.raises(InvalidOption):
        call()


@pytest.mark.parametrize("name", list(TARGETS))
def test_the_yaml_file_has_the_options_and_defaults_of_the_function(name):
    """Of every registered target, and each option with a comment."""
    path = CONFIGS / f"{name}.yaml"
    options = OmegaConf.to_container(OmegaConf.load(path))
    assert options.pop("name") == name
    parameters = TARGETS.options(name)
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731
    defaults = {key: "???" if p.default is p.empty else plain(p.default) for key, p in parameters.items()}
    assert list(options.items()) == list(defaults.items())
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[1] == f"name: {name}"
    assert all("  # " in line and len(line) <= 110 for line in lines[2:])


def test_every_yaml_file_is_a_registered_target():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(TARGETS)


def test_targets_take_keyword_options_only_and_samples_take_the_same():
    for name in TARGETS:
        parameters = inspect.signature(TARGETS[name]).parameters.values()
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    for name in SAMPLES:
        assert SAMPLES.options(name) == TARGETS.options(name)


# --- real data ------------------------------------------------------------------------------------


def test_digits_are_all_of_them():
    target, loaded = TARGETS.build(Choice("digits")), data.samples(Choice("digits"))
    assert loaded.values.shape == (1797, 64) and loaded.image_shape == (8, 8)
    assert loaded.values.min() == 0 and loaded.values.max() == 16
    assert np.sum(np.asarray(target.eigenvalues) > 0) == 61
    assert_is_decomposition(target, np.cov(loaded.values.T, bias=True))


def test_faces_are_the_first_half_and_singular():
    target, loaded = TARGETS.build(Choice("faces")), data.samples(Choice("faces"))
    assert loaded.values.shape == (100, 625) and loaded.image_shape == (25, 25)
    assert loaded.values.std(axis=0).mean() < 0.2, "the other half, crops without a face, differ by 0.29"
    assert loaded.values.min() >= 0 and loaded.values.max() <= 1
    assert np.sum(np.asarray(target.eigenvalues) > 0) == 99
    assert_is_decomposition(target, np.cov(loaded.values.T, bias=True))


@pytest.mark.parametrize("image", typing.get_args(data.Photograph))
def test_image_patches_are_patches_of_the_photograph_less_their_mean(image):
    from skimage.io import imread

    choice = Choice.of({"name": "image_patches", "image": image, "side": 4, "count": 500, "seed": 3})
    target, loaded = TARGETS.build(choice), data.samples(choice)
    assert loaded.values.shape == (500, 16) and loaded.image_shape == (4, 4)
    np.testing.assert_allclose(loaded.values.mean(axis=1), 0, atol=1e-15)
    assert np.sum(np.asarray(target.eigenvalues) > 0) <= 15
    assert_is_decomposition(target, np.cov(loaded.values.T, bias=True))
    photograph = imread(data._shipped(f"{image}.png", "image_patches")) / 255.0
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (4, 4)).reshape(-1, 16)
    differences = windows - windows[:, :1]
    for patch in loaded.values[:3]:
        assert np.abs(differences - (patch - patch[0])).max(axis=1).min() < 1e-14


def test_image_patches_are_different_and_depend_on_the_seed():
    choice = {"name": "image_patches", "image": "text", "side": 171, "count": 100}
    first, again, other = (data.samples(Choice.of(choice | {"seed": seed})).values for seed in (0, 0, 1))
    assert len({patch.tobytes() for patch in first}) == 100
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert targets.image_patches(image="camera").eigenvalues[62] > 0


def test_a_family_has_no_samples():
    assert data.samples(Choice("zipf")) is None


def test_a_data_target_is_the_target_of_its_samples():
    for name in ("digits", "image_patches"):
        target, loaded = TARGETS.build(Choice(name)), data.samples(Choice(name))
        for one, other in zip(target, from_samples(loaded.values), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("digits", "sklearn", "scikit-learn"),
        ("faces", "skimage", "scikit-image"),
        ("image_patches", "skimage", "scikit-image"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, name, module, package):
    for each in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, module, None)
    assert refusal(name) == (
        f"target.name: got {name} without {package}; "
        "takes an installation with the extra `data`: pip install 'bwdln[data]'"
    )


def test_a_file_that_scikit_image_lacks_is_said_and_not_downloaded():
    with pytest.raises(
        InvalidOption, match=r"name: got faces, with a scikit-image that does not contain no\.png"
    ):
        data._shipped("no.png", "faces")


def test_heavy_packages_are_imported_only_for_their_data():
    code = (
        "import sys; from bwdln import targets; "
        "assert not {'sklearn', 'skimage', 'matplotlib', 'scipy.stats'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# --- a user's file --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).standard_normal((30, 6)) + 2


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
@pytest.mark.parametrize(("kind", "center"), [("samples", True), ("samples", False), ("covariance", True)])
def test_a_file_gives_the_target_of_its_contents(tmp_path, values, suffix, kind, center):
    array = values if kind == "samples" else np.cov(values.T, bias=True)
    path = str(tmp_path / f"a.{suffix}")
    if suffix == "csv":
        np.savetxt(path, array, delimiter=",")
    else:
        np.save(path, array) if suffix == "npy" else np.savez(path, array)
    choice = Choice.of({"name": "file", "path": path, "kind": kind, "center": center})
    expected = from_samples(values, center=center) if kind == "samples" else from_covariance(array)
    for one, other in zip(TARGETS.build(choice), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    loaded = data.samples(choice)
    if kind == "covariance":
        assert loaded is None
    else:
        np.testing.assert_array_equal(loaded.values, values)
        assert loaded.image_shape is None


def test_a_stack_of_images_keeps_their_shape(tmp_path, values):
    np.savez(tmp_path / "a.npz", images=values.reshape(30, 2, 3), labels=np.arange(30))
    choice = Choice.of({"name": "file", "path": str(tmp_path / "a.npz"), "array": "images"})
    loaded = data.samples(choice)
    np.testing.assert_array_equal(loaded.values, values)
    assert loaded.image_shape == (2, 3)
    np.testing.assert_array_equal(TARGETS.build(choice).eigenvalues, from_samples(values).eigenvalues)


@pytest.mark.parametrize("kind", ["samples", "covariance"])
def test_what_is_wrong_with_a_files_contents_names_the_file(tmp_path, kind):
    bad = BAD_SAMPLES if kind == "samples" else BAD_COVARIANCES
    for name, (array, message) in bad.items():
        if name in ("ragged", "objects"):
            continue
        path = str(tmp_path / "a.npy")
        np.save(path, array)
        said = refusal("file", path=path, kind=kind)
        assert said.startswith(f"target.path: got {path}: ")
        assert message.split("got ", 1)[-1] in said


def test_options_that_do_not_fit_the_file_are_refused(tmp_path, values):
    path = str(tmp_path / "a.npz")
    np.savez(path, a=np.cov(values.T), b=values)
    assert refusal("file", path=path).startswith(
        "target.array: got null; takes an array of a.npz, one of a, b"
    )
    said = refusal("file", path=path, kind="covariance", array="a", center=False)
    assert said == "target.center: got False; takes true for a covariance: there is nothing to center"
    for kind in ("samples", "covariance"):
        said = refusal("file", path="a.csv", array="a", kind=kind)
        assert said.startswith("target.path: got a.csv, which is not a file; ")
        (tmp_path / "b.csv").write_text("1,x")
        path = str(tmp_path / "b.csv")
        said = refusal("file", path=path, kind=kind)
        assert said.startswith(f"target.path: got {path}: 'x' in line 1, column 2; ")


def test_no_images_and_no_numbers_are_no_samples(tmp_path):
    for shape in ((0, 3, 3), (4, 0, 3), (0, 3), (), (2, 2, 2, 2)):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        assert "takes two samples or more" in refusal("file", path=str(tmp_path / "a.npy"))
