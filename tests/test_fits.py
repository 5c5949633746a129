"""Laws fitted to measured values: exact ones are found again."""

import numpy as np
import pytest

from bwdln.fits import crossing_time, exponential_rate, power_law


def test_power_law_is_that_of_the_smallest():
    x = np.array([1, 2, 4, 8, 16.0])
    y = np.where(x < 8, 3 * x**1.5, 100)
    law = power_law(x, y, 3)
    assert (law.exponent, law.factor, law.points) == (pytest.approx(1.5), pytest.approx(3), 3)
    np.testing.assert_allclose(law.at(x[:3]), y[:3])
    assert power_law(x, np.where(x == 1, np.nan, y), 2) == pytest.approx(law._replace(points=2))
    assert np.isnan(power_law(x[:1], y[:1]).exponent)
    assert power_law(x, x**-2.0).exponent == pytest.approx(-2) and power_law(x, y).points == 5


def test_exponential_rate_is_that_inside_the_window():
    time = np.linspace(0, 4, 41)
    values = np.where(time < 1, 5.0, 2 * np.exp(-3 * time))
    rate = exponential_rate(time, values, above=1e-5, below=1e-1)
    assert (rate.rate, rate.factor) == (pytest.approx(3), pytest.approx(2)) and rate.error < 1e-12
    assert rate.points == np.sum((values > 1e-5) & (values < 1e-1))
    np.testing.assert_allclose(rate.at(time[20:]), values[20:])


def test_records_after_the_end_do_not_count():
    time = np.array([0, 1, 2, 3, 3, 3.0])
    values = np.exp(-2 * time)
    rate = exponential_rate(time, values, above=0, below=2)
    assert rate.points == 4 and rate.rate == pytest.approx(2)


def test_too_few_points_have_no_rate():
    time, values = np.arange(5.0), np.exp(-np.arange(5.0))
    few = exponential_rate(time, values, above=0.1, below=0.5)
    assert few.points == 2 and np.isnan(few.rate)
    assert exponential_rate(time, np.full(5, np.nan), above=0, below=1).points == 0


def test_the_standard_error_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, 30)
    values = np.exp(-2 * time + 0.1 * rng.normal(size=30))
    (slope, level), covariance = np.polyfit(time, np.log(values), 1, cov=True)
    rate = exponential_rate(time, values, above=0, below=np.inf)
    assert rate.rate == pytest.approx(-slope) and np.log(rate.factor) == pytest.approx(level)
    assert rate.error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_crossing_time_is_linear_in_between():
    time, values = np.array([0, 1, 3.0]), np.array([0, 1, 2.0])
    assert crossing_time(time, values, 1.5) == pytest.approx(2)
    assert crossing_time(time, values, 0) == 0 and crossing_time(time, values, 1) == 1
    assert np.isnan(crossing_time(time, values, 2.5))
