"""Times and places of scalar equations against closed forms and SciPy."""

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st

from bwdln.errors import InvalidOption
from bwdln.theory.separable import elapsed, position


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-3, 3))
def test_elapsed_of_exponential_speeds(start, end, power):
    """1/speed = e^{a y}, either way along the line."""
    exact = (np.exp(power * start) * np.expm1(power * (end - start)) / power) if power else end - start
    found = elapsed(lambda y: np.exp(power * y), start, end)
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12 * abs(exact))


def test_elapsed_next_to_the_edge_of_its_strip():
    """1/speed with poles at ±1.5 i: the accuracy that is promised."""
    places = np.linspace(-6, 6, 49)
    found = elapsed(lambda y: 1 / (y**2 + 1.5**2), -6.0, places)
    exact = (np.arctan(places / 1.5) - np.arctan(-4.0)) / 1.5
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_elapsed_of_arrays_with_parameters():
    """Start and end broadcast; parameters have the axis of the nodes."""
    powers = np.array([[0.5], [1.0], [2.0]])
    start, end = np.zeros((3, 1)), np.array([0.0, 0.3, 7.7, -2.5])
    found = elapsed(lambda y: np.exp(powers[..., None] * y), start, end)
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, np.expm1(powers * end) / powers, rtol=1e-13)


def test_elapsed_has_no_limit_of_numbers_but_overflow():
    assert elapsed(lambda y: np.exp(10 * y), 0.0, 100.0) == np.inf
    assert elapsed(lambda y: np.full_like(y, np.inf), 1.0, 1.0) == 0
    assert elapsed(lambda y: np.exp(10 * y), 100.0, 100.0) == 0


@given(st.floats(-20, 20), st.floats(0.01, 3), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_position_of_exponential_speeds(start, power, fractions):
    """dy/dt = e^{−a y}: e^{a y} = e^{a y₀} + a t; at times over as many magnitudes as it takes."""
    ends = start + 20 * np.sort(fractions)
    times = np.exp(power * start) * np.expm1(power * (ends - start)) / power
    found = position(lambda y: np.exp(power * y), start, times, limit=start + 30)
    np.testing.assert_allclose(found, ends, rtol=0, atol=1e-13 * max(1, 1 / power))


@given(st.floats(-10, 10), st.booleans(), st.integers(0, 1000))
def test_position_inverts_elapsed(start, upward, seed):
    """An uneven speed, up and down."""
    direction = 1 if upward else -1

    def inverse_speed(y):
        return direction * (1.2 + np.sin(y)) * np.exp(-y / 3)

    ends = start + direction * np.sort(np.random.default_rng(seed).uniform(0, 15, 6))
    times = elapsed(inverse_speed, start, ends)
    assert np.all(times > 0)
    found = position(inverse_speed, start, times, limit=start + 16.3 * direction)
    np.testing.assert_allclose(found, ends, atol=1e-12)


def test_position_against_scipy():
    """dy/dt = 1 / (1 + y² + e^y), no closed form."""
    times = np.array([0.0, 0.1, 1.0, 5.0, 30.0])
    found = position(lambda y: 1 + y**2 + np.exp(y), -2.0, times, limit=50.0)
    reference = scipy.integrate.solve_ivp(
        lambda _, y: 1 / (1 + y**2 + np.exp(y)), (0, 30), [-2.0], "DOP853", times, rtol=1e-13, atol=1e-13
    )
    np.testing.assert_allclose(found, reference.y[0], atol=1e-11)


def test_position_stops_at_the_limit():
    """Also for times beyond all numbers, from the limit itself, and where the time overflows."""
    times = np.array([0.0, 1.0, 2.4999, 2.5, 2.6, 1e300, np.inf])
    found = position(np.ones_like, 0.0, times, limit=2.5)
    np.testing.assert_allclose(found, np.minimum(times, 2.5), rtol=1e-15)
    np.testing.assert_array_equal(position(np.ones_like, 2.5, times, limit=2.5), np.full(7, 2.5))
    steep = position(lambda y: -np.exp(-3 * y), 0.0, np.array([1e5, 1e300, np.inf]), limit=-700.0)
    np.testing.assert_allclose(
        steep, [-np.log1p(3e5) / 3, -(np.log(3) + 300 * np.log(10)) / 3, -700], rtol=1e-13
    )


def test_position_keeps_small_times():
    """Of a start and a time of 1e-20 nothing is lost but the rounding of y."""
    found = position(np.ones_like, 0.0, np.array([1e-300, 1e-20, 1e-20, 0.5]), limit=9.0)
    np.testing.assert_allclose(found, [0, 0, 0, 0.5], atol=3e-16)


@pytest.mark.parametrize(
    ("start", "times", "limit", "message"),
    [
        (0.0, [1.0, 0.5], 9.0, r"^times: got .*; takes one dimension of numbers from 0 that do not descend"),
        (0.0, [-1.0], 9.0, r"^times: got "),
        (0.0, [np.nan], 9.0, r"^times: got "),
        (0.0, 1.0, 9.0, r"^times: got 1\.0"),
        (0.0, [1.0], np.inf, r"^limit: got inf; takes a finite number"),
        (0.0, [1.0], -9.0, r"^limit: got -9\.0; takes a place that the flow from the start goes to"),
        (np.inf, [1.0], 9.0, r"^start: got inf; takes a finite number"),
    ],
)
def test_refuses_what_is_no_flow(start, times, limit, message):
    with pytest.raises(InvalidOption, match=message):
        position(np.ones_like, start, np.asarray(times), limit=limit)


@pytest.mark.parametrize(("start", "end"), [(np.nan, 1.0), (0.0, np.inf)])
def test_elapsed_refuses_ends_that_are_no_numbers(start, end):
    with pytest.raises(InvalidOption, match=r"^(start|end): got numbers that are not finite"):
        elapsed(np.ones_like, start, end)
