"""Starts: shapes, distributions, balancedness, the margin, a user's files, and what is refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bwdln import initializations, networks
from bwdln.errors import InvalidOption
from bwdln.initializations import STARTS, balanced, close_to_target
from bwdln.registry import Choice
from bwdln.targets import Target

CONFIGS = Path(__file__).parents[1] / "configs" / "initialization"
OURS = [name for name in STARTS if STARTS[name].__module__ == initializations.__name__]
DRAWN = [name for name in OURS if name not in ("file", "close_to_target")]
WITH_BALANCED = [name for name in OURS if "balanced" in STARTS.options(name)]

KEY = jax.random.key(0)
WIDTHS = st.lists(st.integers(1, 6), min_size=2, max_size=7).map(tuple)


def target_of(eigenvalues: Any, seed: int = 0) -> Target:
    values = jnp.asarray(eigenvalues, float)
    return Target(values, jax.random.orthogonal(jax.random.key(seed), len(values)))


def target_for(widths: tuple[int, ...]) -> Target:
    return target_of(np.linspace(3.0, 1.0, widths[-1]))


def start(name: str, widths: tuple[int, ...], key: Any = KEY, **options: Any) -> list[np.ndarray]:
    return [np.asarray(layer) for layer in STARTS[name](key, widths, target_for(widths), **options)]


def product(layers: list[np.ndarray]) -> np.ndarray:
    result = layers[0]
    for layer in layers[1:]:
        result = layer @ result
    return result


def imbalances(layers: list[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(above.T @ above - below @ below.T)) for below, above in pairwise(layers)]


def shapes(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(rows, columns) for columns, rows in pairwise(widths)]


def assert_balanced(layers: list[np.ndarray], largest: float) -> None:
    scale = largest ** (2 / len(layers)) * layers[0].shape[0] ** 0.5
    assert max(imbalances(layers), default=0.0) <= 1e-13 * scale


# --- balanced -------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(WIDTHS, st.integers(0, 6), st.floats(-6, 6), st.integers(0, 2**31))
def test_balanced_reproduces_the_matrix(widths: Any, rank: int, decades: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    rank = min(rank, *widths)
    left, right = random.normal(size=(widths[-1], rank)), random.normal(size=(rank, widths[0]))
    matrix = 10**decades * left @ right
    layers = [np.asarray(layer) for layer in balanced(jnp.asarray(matrix), widths)]
    size = float(np.linalg.norm(matrix, 2))
    assert [layer.shape for layer in layers] == shapes(widths)
    np.testing.assert_allclose(product(layers), matrix, rtol=0, atol=2e-12 * size)
    assert_balanced(layers, size)
    if len(widths) > 2:
        assert all(np.linalg.matrix_rank(layer, 1e-9 * size ** (1 / len(layers))) == rank for layer in layers)


def test_balanced_layers_carry_the_root_of_every_singular_value() -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 6))
    values = np.linalg.svd(matrix, compute_uv=False)
    layers = balanced(jnp.asarray(matrix), (6, 7, 4, 5, 4))
    for layer in layers:
        found = np.linalg.svd(np.asarray(layer), compute_uv=False)
        np.testing.assert_allclose(found[:4], values ** (1 / 4), rtol=1e-13)
        np.testing.assert_allclose(found[4:], 0, atol=1e-13)


def test_balanced_does_not_amplify_the_noise_of_a_rank_deficient_matrix() -> None:
    matrix = np.outer(np.arange(1.0, 6.0), np.ones(5))
    layers = balanced(jnp.asarray(matrix), (5,) * 51)
    assert all(np.linalg.matrix_rank(np.asarray(layer), 1e-12) == 1 for layer in layers)


def test_balanced_refuses_another_shape_and_a_rank_above_the_bottleneck() -> None:
    with pytest.raises(InvalidOption, match=r"^end_to_end: got shape \(3, 4\); takes shape \(4, 3\)"):
        balanced(jnp.ones((3, 4)), (3, 5, 4))
    full = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    message = (
        "end_to_end: got a matrix of rank 4; takes rank at most 2, the bottleneck of the widths [5, 2, 4]"
    )
    with pytest.raises(InvalidOption, match=re.escape(message)):
        balanced(full, (5, 2, 4))
    with pytest.raises(InvalidOption, match="rank 4"):
        jax.jit(lambda: balanced(full, (5, 2, 4)))()


def test_balanced_takes_the_best_approximation_of_a_traced_matrix() -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 5))
    layers = jax.jit(lambda given: balanced(given, (5, 2, 4)))(matrix)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    best = (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(product(list(layers)), best, atol=1e-13)


# --- what every start is --------------------------------------------------------------------------


@settings(max_examples=20)
@given(WIDTHS)
def test_shapes_for_all_widths(widths: tuple[int, ...]) -> None:
    target = target_for(widths)
    full_rank = ["close_to_target"] if min(widths) == widths[-1] else []
    for name in [*DRAWN, *full_rank]:
        for options in [{}, {"balanced": True}] if name in WITH_BALANCED else [{}]:
            begin = partial(STARTS[name], widths=widths, target=target, **options)
            abstract = jax.eval_shape(lambda key, begin=begin: begin(key), KEY)
            assert [layer.shape for layer in abstract] == shapes(widths)
            assert {layer.dtype for layer in abstract} == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", [name for name in OURS if name != "file"])
def test_vmap_over_keys_equals_single_calls_and_keys_differ(name: str) -> None:
    widths, target = (4, 3, 3), target_of([3.0, 2.0, 1.0])
    options: list[dict[str, bool]] = [{}, {"balanced": True}] if name in ("normal", "identity") else [{}]

    def begin(key: Any) -> list[Any]:
        return [layer for each in options for layer in STARTS[name](key, widths, target, **each)]

    keys = jax.random.split(KEY, 2)
    batch = jax.jit(jax.vmap(begin))(keys)
    for index in (0, 1):
        for together, alone in zip(batch, begin(keys[index]), strict=True):
            np.testing.assert_allclose(together[index], alone, rtol=1e-10, atol=1e-13)
    same = [np.allclose(layer[0], layer[1]) for layer in batch]
    assert all(same) == (name == "identity")


@pytest.mark.parametrize("name", WITH_BALANCED)
def test_layers_of_equal_shape_differ_and_balanced_ones_are_balanced(name: str) -> None:
    widths = (4, 3, 3, 3, 2, 3)
    layers = start(name, widths)
    if name != "identity":
        assert not np.allclose(layers[1], layers[2])
    spread = start(name, widths, balanced=True)
    size = float(np.linalg.norm(product(spread), 2))
    assert_balanced(spread, size)
    assert size > 0


def test_the_program_does_not_grow_with_depth() -> None:
    def draws(depth: int) -> int:
        target = target_of([1.0] * 4)
        jaxpr = jax.make_jaxpr(lambda key: STARTS["normal"](key, (4,) * (depth + 1), target))(KEY)
        return str(jaxpr).count("erf_inv")

    assert draws(100) == draws(1) == 1


def test_a_long_network_has_the_layers_of_a_short_loop() -> None:
    widths = (3,) * 41
    layers, keys = start("normal", widths), jax.random.split(KEY, 40)
    expected = [0.1 * jax.random.normal(key, (3, 3)) for key in keys]
    np.testing.assert_allclose(layers, expected, rtol=1e-14)


def test_single_precision_without_x64() -> None:
    with jax.enable_x64(False):
        target = target_of([2.0, 1.5, 1.0])
        for name in [*DRAWN, "close_to_target"]:
            begin = partial(STARTS[name], widths=(3, 4, 3), target=target)
            abstract = jax.eval_shape(lambda key, begin=begin: begin(key), jax.random.key(0))
            assert {layer.dtype for layer in abstract} == {jnp.dtype("float32")}


# --- distributions --------------------------------------------------------------------------------

VARIANCES = {
    "normal": ({"scale": 0.3}, lambda rows, columns: 0.09),
    "uniform": ({"scale": 0.6}, lambda rows, columns: 0.12),
    "xavier_normal": ({"scale": 1.5}, lambda rows, columns: 2.25 * 2 / (rows + columns)),
    "xavier_uniform": ({"scale": 1.5}, lambda rows, columns: 2.25 * 2 / (rows + columns)),
    "kaiming_normal": ({"scale": 2**0.5}, lambda rows, columns: 2 / columns),
    "kaiming_uniform": ({"scale": 2**0.5}, lambda rows, columns: 2 / columns),
    "small": ({"scale": 1e-3}, lambda rows, columns: 1e-6 / columns),
    "low_rank": ({"scale": 2.0, "rank": 20}, lambda rows, columns: 4 / columns),
}


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("on_product", [False, True])
def test_entries_have_the_defined_variance(name: str, on_product: bool) -> None:
    options, variance = VARIANCES[name]
    widths = (40, 60, 50)
    layers = start(name, widths, **options, balanced=on_product)
    layers = [product(layers)] if on_product else layers
    for layer in layers:
        expected, count = variance(*layer.shape), layer.size
        # The relative deviation of a sample variance is √(2/count); products of normals have more.
        tolerance = (3 if name == "low_rank" else 1) * 6 * (2 / count) ** 0.5
        assert layer.var() == pytest.approx(expected, rel=tolerance)
        assert abs(layer.mean()) < 6 * (3 * expected / count) ** 0.5
        if "uniform" in name:
            assert 0.99 < np.abs(layer).max() / (3 * expected) ** 0.5 <= 1 + 1e-12
        if name == "normal":
            fourth = np.mean(layer**4) / expected**2
            assert fourth == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize("widths", [(3, 3, 3), (5, 3, 5), (4, 1, 5)])
def test_orthogonal_layers(widths: tuple[int, ...]) -> None:
    for layer in start("orthogonal", widths, scale=2.0):
        short = layer if layer.shape[0] <= layer.shape[1] else layer.T
        np.testing.assert_allclose(short @ short.T, 4 * np.eye(len(short)), atol=1e-13)


def test_orthogonal_matrices_have_no_preferred_sign() -> None:
    batch = jax.vmap(lambda key: STARTS["orthogonal"](key, (3, 3), None)[0])(jax.random.split(KEY, 2000))
    np.testing.assert_allclose(np.mean(batch, axis=0), 0, atol=6 / (3 * 2000) ** 0.5)


def test_balanced_orthogonal_keeps_equal_singular_values() -> None:
    layers = start("orthogonal", (5, 3, 5), scale=2.0, balanced=True)
    values = np.linalg.svd(product(layers), compute_uv=False)
    np.testing.assert_allclose(values, [2, 2, 2, 0, 0], atol=1e-13)


def test_identity() -> None:
    layers = start("identity", (4, 2, 3), scale=3.0)
    np.testing.assert_array_equal(layers[0], 3 * np.eye(2, 4))
    np.testing.assert_array_equal(product(layers), 9 * np.eye(2, 4).T[:3, :2] @ np.eye(2, 4))
    spread = product(start("identity", (4, 2, 3), scale=3.0, balanced=True))
    np.testing.assert_allclose(np.linalg.svd(spread, compute_uv=False), [3, 3, 0], atol=1e-14)


@pytest.mark.parametrize("on_product", [False, True])
def test_low_rank(on_product: bool) -> None:
    layers = start("low_rank", (4, 3, 5, 4), rank=2, balanced=on_product)
    for matrix in (*layers, product(layers)):
        assert np.linalg.matrix_rank(matrix, 1e-10) == 2


# --- aligned: the exact recursion E3 --------------------------------------------------------------


@pytest.mark.parametrize("spectrum", ["flat", "target"])
@pytest.mark.parametrize("widths", [(5, 4), (3, 4), (4, 6, 4), (5, 3, 6, 4), (4, 1, 4)])
def test_aligned_has_the_eigenvectors_of_the_target(widths: tuple[int, ...], spectrum: str) -> None:
    target = target_of([5.0, 3.0, 1.0, 0.2])
    layers = [np.asarray(x) for x in STARTS["aligned"](KEY, widths, target, scale=0.3, spectrum=spectrum)]
    modes = min(widths)
    expected = 0.3 * (np.ones(modes) if spectrum == "flat" else np.sqrt(target.eigenvalues[:modes]))
    rotated = np.asarray(target.eigenvectors).T @ product(layers)
    covariance = np.zeros(4)
    covariance[:modes] = expected**2
    np.testing.assert_allclose(rotated @ rotated.T, np.diag(covariance), atol=1e-14)
    assert_balanced(layers, expected.max())


def mode_recursion(roots: np.ndarray, widths: Any, tau: float, step: float, start: np.ndarray) -> np.ndarray:
    """One step of docs/theory.md §5, E3, for w = s^{1/N}."""
    depth = len(widths) - 1
    s = start**depth
    slope = 2 * s * (1 - roots / np.sqrt(s**2 + tau))
    return start - step * start ** (depth - 1) * slope


@pytest.mark.parametrize("spectrum", ["flat", "target"])
@pytest.mark.parametrize("tau", [0.0, 0.05])
@pytest.mark.parametrize("widths", [(4, 4), (5, 6, 4), (3, 4, 5, 4), (4, 2, 4, 4, 4)])
def test_aligned_modes_follow_the_exact_recursion(widths: Any, tau: float, spectrum: str) -> None:
    target = target_of([5.0, 3.0, 1.0, 0.2])
    begin = STARTS["aligned"](KEY, widths, target, scale=0.3, spectrum=spectrum)
    layers, omega = [np.asarray(layer) for layer in begin], np.asarray(target.eigenvectors)
    root = (omega * np.sqrt(target.eigenvalues)) @ omega.T
    modes, depth, step = min(widths), len(layers), 5e-3
    expected = 0.3 * (np.ones(modes) if spectrum == "flat" else np.sqrt(target.eigenvalues[:modes]))
    reduced = expected ** (1 / depth)
    for _ in range(200):
        matrix = product(layers)
        left, values, _ = np.linalg.svd(matrix)
        values = np.append(values, np.zeros(4))[:4] * (np.arange(4) < modes)
        perturbed = (left * np.sqrt(values**2 + tau)) @ left.T
        if tau:
            factor = np.linalg.svd(root @ perturbed)
            transport = root @ (factor[0] @ factor[2]) @ np.linalg.inv(perturbed)
            gradient = 2 * (matrix - transport @ matrix)
        else:
            u, _, v = np.linalg.svd(root @ matrix)
            gradient = 2 * (matrix - root @ u[:, :modes] @ v[:modes])
        above = [product([np.eye(layer.shape[0]), *layers[j + 1 :]]) for j, layer in enumerate(layers)]
        below = [product([np.eye(widths[0]), *layers[:j]]) for j in range(depth)]
        layers = [
            layer - step * a.T @ gradient @ b.T for layer, a, b in zip(layers, above, below, strict=True)
        ]
        reduced = mode_recursion(np.sqrt(target.eigenvalues[:modes]), widths, tau, step, reduced)
    cosines = omega[:, :modes].T @ product(layers)
    np.testing.assert_allclose(np.linalg.norm(cosines, axis=1), reduced**depth, rtol=1e-10)


# --- close to the target: the margin --------------------------------------------------------------

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


IMPOSSIBLE = [
    (
        (4, 3, 4),
        [4.0, 3.0, 2.0, 1.0],
        {},
        "name: got close_to_target with a bottleneck of 3; takes a network as",
    ),
    (
        (3, 3),
        [2.0, 1.0, 0.0],
        {},
        "name: got close_to_target with a singular target, whose smallest eigenvalue",
    ),
    (
        (2, 2),
        [2.0, 0.5],
        {"tau": 0.5},
        "tau: got 0.5; takes a number below 0.5, the target's smallest eigenvalue",
    ),
    ((2, 2), [2.0, 0.5], {"tau": 3.0}, "tau: got 3.0; takes a number below 0.5"),
    ((2, 2), [2.0, 0.5], {"tau": -1.0}, "tau: got -1.0; takes a finite number from 0"),
    ((2, 2), [2.0, 0.5], {"tau": float("nan")}, "tau: got nan; takes a finite number from 0"),
    ((2, 2), [2.0, 0.5], {"scale": 0.0}, "scale: got 0.0; takes a number above 0 and below 3"),
    ((2, 2), [2.0, 0.5], {"scale": 3.0}, "scale: got 3.0; takes a number above 0 and below 3"),
    ((2, 2), [1e40, 1.0], {}, "name: got close_to_target where √λ_n − √τ = 1; takes more than"),
    ((2, 2), [1.0, 1.0], {"tau": 1 - 1e-15}, "name: got close_to_target where √λ_n − √τ ="),
]


@pytest.mark.parametrize(("widths", "spectrum", "options", "message"), IMPOSSIBLE)
def test_close_to_target_says_why_there_is_no_margin(
    widths: Any, spectrum: Any, options: Any, message: str
) -> None:
    target = target_of(spectrum)
    begin = partial(close_to_target, widths=widths, target=target, **options)
    for call in (begin, jax.jit(lambda key: begin(key))):
        with pytest.raises(InvalidOption) as error:
            call(KEY)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


# --- options --------------------------------------------------------------------------------------

BAD = [
    ("normal", {"scale": 0.0}, "initialization.scale: got 0.0; takes a finite number above 0"),
    ("normal", {"scale": float("inf")}, "initialization.scale: got inf; takes a finite number above 0"),
    ("uniform", {"scale": -1.0}, "initialization.scale: got -1.0; takes a finite number above 0"),
    *[
        (f"{family}_{kind}", {"scale": -1.0}, "initialization.scale: got -1.0; takes a finite number above 0")
        for family in ("xavier", "kaiming")
        for kind in ("normal", "uniform")
    ],
    *[
        (name, {"scale": 0.0}, "initialization.scale: got 0.0; takes a finite number above 0")
        for name in ("small", "orthogonal", "identity", "low_rank", "aligned")
    ],
    ("low_rank", {"rank": 0}, "initialization.rank: got 0; takes an integer from 1 to 3, the bottleneck of"),
    ("low_rank", {"rank": 4}, "initialization.rank: got 4; takes an integer from 1 to 3, the bottleneck of"),
    ("aligned", {"spectrum": "round"}, "initialization.spectrum: got 'round'; takes flat or target"),
    ("normal", {"balanced": 1}, "initialization.balanced: got 1; takes true or false"),
    ("normal", {"sdt": 1.0}, "initialization.sdt: got 1.0; takes one of balanced, scale"),
    ("file", {}, "initialization.path: got nothing; takes a text"),
    ("nromal", {}, "initialization: got nromal; takes one of aligned, "),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options_are_refused_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    widths = (4, 3, 4)
    with pytest.raises(InvalidOption) as error:
        STARTS.build(Choice(name, tuple(options.items())), KEY, widths, target_for(widths))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OURS)
def test_the_yaml_file_says_what_the_signature_says(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    options: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert options.pop("name") == name
    expected = {
        option: "???" if each.default is inspect.Parameter.empty else each.default
        for option, each in STARTS.options(name).items()
    }
    if name == "close_to_target":
        expected["tau"] = "${oc.select:loss.tau,0.0}"
    assert options == expected
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("# " in line for line in lines if not line.startswith("name:"))


def test_every_yaml_file_has_a_start() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(OURS)


@pytest.mark.parametrize(("loss", "tau"), [({"name": "frobenius"}, 0.0), ({"tau": 0.25}, 0.25)])
def test_the_margin_is_that_of_the_loss(loss: dict[str, Any], tau: float) -> None:
    group = OmegaConf.load(CONFIGS / "close_to_target.yaml")
    composed: Any = OmegaConf.to_container(
        OmegaConf.create({"loss": loss, "initialization": group}), resolve=True
    )
    assert composed["initialization"]["tau"] == tau


# --- a user's own arrays --------------------------------------------------------------------------


def from_file(path: Path, widths: tuple[int, ...]) -> list[np.ndarray]:
    choice = Choice("file", (("path", str(path)),))
    return [np.asarray(layer) for layer in STARTS.build(choice, KEY, widths, target_for(widths))]


def random_layers(widths: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=shape) for shape in shapes(widths)]


@pytest.mark.parametrize("widths", [(4, 3), (4, 2, 3), (2, 3, 3, 3)])
def test_layers_from_a_file(tmp_path: Path, widths: tuple[int, ...]) -> None:
    layers = random_layers(widths)
    named = {f"W_{index}": layer for index, layer in enumerate(layers, 1)}
    np.savez(tmp_path / "named.npz", **dict(reversed(named.items())))
    np.savez_compressed(tmp_path / "ordered.npz", *layers)
    for name in ("named.npz", "ordered.npz"):
        found = from_file(tmp_path / name, widths)
        assert all(np.array_equal(a, b) for a, b in zip(found, layers, strict=True))


def test_eleven_layers_in_order(tmp_path: Path) -> None:
    layers = random_layers((3,) * 12)
    np.savez(tmp_path / "start.npz", *layers)
    found = from_file(tmp_path / "start.npz", (3,) * 12)
    assert all(np.array_equal(a, b) for a, b in zip(found, layers, strict=True))


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_an_end_to_end_matrix_from_a_file_is_balanced(tmp_path: Path, suffix: str, dtype: Any) -> None:
    widths, path = (4, 2, 5, 3), tmp_path / f"start.{suffix}"
    matrix = np.outer([1, -2, 3], [2, 0, 1, 1]).astype(dtype)
    if suffix == "csv":
        np.savetxt(path, matrix, delimiter=",")
    else:
        {"npy": np.save, "npz": np.savez}[suffix](path, matrix)
    layers = from_file(path, widths)
    np.testing.assert_allclose(product(layers), matrix, atol=1e-13)
    assert_balanced(layers, float(np.linalg.norm(matrix, 2)))
    assert layers[0].dtype == np.float64


def test_a_file_is_the_same_for_every_key(tmp_path: Path) -> None:
    np.save(tmp_path / "start.npy", np.eye(3))
    begin = partial(STARTS["file"], widths=(3, 3, 3), target=target_of([1.0, 1.0, 1.0]))
    batch = jax.vmap(lambda key: begin(key, path=str(tmp_path / "start.npy")))(jax.random.split(KEY, 4))
    assert [layer.shape for layer in batch] == [(4, 3, 3), (4, 3, 3)]


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    widths = (4, 2, 3)
    good = random_layers(widths)
    np.save(tmp_path / "whole.npy", np.ones((3, 4)))
    (tmp_path / "truncated.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "whole.npz", *good)
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-30])
    np.savez(tmp_path / "none.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", good[0], np.array([[{}, None]]))
    np.save(tmp_path / "complex.npy", np.ones((3, 4), complex))
    np.save(tmp_path / "transposed.npy", np.ones((4, 3)))
    np.save(tmp_path / "vector.npy", np.ones(4))
    np.save(tmp_path / "full.npy", np.random.default_rng(0).normal(size=(3, 4)))
    np.save(tmp_path / "nan.npy", np.array([[1, np.nan, 1, 1]] * 3))
    np.save(tmp_path / "huge.npy", np.full((3, 4), 1e200))
    np.savez(tmp_path / "three.npz", *good, good[0])
    np.savez(tmp_path / "partly.npz", W_1=good[0], second=good[1])
    np.savez(tmp_path / "first.npz", W_1=good[0])
    np.savez(tmp_path / "swapped.npz", W_1=good[1], W_2=good[0])
    np.savez(tmp_path / "infinite.npz", W_1=good[0], W_2=np.full((3, 2), np.inf))
    (tmp_path / "weights.pkl").write_bytes(b"cos\nsystem\n")
    takes_layers = "takes W_1 to W_2, or 2 layers in order, or one end-to-end matrix"
    expected = {
        "missing.npz": "which is not a file; takes a file that ends in .npy, .npz or .csv and exists",
        "weights.pkl": "takes a file that ends in .npy, .npz or .csv",
        "truncated.npy": "a file that cannot be read",
        "empty.npy": "a file that cannot be read",
        "text.npz": "a file that cannot be read",
        "truncated.npz": "a file that cannot be read",
        "none.npz": "no arrays; takes an .npz file with an array",
        "objects.npy": "an array of Python objects, which is never unpickled",
        "objects.npz": "an array of Python objects, which is never unpickled",
        "complex.npy": "an array of complex128; takes an array of real numbers",
        "transposed.npy": "shape (4, 3); takes shape (3, 4), by the widths [4, 2, 3]",
        "vector.npy": "shape (4,); takes shape (3, 4), by the widths [4, 2, 3]",
        "full.npy": "a matrix of rank 3; takes rank at most 2, the bottleneck of the widths [4, 2, 3]",
        "nan.npy": "3 of 12 entries not finite; takes finite numbers only",
        "huge.npy": "entries up to 1e+200; takes entries up to 1e+75 in size",
        "three.npz": f"3 arrays (arr_0, arr_1, arr_2); {takes_layers}",
        "partly.npz": f"2 arrays (W_1, second); {takes_layers}",
        "first.npz": f"1 arrays (W_1); {takes_layers}",
        "swapped.npz": "swapped.npz, W_1: shape (3, 2); takes shape (2, 4), by the widths [4, 2, 3]",
        "infinite.npz": "infinite.npz, W_2: 6 of 6 entries not finite; takes finite numbers only",
    }
    for name, message in expected.items():
        with pytest.raises(InvalidOption) as error:
            from_file(tmp_path / name, widths)
        text = str(error.value)
        assert text.startswith(f"initialization.path: got {tmp_path / name}"), text
        assert message in text
        assert "\n" not in text


def test_a_file_is_refused_inside_a_compiled_program_too(tmp_path: Path) -> None:
    np.save(tmp_path / "full.npy", np.random.default_rng(0).normal(size=(3, 4)))
    begin = partial(STARTS["file"], widths=(4, 2, 3), target=target_of([1.0, 1.0, 1.0]))
    with pytest.raises(InvalidOption, match="rank 3"):
        jax.jit(jax.vmap(lambda key: begin(key, path=str(tmp_path / "full.npy"))))(jax.random.split(KEY, 2))
