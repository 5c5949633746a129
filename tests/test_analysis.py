"""What figures and summary show, against NumPy."""

import numpy as np
import pytest

from bwdln import analysis
from bwdln.errors import InvalidOption
from bwdln.results import Result
from tests import synthetic


@pytest.fixture(scope="module")
def result():
    return synthetic.gaussian(seeds=7)


def with_gaps(gaps: np.ndarray, steps: np.ndarray, outcomes: list[str]) -> Result:
    """A result with these relative gaps (lanes, records) at these steps."""
    dataset = synthetic.gaussian(seeds=len(gaps), records=len(steps) - 1).dataset.copy(deep=True)
    dataset["relative_gap"].values[:] = gaps
    dataset["step"].values[:] = steps
    dataset["outcome"] = ("seed", np.array(outcomes))
    return Result(dataset)


# --- bands ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["loss", "singular_values", "imbalance", "rank"])
def test_band_is_the_quantiles_over_the_seeds(result, variable):
    values = result.dataset[variable].values
    band = analysis.band(result, variable, low=0.25, high=0.75)
    np.testing.assert_array_equal(band.median, np.median(values, axis=0))
    np.testing.assert_allclose(band.low, np.percentile(values, 25, axis=0), rtol=1e-12)
    np.testing.assert_allclose(band.high, np.percentile(values, 75, axis=0), rtol=1e-12)
    assert band.lanes == 7
    np.testing.assert_array_equal(band.axis, result.dataset["step"].values[0])


def test_band_along_flow_time_of_the_longest_lane(result):
    dataset = result.dataset.copy(deep=True)
    dataset["time"].values[2:, 9:] = dataset["time"].values[2:, 8:9]
    band = analysis.band(Result(dataset), "loss", axis="time")
    np.testing.assert_array_equal(band.axis, result.dataset["time"].values[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_diverged_lanes_are_left_out(result, value):
    broken = synthetic.with_diverged(result, (0, 4), value)
    assert analysis.diverged(broken).tolist() == [True, False, False, False, True, False, False]
    band = analysis.band(broken, "loss")
    assert band.lanes == 5
    kept = result.dataset["loss"].values[[1, 2, 3, 5, 6]]
    np.testing.assert_array_equal(band.median, np.median(kept, axis=0))


def test_a_loss_that_is_not_finite_has_diverged_whatever_its_outcome(result):
    dataset = result.dataset.copy(deep=True)
    dataset["loss"].values[3, 5] = np.nan
    assert analysis.diverged(Result(dataset)).tolist() == [False] * 3 + [True] + [False] * 3


def test_band_of_no_lane_is_nan(result):
    band = analysis.band(synthetic.with_diverged(result, tuple(range(7))), "singular_values")
    assert band.lanes == 0 and band.median.shape == (21, 3)
    assert np.isnan([band.median, band.low, band.high]).all()


def test_convergence_raises_rounding_to_the_floor(result):
    dataset = result.dataset.copy(deep=True)
    dataset["relative_gap"].values[:, -1] = 0
    dataset["relative_gap"].values[0, -2] = 1e-40
    shown = analysis.convergence(Result(dataset))
    assert shown.floor == np.finfo(np.float64).eps ** 2
    assert shown.relative_gap.min() == shown.band.low.min() == shown.floor
    raised = np.maximum(dataset["relative_gap"].values, shown.floor)
    np.testing.assert_array_equal(shown.relative_gap, raised)
    assert shown.rank == 3 and shown.minimum == float(dataset["minimum"])


def test_the_floor_follows_the_precision(result):
    single = result.dataset.assign(relative_gap=result.dataset["relative_gap"].astype(np.float32))
    assert analysis.gap_floor(Result(single)) == pytest.approx(1.4e-14, rel=0.02)


# --- summary --------------------------------------------------------------------------------------


def test_summary_has_a_row_per_seed(result):
    rows, last = analysis.summary(result), result.dataset.isel(record=-1)
    assert [row.seed for row in rows] == list(range(7))
    assert {row.outcome for row in rows} == {"reached_end"} and {row.step for row in rows} == {200}
    for name in ("time", "loss", "gap", "relative_gap", "rank"):
        np.testing.assert_array_equal([getattr(row, name) for row in rows], last[name].values)
    np.testing.assert_array_equal([row.imbalance for row in rows], last["imbalance"].values.max(axis=1))
    assert all(isinstance(row.rank, int) and isinstance(row.loss, float) for row in rows)


def test_summary_at_depth_one_has_no_imbalance():
    rows = analysis.summary(synthetic.gaussian(depth=1))
    assert [row.imbalance for row in rows] == [0.0] * 3


def test_shortfalls_say_why():
    steps, falling = np.arange(0, 1001, 100), 10.0 ** -np.linspace(0, 5, 11)
    flat = np.maximum(falling, 1e-3)
    reached = 10.0 ** -np.linspace(0, 10, 11)
    broken = np.where(steps > 300, np.inf, falling)
    outcomes = ["reached_end", "stalled", "converged", "diverged", "running", "converged"]
    gaps = np.array([falling, flat, reached, broken, falling, falling])
    result = with_gaps(gaps, steps, outcomes)
    assert analysis.shortfalls(result, 1e-9) == [
        "seed 0 ended at relative gap 1.0e-05: reached its last step, 1,000, "
        "still decreasing: at this rate about 800 more steps are needed",
        "seed 1 ended at relative gap 1.0e-03: stalled at step 1,000, "
        "not decreasing lately: the limit of rounding, or a saddle",
        "seed 3 ended at relative gap inf: diverged by step 1,000; try a smaller step size",
        "seed 4 ended at relative gap 1.0e-05: interrupted at step 1,000, "
        "still decreasing: at this rate about 800 more steps are needed",
        "seed 5 ended at relative gap 1.0e-05: met its own gap tolerance at step 1,000, "
        "still decreasing: at this rate about 800 more steps are needed",
    ]
    assert analysis.shortfalls(synthetic.gaussian(), 1.0) == []
    with pytest.raises(InvalidOption, match="relative_gap: got 0"):
        analysis.shortfalls(result, 0)


def test_shortfalls_of_a_flow_are_told_in_flow_time():
    time, falling = np.linspace(0, 3, 11), 10.0 ** -np.linspace(0, 6, 11)
    broken = np.where(time > 1, np.nan, falling)
    outcomes = ["reached_end", "stalled", "diverged", "running"]
    gaps = np.array([falling, falling, broken, np.maximum(falling, 1e-3)])
    dataset = with_gaps(gaps, np.arange(11) * 200, outcomes).dataset
    dataset["time"].values[:] = time
    result = Result(dataset.assign_attrs(clock="time"))
    assert analysis.shortfalls(result, 1e-9) == [
        "seed 0 ended at relative gap 1.0e-06: reached its end, flow time 3, "
        "still decreasing: at this rate about a flow time of 1.5 more is needed",
        "seed 1 ended at relative gap 1.0e-06: stalled at flow time 3, step 2,000; "
        "try larger tolerances or dynamics.max_steps",
        "seed 2 ended at relative gap nan: diverged by flow time 3; "
        "try smaller tolerances or a smaller step size",
        "seed 3 ended at relative gap 1.0e-03: interrupted at flow time 3, "
        "not decreasing lately: the limit of rounding, or a saddle",
    ]
    left = analysis.remaining(result, 0, 1e-9)
    assert left is not None and abs(left - 1.5) < 1e-9


def test_a_flow_is_shown_against_flow_time(result):
    flow = Result(result.dataset.assign_attrs(clock="time"))
    time = result.dataset["time"].values
    assert (analysis.clock(flow), analysis.clock(result)) == ("time", "step")
    np.testing.assert_array_equal(analysis.convergence(flow).axis, time)
    np.testing.assert_array_equal(analysis.band(flow, "loss").axis, time[0])
    np.testing.assert_array_equal(analysis.alignment(flow).axis, time[0])
    np.testing.assert_array_equal(analysis.band(flow, "loss", axis="step").axis, result.dataset["step"][0])


def test_not_a_number_is_a_shortfall():
    gaps = np.array([[1.0, np.nan]])
    (sentence,) = analysis.shortfalls(with_gaps(gaps, np.array([0, 10]), ["diverged"]), 1e-9)
    assert sentence == "seed 0 ended at relative gap nan: diverged by step 10; try a smaller step size"


def test_steps_remaining_on_an_exponential():
    steps = np.array([0, 1, 10, 100, 900, 1000])
    result = with_gaps(np.exp(-0.01 * steps)[None], steps, ["reached_end"])
    left = analysis.remaining(result, 0, float(np.exp(-15)))
    assert left is not None and abs(left - 500) <= 1
    assert analysis.remaining(result, 0, 0.5) == 0


def test_steps_remaining_of_a_lane_that_ended_early_looks_at_its_own_last_steps():
    steps = np.array([0, 50, 100, 100, 100])
    result = with_gaps(np.exp(-0.1 * steps)[None], steps, ["converged"])
    left = analysis.remaining(result, 0, float(np.exp(-20)))
    assert left is not None and abs(left - 100) <= 1


@pytest.mark.parametrize("gaps", [[1.0, 1.0], [1.0, 2.0], [1.0, 0.995], [1.0, np.inf], [1.0, 0.0]])
def test_nothing_remains_where_the_gap_does_not_decrease(gaps):
    result = with_gaps(np.array([gaps]), np.array([0, 10]), ["reached_end"])
    assert analysis.remaining(result, 0, 1e-9) is None


def test_nothing_remains_of_a_lane_that_never_moved():
    result = with_gaps(np.ones((1, 3)), np.zeros(3), ["diverged"])
    assert analysis.remaining(result, 0, 1e-9) is None


# --- spectra and singular vectors -----------------------------------------------------------------


def test_spectrum_is_squared_singular_values():
    result = synthetic.digits(seeds=2, steps=5, rank=20, tau=40.0, records=4)
    shown = analysis.spectrum(synthetic.with_diverged(result, ()))
    learned = result.dataset["singular_values"].values[:, -1] ** 2
    np.testing.assert_allclose(shown.learned, np.median(learned, axis=0), rtol=1e-14)
    np.testing.assert_array_equal(shown.smallest, learned.min(axis=0))
    np.testing.assert_array_equal(shown.largest, learned.max(axis=0))
    np.testing.assert_allclose(shown.optimal, np.maximum(shown.target[:20] - 40, 0), rtol=1e-14)
    assert shown.tau == 40 and shown.lanes == 2 and shown.target.shape == (64,)


def test_alignment(result):
    shown = analysis.alignment(result)
    median = np.median(result.dataset["alignment"].values, axis=0)
    np.testing.assert_array_equal(shown.misalignment, np.maximum(1 - median, shown.floor))
    np.testing.assert_array_equal(shown.final, np.median(result.dataset["final_cosines"].values, axis=0))
    assert shown.final.shape == (3, 6) and shown.lanes == 7


# --- samples --------------------------------------------------------------------------------------


def test_samples_of_data_are_real_and_have_its_mean():
    result = synthetic.digits()
    drawn = analysis.samples(result, 5000)
    np.testing.assert_array_equal(drawn.real, result.dataset["real_samples"].values)
    some = result.dataset["real_samples"].values[[0, 7, 15, 23]]
    np.testing.assert_array_equal(analysis.samples(result, 4).real, some)
    mean, generator = result.dataset["sample_mean"].values, analysis.end_to_end(result, 0)
    spread = np.sqrt(np.diag(generator @ generator.T) / 5000)
    assert np.all(np.abs(drawn.trained.mean(axis=0) - mean) <= 5 * spread + 1e-12)


def test_samples_before_and_after_share_their_latent_draws():
    result = synthetic.gaussian(rank=6)
    drawn = analysis.samples(result, 50)
    before = np.linalg.solve(result.dataset["initial_end_to_end"].values[0], drawn.untrained.T)
    after = np.linalg.solve(analysis.end_to_end(result, 0), drawn.trained.T)
    np.testing.assert_allclose(before, after, atol=1e-8)
    again = analysis.samples(result, 50)
    np.testing.assert_array_equal(drawn.trained, again.trained)
    assert not np.allclose(before.T, drawn.real)


def test_samples_show_the_first_lane_that_did_not_diverge():
    result = synthetic.gaussian()
    assert analysis.samples(synthetic.with_diverged(result, (0, 1))).seed == 2
    for value in (np.nan, 1e300):
        drawn = analysis.samples(synthetic.with_diverged(result, (0, 1, 2), value))
        assert drawn.trained is None and drawn.seed == 0 and np.isfinite(drawn.untrained).all()


def test_images_share_the_gray_scale_of_the_real_ones():
    shown = analysis.images(synthetic.digits(), 16)
    assert shown.real.shape == shown.untrained.shape == shown.trained.shape == (16, 8, 8)
    assert (shown.low, shown.high) == (shown.real.min(), shown.real.max()) == (0, 16)
    assert analysis.image_shape(synthetic.gaussian()) is None


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_ellipses_are_one_standard_deviation(rank):
    result = synthetic.gaussian(rank=rank, steps=20)
    shown = analysis.clouds(result, 20_000)
    plane = result.dataset["target_eigenvectors"].values[:, :2]
    generators = (result.dataset["initial_end_to_end"].values[0], analysis.end_to_end(result, 0))
    for cloud, generator in zip((shown.untrained, shown.trained), generators, strict=True):
        covariance = plane.T @ generator @ generator.T @ plane
        np.testing.assert_allclose(2 * np.cov(cloud.ellipse[:-1].T, ddof=0), covariance, atol=1e-12)
        np.testing.assert_allclose(np.cov(cloud.points.T), covariance, atol=0.05 * covariance.max())
        np.testing.assert_allclose(cloud.ellipse[0], cloud.ellipse[-1], atol=1e-12)
    np.testing.assert_allclose(np.cov(shown.target.points.T), np.diag([1, 0.5]), atol=0.05)
    np.testing.assert_allclose(shown.target.ellipse.max(axis=0), [1, np.sqrt(0.5)], rtol=1e-3)


def test_a_target_in_its_eigenbasis_has_the_identity():
    dataset = synthetic.gaussian().dataset.drop_vars("target_eigenvectors")
    np.testing.assert_array_equal(analysis.eigenvectors(Result(dataset)), np.eye(6))
