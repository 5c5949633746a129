"""Starts: shapes, distributions, balancedness, and what is refused."""

from __future__ import annotations

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from starts import KEY, OURS, assert_balanced, product, shapes, start, target_for, target_of

from bwdln.errors import InvalidOption
from bwdln.initializations import STARTS, balanced, balanced_by_construction, shortest
from bwdln.registry import Choice

CONFIGS = Path(__file__).parents[1] / "configs" / "initialization"
DRAWN = [name for name in OURS if name not in ("file", "close_to_target")]
WITH_BALANCED = [name for name in OURS if "balanced" in STARTS.options(name)]
WIDTHS = st.lists(st.integers(1, 6), min_size=2, max_size=7).map(tuple)


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


# --- what is known before a start is drawn --------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_balanced_by_construction_says_what_the_layers_are(name: str) -> None:
    if name in WITH_BALANCED:
        assert balanced_by_construction(Choice(name)) is False
        for value in (True, False):
            assert balanced_by_construction(Choice(name, (("balanced", value),))) is value
    elif name == "file":
        assert balanced_by_construction(Choice("file", (("path", "start.npy"),))) is None
    elif name == "rotated":  # of every other start: tests/test_rotated.py
        assert balanced_by_construction(Choice(name)) is False
    else:
        assert balanced_by_construction(Choice(name)) is True
        layers = start(name, (4, 3, 3, 5, 3))
        assert_balanced(layers, float(np.linalg.norm(product(layers), 2)))


def test_balanced_by_construction_of_a_start_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(key: Any, widths: Any, target: Any, *, size: float = 1.0) -> Any: ...

    def switched(key: Any, widths: Any, target: Any, *, balanced: bool = True) -> Any: ...

    monkeypatch.setattr(STARTS, "_functions", STARTS._functions | {"mine": mine, "switched": switched})
    assert balanced_by_construction(Choice("mine", (("size", 2.0),))) is None
    assert balanced_by_construction(Choice("switched")) is True
    assert balanced_by_construction(Choice("switched", (("balanced", False),))) is False
    with pytest.raises(InvalidOption, match=r"^initialization: got nromal; takes one of aligned, "):
        balanced_by_construction(Choice("nromal"))


@given(WIDTHS)
def test_the_shortest_network_keeps_what_counts(widths: tuple[int, ...]) -> None:
    short = shortest(widths)
    assert (short[0], min(short), short[-1]) == (widths[0], min(widths), widths[-1])
    assert len(short) == (2 if min(widths) in (widths[0], widths[-1]) else 3)
    assert shortest(short) == short


@pytest.mark.parametrize("name", [*WITH_BALANCED, "aligned", "close_to_target"])
def test_the_shortest_network_has_the_same_end_to_end_start(name: str) -> None:
    options = {"balanced": True} if name in WITH_BALANCED else {}
    full_rank = [(5, 3), (3, 6, 4, 3), (4, *[3] * 15)]
    deficient = [(5, 2, 3), (2, 6, 4, 5), (4, 5, 1, 7, 4), (4, *[3] * 15, 5)]
    for widths in full_rank + (deficient if name != "close_to_target" else []):
        expected = product(start(name, shortest(widths), **options))
        found = product(start(name, widths, **options))
        size = float(np.linalg.norm(expected, 2))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * size)


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
    if name == "rotated":
        own, _ = options.pop("defaults")
        expected = {option: each.name for option, each in expected.items()}
        options |= {key.removeprefix("/initialization@"): value for key, value in own.items()}
    assert options == expected
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    headings = ("name:", "defaults:", "  - _self_")
    assert all("# " in line for line in lines if line and not line.startswith(headings))


def test_every_yaml_file_has_a_start() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(OURS)


@pytest.mark.parametrize(("loss", "tau"), [({"name": "frobenius"}, 0.0), ({"tau": 0.25}, 0.25)])
def test_the_margin_is_that_of_the_loss(loss: dict[str, Any], tau: float) -> None:
    group = OmegaConf.load(CONFIGS / "close_to_target.yaml")
    composed: Any = OmegaConf.to_container(
        OmegaConf.create({"loss": loss, "initialization": group}), resolve=True
    )
    assert composed["initialization"]["tau"] == tau
