"""What theory promises of a run: envelopes against SciPy, hypotheses one by one, and runs that obey."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st
from problems import job, orthogonal

from bwdln import fits, simulate
from bwdln.errors import InvalidOption
from bwdln.targets import Target
from bwdln.theory import certificates, hessians
from bwdln.theory.certificates import start_at, start_of

BW = "bures_wasserstein"


def start(eigenvalues=(3.0, 1.0, 0.5), depth=2.0, tau=0.1, loss=BW, share=0.5, rank=None, **others):
    """A start at a `share` of the distance √λ_n − √τ up to which there is a margin."""
    eigenvalues = np.asarray(eigenvalues, float)
    value = (share * (eigenvalues[-1] ** 0.5 - tau**0.5)) ** 2
    rank = len(eigenvalues) if rank is None else rank
    return start_at(eigenvalues, value, depth=depth, tau=tau, loss=loss, rank=rank, **others)


def sharp_speed(loss, smallest, tau, depth):
    """4 N c^{2(N−1)/N} c² / (c² + τ) at a loss, as §6 states it."""
    margin = np.sqrt(np.maximum((smallest**0.5 - loss**0.5) ** 2 - tau, 0))
    return 4 * depth * margin ** (2 * (depth - 1) / depth) * margin**2 / (margin**2 + tau)


# --- bounds as functions of time ------------------------------------------------------------------

STARTS = {
    "the loss itself": {"tau": 0.0, "depth": 1.0},
    "deep": {"tau": 0.1, "depth": 50.0},
    "no integer": {"tau": 0.1, "depth": 2.5},
    "little margin": {"tau": 0.2, "depth": 3.0, "share": 0.999},
    "hardly any margin": {"tau": 0.2, "depth": 1.5, "share": 1 - 1e-4},
    "tau near λ_n": {"tau": 0.4999, "depth": 3.0, "share": 0.9},
    "near the minimizer": {"tau": 0.1, "depth": 3.0, "share": 1e-7},
    "ill-conditioned": {"eigenvalues": (3.0, 1e-6), "tau": 1e-9, "depth": 4.0},
    "large": {"eigenvalues": (2e8, 1e8), "tau": 3.0, "depth": 7.0, "share": 0.9},
}


@pytest.mark.parametrize("name", STARTS)
def test_the_sharp_envelope_is_the_solution_of_its_equation(name):
    at = start(**STARTS[name])
    envelope, smallest = certificates.sharp(at), at.eigenvalues[-1]
    decades = np.array([0, 1e-3, 0.03, 0.3, 1, 3, 10, 100, 500])

    def speed(y):
        return sharp_speed(at.value * np.exp(-y), smallest, at.tau, at.depth)

    # The time as a function of y = ln(L(0)/L): well defined however small the margin is at the start.
    times = scipy.integrate.solve_ivp(
        lambda y, _: 1 / speed(y), (0, 500), [0.0], "DOP853", decades, rtol=1e-12, atol=1e-30
    ).y[0]
    found = np.log(at.value / envelope.bound(times))
    # What a relative error of 1e-11 in the times makes of it.
    error = 1e-10 + 1e-11 * times * speed(decades)
    assert np.all(np.abs(found - decades) <= error)
    assert error[4] < 1e-3
    assert envelope.rate == pytest.approx(speed(0.0), rel=1e-8)
    assert envelope.final_rate == pytest.approx(speed(np.inf), rel=1e-8)


def test_the_final_rate_is_that_of_the_note():
    at = start((3.0, 1.0, 0.5), depth=3.0, tau=0.1)
    assert certificates.sharp(at).final_rate == pytest.approx(4 * 3 * 0.4 ** (2 / 3) * 0.4 / 0.5, rel=1e-14)
    at = start((3.0, 1.0, 0.5), depth=3.0, tau=0.0)
    assert certificates.sharp(at).final_rate == pytest.approx(4 * 3 * 0.5 ** (2 / 3), rel=1e-14)


def test_full_rank_without_tau_at_depth_one_is_exact():
    at = start(depth=1.0, tau=0.0, share=0.999)
    times = np.array([0.0, 0.1, 1.0, 30.0, 170.0])
    np.testing.assert_allclose(certificates.sharp(at).bound(times), at.value * np.exp(-4 * times), rtol=1e-11)


@given(
    st.floats(1, 1e4),
    st.floats(0, 0.999999),
    st.one_of(st.floats(0, 1, exclude_max=True), st.floats(1e-16, 1e-3).map(lambda gap: 1 - gap)),
    st.floats(-140, 140).map(lambda power: 10.0**power),
)
def test_bounds_at_every_time_whatever_the_start(depth, tau, share, scale):
    """Ordered, falling from the loss to 0, and no number is none: to the ends of what floats hold."""
    at = start(np.array([5.0, 1.0]) * scale, depth, tau * scale, share=share)
    sharp, constant, paper = (make(at) for make in certificates.FLOW.values())
    if not sharp.holds:
        assert at.margin == 0
        assert sharp.failing.startswith("margin")
        assert (sharp.rate, sharp.final_rate, paper.rate) == (0, 0, 0)
        return
    assert 0 <= constant.rate == sharp.rate <= sharp.final_rate * (1 + 1e-14) < np.inf
    assert paper.rate <= constant.rate / 4 * (1 + 1e-12)
    times = np.array([0, 1e-300, *np.geomspace(1e-3, 1e3, 20) / sharp.final_rate, 1e305, np.inf])
    values, slower = sharp.bound(times), constant.bound(times)
    assert values[0] == pytest.approx(at.value, rel=1e-11, abs=1e-320)
    # To rounding of √λ_n − √τ, where hardly anything of it is left beside √L.
    assert np.all(values <= slower * (1 + 1e-11) + 1e-320)
    assert np.all(slower <= at.value)
    assert np.all(np.diff(values) <= 1e-13 * values[:-1])
    assert values[-1] == slower[-1] == 0 or constant.rate == 0
    if paper.holds:
        assert np.all(slower <= paper.bound(times) * (1 + 1e-11) + 1e-320)
    floor = certificates.singular_value_floor(at)
    lower = floor.bound(times)
    assert np.all(np.diff(lower) >= -1e-13 * lower[1:])
    assert lower[0] == pytest.approx(at.margin, rel=1e-6)
    assert lower[-1] == pytest.approx(floor.final, rel=1e-12)
    assert floor.final == pytest.approx((scale - at.tau) ** 0.5, rel=1e-9)
    along = certificates.margin(at.eigenvalues, values, tau=at.tau)
    np.testing.assert_allclose(along**2, lower**2, rtol=1e-6, atol=1e-14 * scale)


def test_a_rate_below_all_floats_is_zero():
    at = start((1e-300,), depth=1e4, tau=0.0, share=1 - 2e-16)
    assert 0 < at.margin < 1e-160
    for promise in certificates.entitled(at, "flow"):
        assert promise.rate == 0
        values = promise.bound(np.array([0.0, 1e300, np.inf]))
        np.testing.assert_allclose(values[:2], at.value, rtol=1e-12)
        assert values[2] in (0, at.value)


def test_bounds_take_times_of_any_shape_and_order():
    envelope = certificates.sharp(start())
    times = np.array([[3.0, 0.0], [0.5, 3.0], [1.0, 0.25]])
    values = envelope.bound(times)
    assert values.shape == times.shape
    for place in np.ndindex(*times.shape):
        assert envelope.bound(times[place]) == pytest.approx(values[place], rel=1e-14)
    assert envelope.bound(np.zeros((0,))).shape == (0,)
    for wrong in (-1.0, np.nan):
        with pytest.raises(InvalidOption, match=r"times: .*takes numbers from 0"):
            envelope.bound(np.array([0.0, wrong]))


def test_at_the_minimizer_the_bound_is_zero():
    at = start(share=0.0)
    for promise in certificates.entitled(at, "flow"):
        np.testing.assert_array_equal(promise.bound(np.array([0.0, 1.0])), 0)
    assert len(certificates.entitled(at, "flow")) == 3
    assert certificates.singular_value_floor(at).bound(1.0) == pytest.approx(0.4**0.5, rel=1e-14)
    assert certificates.paper_step_sizes(at).eta_1 == np.inf
    assert 0 < certificates.paper_step_sizes(at).admissible < 1


# --- the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4), (4, 7), (4, 2)])
@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_the_start_of_layers(shape, tau):
    rng = np.random.default_rng(3)
    sigma = Target(jnp.array([3.0, 1.5, 1.0, 0.6]), jnp.asarray(orthogonal(4, rng)))
    near = np.asarray(sigma.root) if shape[1] >= 4 else np.asarray(sigma.eigenvectors)[:, :2]
    matrix = np.zeros(shape)
    matrix[:, : near.shape[1]] = near
    matrix = (matrix + 0.05 * rng.normal(size=shape)) @ orthogonal(shape[1], rng)
    layers = two_layers(matrix, hidden=5)
    found = start_of(layers, sigma, depth=2, tau=tau, loss=BW)
    assert found.rank == min(shape)
    overlap = np.asarray(sigma.root) @ np.concatenate([matrix, tau**0.5 * np.eye(4)], axis=1)
    expected = np.sum(matrix**2) + 4 * tau + 6.1 - 2 * np.sum(np.linalg.svd(overlap, compute_uv=False))
    assert found.value == pytest.approx(expected, rel=1e-11)
    expected = np.maximum((0.6**0.5 - found.value**0.5) ** 2 - tau, 0) ** 0.5 if shape[1] >= 4 else 0
    assert found.margin == pytest.approx(expected, rel=1e-11)
    assert (found.margin > 0) == (shape[1] >= 4)
    assert found.imbalance < 1e-14
    for generator in (matrix, (matrix,)):
        alone = start_of(generator, sigma, depth=7.5, tau=tau, loss=BW)
        assert (alone.depth, alone.imbalance) == (7.5, 0)
        assert alone.value == pytest.approx(found.value, rel=1e-11)
    first, last = 2 * layers[0], layers[1] / 2
    worst = np.linalg.norm(last.T @ last - first @ first.T) / (np.sum(first**2) + np.sum(last**2))
    found = start_of((first, last), sigma, depth=2, tau=tau, loss=BW)
    assert found.imbalance == pytest.approx(worst, rel=1e-12)
    assert worst > 0.1


def two_layers(matrix, hidden):
    """Balanced layers of a product, by NumPy."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rows = np.zeros((hidden, len(values)))
    rows[: len(values)] = np.diag(values**0.5)
    return rows @ right, left @ rows.T


def test_the_start_with_frobenius_holds_the_distance_without_tau():
    sigma = Target(jnp.array([2.0, 1.0]))
    found = start_of(np.eye(2), sigma, depth=1, loss="frobenius")
    assert found.value == pytest.approx((2**0.5 - 1) ** 2, rel=1e-14)


ODD = {
    "depth: got 3; takes 2, the number of layers": {"depth": 3},
    "weights: got 3 rows; takes 2 rows, the dimension of the target": {"weights": np.eye(3)},
    "weights: got numbers that are not finite": {"weights": np.full((2, 2), np.nan)},
    "tau: got -1; takes a finite number from 0": {"tau": -1},
    "tau: got 0.1; takes 0 with frobenius": {"tau": 0.1, "loss": "frobenius"},
    "loss: got other": {"loss": "other"},
    "depth: got 0.5; takes a finite number from 1": {"depth": 0.5},
    "eigenvalues: got an ascending pair": {"target": Target(np.array([1.0, 2.0]))},
}


@pytest.mark.parametrize("words", ODD)
def test_odd_starts_are_refused(words):
    given = {
        "weights": (np.eye(2), np.eye(2)),
        "target": Target(np.array([2.0, 1.0])),
        "depth": 2,
        "loss": BW,
    }
    given |= ODD[words]
    with pytest.raises(InvalidOption) as error:
        start_of(given.pop("weights"), given.pop("target"), **given)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("name", "value"), [("value", -1.0), ("value", np.nan), ("imbalance", -1.0), ("rank", 0), ("rank", 3)]
)
def test_odd_numbers_of_a_start_are_refused(name, value):
    numbers = {"value": 0.1, "depth": 1.0, "loss": BW, "rank": 2, name: value}
    with pytest.raises(InvalidOption, match=f"^{name}: got"):
        start_at(np.array([2.0, 1.0]), **numbers)


# --- hypotheses, each made to fail ----------------------------------------------------------------

FAILING = {
    "loss: the loss is frobenius": {"tau": 0.0, "loss": "frobenius"},
    "full_rank: the bottleneck 2 is not at least the dimension 3": {"rank": 2},
    "balanced: the relative imbalance 0.0003 is not at most 1e-08": {"imbalance": 3e-4},
    "smallest_eigenvalue: λ_n = 0.5 is not above τ = 0.5": {"tau": 0.5},
    "margin: √L_τ = 0.469055 is not below √λ_n − √τ = 0.390879": {"share": 1.2},
}
SHARP = ("sharp", "sharp_constant", "paper_flow", "singular_value_floor")


@pytest.mark.parametrize("words", FAILING)
def test_a_failing_hypothesis_is_named_and_nothing_is_promised(words):
    at = start(**FAILING[words])
    promises = [getattr(certificates, name)(at) for name in SHARP]
    promises.append(certificates.paper_descent(at, 1e-12))
    for promise in promises:
        assert not promise.holds
        assert promise.failing == words or not words.startswith("margin")
        assert f"{words}" in [f"{each.name}: {each.says}" for each in promise.hypotheses if not each.holds]
        with pytest.raises(InvalidOption, match=f"^{promise.name}: got a start that fails "):
            promise.bound(np.array([0.0, 1.0]))
    assert all((promise.rate, promise.final_rate) == (0, 0) for promise in promises[:3])
    assert promises[3][-3:-1] == (0, 0)
    assert certificates.entitled(at, "flow") == certificates.entitled(at, "descent", 1e-12) == ()
    sizes = certificates.paper_step_sizes(at)
    assert (sizes.holds, sizes.failing, *sizes[3:]) == (False, promises[2].failing, 0, 0, 0, 0, 0)


def test_only_one_hypothesis_fails_at_a_time():
    """So that each of them is what the promise lacks; full rank and λ_n > τ take the margin with them."""
    names = [
        [each.name for each in certificates.sharp(start(**f)).hypotheses if not each.holds]
        for f in FAILING.values()
    ]
    assert names == [
        ["loss"],
        ["full_rank", "margin"],
        ["balanced"],
        ["smallest_eigenvalue", "margin"],
        ["margin"],
    ]


def test_hypotheses_that_hold_say_so():
    found = certificates.paper_descent(start(), 1e-12)
    assert found.failing == ""
    assert [each.says for each in found.hypotheses[1:5]] == [
        "the bottleneck 3 is at least the dimension 3",
        "the relative imbalance 0 is at most 1e-08",
        "λ_n = 0.5 is above τ = 0.1",
        "√L_τ = 0.19544 is below √λ_n − √τ = 0.390879",
    ]


def test_the_paper_needs_a_perturbation_and_a_small_step():
    at = start(tau=0.0)
    words = "perturbed: τ = 0 is not above 0"
    assert certificates.paper_flow(at).failing == certificates.paper_step_sizes(at).failing == words
    assert [each.name for each in certificates.entitled(at, "flow")] == ["sharp", "sharp_constant"]
    at = start()
    assert [each.name for each in certificates.entitled(at, "flow")] == list(certificates.FLOW)
    admissible = certificates.paper_step_sizes(at).admissible
    (promise,) = certificates.entitled(at, "descent", admissible)
    assert promise.name == "paper_descent"
    assert promise.rate == promise.final_rate == certificates.paper_flow(at).rate / 2
    large = certificates.paper_descent(at, 1.001 * admissible)
    assert large.failing.startswith(
        f"step_size: the step size {1.001 * admissible:.6g} is not at most the admissible"
    )
    assert certificates.entitled(at, "descent", 1.001 * admissible) == ()


def test_odd_questions_are_refused():
    with pytest.raises(InvalidOption, match="dynamics: got sgd"):
        certificates.entitled(start(), "sgd")
    with pytest.raises(InvalidOption, match="step_size: got None; takes a number above 0 with descent"):
        certificates.entitled(start(), "descent")
    for step_size in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InvalidOption, match=r"step_size: got .*; takes a finite number above 0"):
            certificates.paper_descent(start(), step_size)
    with pytest.raises(InvalidOption, match="slack: got -1"):
        certificates.obeyed(certificates.sharp(start()), np.zeros(1), np.zeros(1), slack=-1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "frobenius"}, "loss: the loss is frobenius"),
        ({"rank": 3}, "deficient: the bottleneck 3 is not below the dimension 3"),
        ({"tau": 0.1}, "unperturbed: τ = 0.1 is not 0"),
        ({"eigenvalues": (3.0, 1.0, 1.0)}, "eigengap: λ_k = 1 is not above λ_k+1 = 1"),
        ({"eigenvalues": (3.0, 0.0, 0.0)}, "eigengap: λ_k = 0 is not above λ_k+1 = 0"),
        ({"imbalance": 1e-3}, "balanced: the relative imbalance 0.001 is not at most 1e-08"),
    ],
)
def test_hypotheses_of_the_rank_deficient_rate(changes, words):
    found = certificates.rank_deficient_rate(start(**{"tau": 0.0, "rank": 2, **changes}))
    assert (found.holds, found.failing, found.value) == (False, words, 0)


def test_hypotheses_of_the_stability_limit():
    none = certificates.stability_limit(start((0.4, 0.2), tau=0.4, share=0.0))
    assert (none.failing, none.value) == ("largest_eigenvalue: λ_1 = 0.4 is not above τ = 0.4", 0)
    assert certificates.stability_limit(start(imbalance=1e-3)).failing.startswith("balanced: ")


# --- the paper's numbers, transcribed anew --------------------------------------------------------


def transcribed(at):
    """§6 in 50 digits, term by term: rate of the flow, η₁, η₂, η₃, Δ."""
    with mpmath.workdps(50):
        n = mpmath.mpf(at.depth)
        trace, loss, tau = sum(map(mpmath.mpf, at.eigenvalues)), mpmath.mpf(at.value), mpmath.mpf(at.tau)
        last, first = mpmath.mpf(at.eigenvalues[-1]), mpmath.mpf(at.eigenvalues[0])
        c = mpmath.sqrt((mpmath.sqrt(last) - mpmath.sqrt(loss)) ** 2 - tau)
        c0 = 2 * (loss + trace)
        m, k = mpmath.sqrt(c0), mpmath.sqrt(tau * last) / (2 * c0**2)
        delta = 2 ** (n + 1) * c ** (-2 * n) * n**2 * m ** ((4 * n - 3) / n) * mpmath.sqrt(first)
        delta += 8 * n * (n - 1) * m ** ((3 * n - 4) / n) * (m ** (1 / n) + trace)
        power = c ** (2 * (n - 1) / n)
        etas = c**2 / (8 * m * mpmath.sqrt(loss)), n * power / (2 * delta), 1 / (4 * n * power)
        return [float(each) for each in (8 * n * c ** (2 * (2 * n - 1) / n) * k, *etas, delta)]


@pytest.mark.parametrize("depth", [1.0, 2.0, 3.5, 20.0])
@pytest.mark.parametrize(("tau", "share"), [(0.1, 0.5), (0.01, 0.99), (0.4, 0.01)])
def test_the_numbers_of_the_paper(depth, tau, share):
    at = start(depth=depth, tau=tau, share=share)
    found = certificates.paper_step_sizes(at)
    expected = transcribed(at)
    np.testing.assert_allclose([certificates.paper_flow(at).rate, *found[3:7]], expected, rtol=1e-10)
    assert found.admissible == min(found[3:6])


def test_the_numbers_of_the_paper_by_hand():
    """λ = τ_0 = 1/4, L = 1/16 at n = 1, λ_1 = 4: r = 7/4, c² = 45/16, C₀ = 65/8, K = 1 / (2 · 65²/64)."""
    at = start_at(np.array([4.0]), 1 / 16, depth=1.0, tau=0.25, loss=BW, rank=1)
    assert at.margin**2 == pytest.approx(45 / 16, rel=1e-14)
    assert certificates.paper_flow(at).rate == pytest.approx(8 * 45 / 16 * 32 / 65**2, rel=1e-14)
    size = (65 / 8) ** 0.5
    found = certificates.paper_step_sizes(at)
    assert found.eta_1 == pytest.approx(45 / 16 / (2 * size), rel=1e-14)
    assert found.delta == pytest.approx(4 * 16 / 45 * size * 2, rel=1e-14)
    assert found.eta_2 == pytest.approx(45 / 16 / (16 * size), rel=1e-14)
    assert (found.eta_3, found.admissible) == (0.25, found.eta_2)


def test_step_sizes_at_a_thousand_layers():
    """Δ is beyond all floats, η₂ below them, and both are said plainly."""
    found = certificates.paper_step_sizes(start(depth=1000.0))
    assert (found.delta, found.eta_2, found.admissible) == (np.inf, 0, 0)
    assert certificates.paper_descent(start(depth=1000.0), 1e-9).failing.startswith("step_size: ")
    assert 0 < certificates.paper_step_sizes(start((1e4, 2e3), depth=80.0, tau=1.0)).admissible < np.inf


# --- the inequality behind the bounds -------------------------------------------------------------


def kernel(singular, depth):
    """K of §5, as a sum where the depth is an integer; `singular` (..., n)."""
    powers = [
        singular[..., :, None] ** (2 * (depth - j) / depth) * singular[..., None, :] ** (2 * (j - 1) / depth)
        for j in range(1, depth + 1)
    ]
    return np.sum(powers, axis=0)


def gradient(generators, eigenvalues, tau):
    """2 (I − T) W in the eigenbasis, T = R (R Σ_τ R)^{−1/2} R, and L_τ = tr (I − T)² Σ_τ (§2); a batch."""
    root, size = np.sqrt(eigenvalues), len(eigenvalues)
    perturbed = generators @ np.swapaxes(generators, -1, -2) + np.asarray(tau)[..., None, None] * np.eye(size)
    values, vectors = np.linalg.eigh(root[:, None] * perturbed * root)
    inverse = (vectors / np.sqrt(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    rest = np.eye(size) - root[:, None] * inverse * root
    return 2 * rest @ generators, np.trace(rest @ rest @ perturbed, axis1=-2, axis2=-1)


@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0, 0.99))
def test_the_loss_falls_at_least_as_fast_as_the_sharp_bound_says(seed, depth, share):
    """dL/dt = −‖∇L^N‖² at fifty starts with a margin, up to the border; the bound is attained at one."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 5))
    eigenvalues = np.sort(rng.uniform(0.05, 2.0, size))[::-1]
    tau = share * eigenvalues[-1]
    farthest = eigenvalues[-1] ** 0.5 - tau**0.5
    # ‖[W  √τ I] − R Q‖ bounds √L_τ: minimizers, and as much beside them as leaves a margin.
    nearest = np.sqrt(eigenvalues - tau)
    noise = rng.normal(size=(50, size, size))
    noise *= (
        rng.uniform(0, 1, (50, 1, 1)) ** 0.3 * farthest / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    )
    generators = (np.diag(nearest) + noise) @ orthogonal(size, rng)
    slopes, values = gradient(generators, eigenvalues, np.full(50, tau))
    left, singular, right = np.linalg.svd(generators)
    inner = np.swapaxes(left, -1, -2) @ slopes @ np.swapaxes(right, -1, -2)
    falls = np.sum(kernel(singular, depth) * inner**2, axis=(1, 2))
    for value, fall, smallest in zip(values, falls, singular[:, -1], strict=True):
        at = start_at(eigenvalues, value, depth=depth, tau=tau, loss=BW, rank=size)
        promise = certificates.sharp_constant(at)
        assert promise.holds
        assert fall >= promise.rate * value * (1 - 1e-9) - 1e-25
        assert smallest >= at.margin * (1 - 1e-9)


# --- runs -----------------------------------------------------------------------------------------

SPECTRA = ((3.0, 1.5, 0.3), (1.0, 0.9, 0.05), (2.0, 2.0, 1.0))
DEPTHS = (1.0, 2.5, 40.0)
SHARES = (0.1, 0.6, 0.95)


def flow_problem(eigenvalues, depth, share, scale):
    tau, smallest = share * eigenvalues[-1], eigenvalues[-1]
    final = sharp_speed(0.0, smallest, tau, depth)
    return simulate.prepare(
        job(
            target={"name": "explicit", "eigenvalues": list(eigenvalues)},
            network={"depth": depth},
            initialization={"name": "close_to_target", "scale": scale, "tau": tau},
            loss={"name": BW, "tau": tau},
            dynamics={"name": "end_to_end_flow", "end_time": 20 / final, "relative_tolerance": 1e-8},
            record={"count": 30},
            seeds=3,
        )
    )


@functools.cache
def flows():
    """(start, times, losses, smallest singular values, margin by the run) of hundreds of lanes."""
    lanes = []
    for shares in ((0.0,), SHARES):  # τ = 0 is a program of its own
        cases = itertools.product(SPECTRA, DEPTHS, shares, (0.95, 0.3))
        problems = [flow_problem(*case) for case in cases]
        for problem, result in zip(problems, simulate.run_together(problems), strict=True):
            data = result.dataset
            tau = problem.lane.loss.get("tau", 0.0)
            for lane in data.seed.values:
                own = data.sel(seed=lane)
                generator = own.initial_end_to_end.values
                at = start_of(generator, problem.target, depth=problem.lane.depth, tau=tau, loss=BW)
                smallest = own.singular_values.values[:, -1]
                lanes.append((at, own.time.values, own.loss.values, smallest, float(own.margin)))
    return lanes


def test_flows_obey_all_they_were_promised():
    lanes = flows()
    assert len(lanes) >= 200
    for at, times, values, smallest, margin in lanes:
        assert at.margin == pytest.approx(margin, rel=1e-9)
        assert at.value == pytest.approx(values[0], rel=1e-9)
        promises = certificates.entitled(at, "flow")
        assert len(promises) == (3 if at.tau else 2)
        for promise in promises:
            assert certificates.obeyed(promise, times, values, slack=1e-8), promise.name
        rounding = 1e-8 * smallest[-1]
        assert np.all(smallest >= certificates.singular_value_floor(at).bound(times) - rounding)
        assert np.all(smallest >= certificates.margin(at.eigenvalues, values, tau=at.tau) - rounding)


def test_the_final_rate_of_the_sharp_envelope_is_attained():
    ratios = []
    for at, times, values, *_ in flows():
        scale = np.sum(at.eigenvalues)
        rate = fits.exponential_rate(times, values, above=1e-10 * scale, below=1e-3 * at.value)
        assert rate.points >= 3
        ratios.append(certificates.sharp(at).final_rate / rate.rate)
    assert min(ratios) > 0.9
    assert max(ratios) < 1 + 1e-4
    assert np.median(ratios) > 0.99


def test_what_is_not_obeyed_is_seen():
    """Bounds of twice the rate, which is runs half as fast, and numbers that are none."""
    seen = []
    for at, times, values, *_ in flows():
        promise = certificates.sharp(at)
        doubled = promise._replace(bound=lambda t, promise=promise: promise.bound(2 * t))
        seen.append(not certificates.obeyed(doubled, times, values, slack=1e-8))
        assert seen[-1] != certificates.obeyed(promise, 2 * times, values, slack=1e-8)
    # Not where the margin at the start is so small that the envelope has hardly begun to fall.
    assert np.mean(seen) > 0.9
    assert not certificates.obeyed(promise, times, np.where(times > times[3], np.nan, values))
    assert not certificates.obeyed(promise, times, np.where(times > times[3], np.inf, values))
    # Both errors of the weights that slack is for: at the size of the loss, and where it is 0.
    (bound,) = promise.bound(times[5:6])
    distance = bound**0.5 + 1e-6 * np.sum(at.eigenvalues) ** 0.5
    assert certificates.obeyed(promise, times[5], distance**2, slack=1.01e-6)
    assert not certificates.obeyed(promise, times[5], distance**2, slack=0.99e-6)


def descents(starts, eigenvalues, step_sizes, tau, depth, steps):
    """Losses (steps + 1, lanes) of descent from layers (lanes, n, n), by NumPy."""
    layers, found = list(starts), []
    step_sizes = np.asarray(step_sizes)[:, None, None]
    for step in range(steps + 1):
        product = functools.reduce(lambda below, above: above @ below, layers)
        slopes, values = gradient(product, eigenvalues, tau)
        found.append(values)
        if step < steps:
            moved = []
            for place in range(depth):
                above = functools.reduce(lambda x, y: y @ x, layers[place + 1 :], np.eye(len(eigenvalues)))
                below = functools.reduce(lambda x, y: y @ x, layers[:place], np.eye(len(eigenvalues)))
                change = np.swapaxes(above, -1, -2) @ slopes @ np.swapaxes(below, -1, -2)
                moved.append(layers[place] - step_sizes * change)
            layers = moved
    return np.array(found)


def near(eigenvalues, tau, depth, lanes, size, rng):
    """Balanced layers (depth, lanes, n, n) of the minimizer plus noise of a Frobenius norm."""
    count = len(eigenvalues)
    noise = rng.normal(size=(lanes, count, count))
    noise *= size / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    left, values, right = np.linalg.svd(np.diag(np.sqrt(eigenvalues - tau)) + noise)
    roots = values ** (1 / depth)
    layers = [np.eye(count) * roots[:, None, :] for _ in range(depth)]
    layers[0] = layers[0] @ right
    layers[-1] = left @ layers[-1]
    return np.array(layers)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_descents_with_admissible_steps_obey_the_paper_and_large_steps_do_not(depth):
    rng = np.random.default_rng(depth)
    eigenvalues, tau, lanes = np.array([1.2, 1.0]), 0.25, 70
    layers = near(eigenvalues, tau, depth, lanes, 0.2, rng)
    target = Target(eigenvalues)
    starts = [start_of(tuple(own), target, depth=depth, tau=tau, loss=BW) for own in layers.swapaxes(0, 1)]
    admissible = np.array([certificates.paper_step_sizes(at).admissible for at in starts])
    assert np.all(admissible > 0)
    steps = admissible * rng.choice([1.0, 0.5, 0.05], lanes)
    losses = descents(layers, eigenvalues, steps, tau, depth, 400)
    for lane, at in enumerate(starts):
        (promise,) = certificates.entitled(at, "descent", steps[lane])
        assert certificates.obeyed(promise, steps[lane] * np.arange(401), losses[:, lane], slack=1e-12)
    assert depth > 1 or promise.bound(400 * admissible[-1]) < 0.95 * starts[-1].value
    # Beyond the stability limit: no certificate, and its bound would be violated.
    steps = np.full(lanes, 1.5 * certificates.stability_limit(starts[0]).value)
    losses = descents(layers, eigenvalues, steps, tau, depth, 60)
    for lane, at in enumerate(starts):
        assert not certificates.entitled(at, "descent", steps[lane])
        promise = certificates.paper_descent(at, admissible[lane])
        assert not certificates.obeyed(promise, steps[lane] * np.arange(len(losses)), losses[:, lane])


@pytest.mark.parametrize(("depth", "tau"), [*itertools.product([1, 2, 4], [0.0, 0.3])])
def test_the_stability_limit(depth, tau):
    """0.99 of it converges, 1.01 of it does not, from right beside the minimizer."""
    eigenvalues = np.array([2.0, 1.0, 0.6])
    at = start(eigenvalues, depth, tau, share=0.0)
    limit = certificates.stability_limit(at).value
    if tau == 0:
        assert limit == pytest.approx(1 / (depth * 2.0 ** ((depth - 1) / depth)), rel=1e-12)
    layers = near(eigenvalues, tau, depth, 2, 1e-5, np.random.default_rng(7))
    losses = descents(layers, eigenvalues, limit * np.array([0.99, 1.01]), tau, depth, 600)
    assert losses[-1, 0] < 1e-6 * losses[0, 0]
    assert losses[-1, 1] > 100 * losses[0, 1]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_rank_deficient_rate_is_measured(depth):
    eigenvalues, rank = np.array([2.0, 1.4, 1.0, 0.3]), 2
    promise = certificates.rank_deficient_rate(start(eigenvalues, depth, 0.0, rank=rank))
    assert promise.holds
    assert promise.value == pytest.approx(4 * 1.4 ** ((depth - 1) / depth) * (1 - 1.0 / 1.4), rel=1e-14)
    spectrum = jax.jit(hessians.spectrum, static_argnums=1)(eigenvalues, (0, 1), depth=depth)
    assert promise.value == pytest.approx(2 * float(np.min(spectrum)), rel=1e-12)
    rng = np.random.default_rng(1)
    generator = np.sqrt(eigenvalues)[:, None] * orthogonal(4, rng)[:, :rank]

    def loss_and_velocity(generator):
        overlap = np.sqrt(eigenvalues)[:, None] * generator
        polar, values, turn = np.linalg.svd(overlap, full_matrices=False)
        slope = 2 * (generator - np.sqrt(eigenvalues)[:, None] * (polar @ turn))
        left, singular, right = np.linalg.svd(generator)
        factors = kernel(np.append(singular, [0.0, 0.0]), depth)[:, :rank]
        velocity = -left @ (factors * (left.T @ slope @ right.T)) @ right
        return np.sum(generator**2) + np.sum(eigenvalues) - 2 * np.sum(values), velocity

    times = np.linspace(0, 20 / promise.value, 80)
    found = scipy.integrate.solve_ivp(
        lambda _, w: loss_and_velocity(w.reshape(4, rank))[1].ravel(),
        (0, times[-1]),
        generator.ravel(),
        "DOP853",
        times,
        rtol=1e-11,
        atol=1e-12,
    )
    gaps = np.array([loss_and_velocity(w.reshape(4, rank))[0] for w in found.y.T]) - 1.3
    measured = fits.exponential_rate(times, gaps, above=1e-9, below=1e-4)
    assert measured.points > 10
    assert measured.rate == pytest.approx(promise.value, rel=0.02)
