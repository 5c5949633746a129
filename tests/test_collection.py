"""A sweep as one dataset: nothing of a job is lost, moved or made up, and plain xarray makes a grid of it."""

import itertools
import time

import numpy as np
import pytest
import xarray

from bwdln import analysis, simulate
from bwdln.collection import Collection
from bwdln.errors import InvalidOption
from bwdln.results import Result
from tests import problems, sweeps, synthetic

GRID = sweeps.product(loss__tau=[0.1, 0.5, 1.0], network__depth=[1, 2], dynamics=["descent", "flow"])


def of_grid():
    return sweeps.dataset(GRID, lambda job: sweeps.result(job["loss.tau"] / 100, depth=job["network.depth"]))


def collected(*parts, swept=None):
    collection = Collection(swept or {number: {} for number in range(len(parts))})
    for number, part in enumerate(parts):
        collection.add(number, part)
    return collection.dataset({"command": "train -m"})


# --- what is in it --------------------------------------------------------------------------------


def test_every_value_of_every_job_is_where_it_belongs_whatever_the_shapes():
    jobs = [
        synthetic.gaussian(),
        synthetic.gaussian(seeds=1, depth=1),
        synthetic.gaussian(rank=2, depth=3, records=5),
        sweeps.result(seeds=(7, 9), modes=4, clock="time"),
    ]
    dataset = collected(*jobs)
    for index, job in enumerate(jobs):
        for name, variable in job.dataset.data_vars.items():
            if set(variable.dims) <= {"seed", "record", "mode", "interface"} or name == "target_eigenvalues":
                own = dataset[name][index].transpose(*variable.dims).values
                place = tuple(slice(length) for length in variable.shape)
                np.testing.assert_array_equal(own[place], variable.values, err_msg=name)
                behind = np.ones(own.shape, bool)
                behind[place] = False
                assert all(value == "" or value != value for value in own[behind]), name
        assert dataset["records"][index] == job.dataset.sizes["record"]
        assert dataset["depth"][index].item() == pytest.approx(
            job.dataset.attrs.get("depth", np.nan), nan_ok=True
        )
        assert dataset["clock"][index] == job.dataset.attrs.get("clock", "step")
    absent = {"imbalance": 1, "gradient_norm": 3, "alignment": 3}
    assert all(np.isnan(dataset[name][job]).all() for name, job in absent.items())


def test_it_holds_no_matrices_weights_or_samples():
    names = set(collected(synthetic.digits(), synthetic.gaussian()).variables)
    assert not {
        name for name in names if name.startswith(("weights", "final", "initial", "target_eigenv"))
    } - {"target_eigenvalues"}
    assert not names & {"end_to_end", "real_samples", "sample_mean"}
    assert {"minimum", "target_trace", "optimal_singular_values", "outcome", "relative_gap"} <= names


def test_types_are_kept_where_nothing_is_padded():
    narrow = collected(sweeps.result(dtype=np.float32), sweeps.result(dtype=np.float32))
    assert narrow["loss"].dtype == np.float32 and narrow["step"].dtype == np.int64
    padded = collected(sweeps.result(dtype=np.float32), sweeps.result(dtype=np.float32, records=3))
    assert padded["loss"].dtype == np.float32 and padded["step"].dtype == np.float64
    mixed = collected(sweeps.result(dtype=np.float32), sweeps.result(records=3))
    assert mixed["loss"].dtype == np.float64


def test_jobs_are_in_the_order_of_their_numbers_and_those_without_result_are_left_out():
    collection = Collection({number: {"loss.tau": float(number)} for number in range(6)})
    for number in (4, 0, 3):
        collection.add(number, sweeps.result(number / 100))
    collection.add(3, sweeps.result(1.0))
    dataset = collection.dataset({})
    assert dataset["job"].values.tolist() == [0, 3, 4]
    assert dataset["loss.tau"].values.tolist() == [0.0, 3.0, 4.0]
    assert dataset["minimum"].values.tolist() == [0.0, 1.0, 0.04]


def test_it_says_what_it_is():
    dataset = collected(sweeps.result())
    assert dataset.attrs == {"command": "train -m", "schema": 1, "kind": "sweep"}
    assert all({"units", "long_name"} <= set(variable.attrs) for variable in dataset.variables.values())


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([1, 2], np.array([1, 2])),
        ([1, 2.5], np.array([1.0, 2.5])),
        ([10**20, 1], np.array([1e20, 1.0])),
        (["a", "b"], ["a", "b"]),
        ([None, 0.1], ["null", "0.1"]),
        ([True, False], ["true", "false"]),
        ([[1, 2], [0.5]], ["[1,2]", "[0.5]"]),
        ([{"name": "adam", "beta": 0.9}, "muon"], ["{name:adam,beta:0.9}", "muon"]),
    ],
)
def test_options_are_numbers_if_all_are_and_else_texts_as_typed(values, column):
    dataset = sweeps.dataset([{"group.option": value} for value in values], lambda _: sweeps.result())
    found = dataset["group.option"].values
    assert found.tolist() == list(column)
    assert found.dtype == (column.dtype if isinstance(column, np.ndarray) else object)


def test_an_option_that_a_job_does_not_have_is_null():
    dataset = sweeps.dataset([{"a": 1}, {"b": "x"}], lambda _: sweeps.result())
    assert dataset["a"].values.tolist() == ["1", "null"] and dataset["b"].values.tolist() == ["null", "x"]


def test_options_that_are_named_like_variables_keep_out_of_their_way():
    jobs = [{"loss": "frobenius", "seed": 5, "record": "few", "a/b": 1, "config": 2, "job": 3}]
    dataset = sweeps.dataset(jobs, lambda _: sweeps.result())
    assert dataset["option.loss"].item() == "frobenius" and dataset["option.seed"].item() == 5
    assert dataset["loss"].dims == ("config", "seed", "record") and dataset["a.b"].item() == 1
    assert {name: values[0] for name, values in analysis.swept_options(dataset).items()} == jobs[0]


def test_seeds_are_a_coordinate_where_all_jobs_have_the_same_and_a_variable_elsewhere():
    same = collected(sweeps.result(seeds=(4, 5)), sweeps.result(seeds=(4, 5)))
    assert same["seed"].values.tolist() == [4, 5] and "seed_number" not in same
    other = collected(sweeps.result(seeds=(4, 5)), sweeps.result(seeds=(7, 8)))
    assert other["seed"].values.tolist() == [0, 1]
    assert other["seed_number"].values.tolist() == [[4, 5], [7, 8]]
    fewer = collected(sweeps.result(seeds=(4, 5)), sweeps.result(seeds=(4,)))
    np.testing.assert_array_equal(fewer["seed_number"].values, [[4, 5], [4, np.nan]])
    assert fewer["outcome"].values.tolist() == [["reached_end"] * 2, ["reached_end", ""]]


def test_certificates_are_matched_by_name():
    def certified(*names):
        bounds = np.array([[[len(name)] * 11 for name in names]] * 3, float)
        return Result(
            sweeps.result().dataset.assign(
                certificate=list(names), certificate_bound=(("seed", "certificate", "record"), bounds)
            )
        )

    dataset = collected(certified("one", "three"), certified("eleven", "one"), sweeps.result())
    assert dataset["certificate"].values.tolist() == ["one", "three", "eleven"]
    np.testing.assert_array_equal(
        dataset["certificate_bound"].values[:, 0, :, 0],
        [[3, 5, np.nan], [3, np.nan, 6], [np.nan] * 3],
    )


def test_real_results_of_other_depths_and_records():
    jobs = [
        problems.job(),
        problems.job(network__depth=1, record={"count": 4, "sharpness": True, "certificates": True}, seeds=2),
    ]
    parts = [simulate.run(job) for job in jobs]
    dataset = collected(*parts, swept={0: {"network.depth": 3}, 1: {"network.depth": 1}})
    for index, part in enumerate(parts):
        for name in ("loss", "sharpness", "certificate_bound", "certificate_verdict", "alignment"):
            if name in part.dataset:
                own = part.dataset[name]
                mine = (
                    dataset[name][index]
                    .transpose(*own.dims)
                    .isel({d: slice(n) for d, n in own.sizes.items()})
                )
                np.testing.assert_array_equal(mine.values, own.values)


# --- as a grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_file", [False, True])
def test_plain_xarray_makes_a_grid_of_it(tmp_path, from_file):
    dataset = of_grid()
    if from_file:
        dataset.to_netcdf(tmp_path / "sweep.nc", engine="netcdf4")
        dataset = xarray.load_dataset(tmp_path / "sweep.nc")
    grid = dataset.set_index(config=["loss.tau", "network.depth", "dynamics"]).unstack("config")
    assert grid.sizes["loss.tau"] == 3 and grid.sizes["network.depth"] == grid.sizes["dynamics"] == 2
    for number, job in enumerate(GRID):
        cell = grid.sel(job)
        assert cell["job"] == number
        expected = sweeps.result(job["loss.tau"] / 100).dataset["loss"]
        np.testing.assert_array_equal(cell["loss"].transpose("seed", "record").values, expected.values)
        assert set(cell["outcome"].values) == {"reached_end"}


def test_a_null_among_numbers_is_not_lost_in_the_grid():
    jobs = sweeps.product(loss__tau=[None, 1.0], network__depth=[1, 2])
    dataset = sweeps.dataset(jobs, lambda _: sweeps.result())
    grid = dataset.set_index(config=["loss.tau", "network.depth"]).unstack("config")
    assert sorted(grid["job"].values.ravel().tolist()) == [0, 1, 2, 3]


def test_it_survives_a_file(tmp_path):
    dataset = of_grid()
    dataset.to_netcdf(tmp_path / "sweep.nc", engine="netcdf4")
    read = xarray.load_dataset(tmp_path / "sweep.nc")
    assert list(analysis.swept_options(read)) == ["loss.tau", "network.depth", "dynamics"]
    for name in dataset.variables:
        np.testing.assert_array_equal(read[name].values, dataset[name].values)
    for objective in ("relative_gap", "step"):
        assert analysis.sweep_rows(read, {}, objective) == analysis.sweep_rows(dataset, {}, objective)


def test_a_thousand_jobs_of_two_shapes_take_less_than_a_second():
    two = itertools.cycle([sweeps.result(), sweeps.result(records=7, depth=2)])
    parts = list(itertools.islice(two, 1000))
    began = time.perf_counter()
    assert collected(*parts).sizes["config"] == 1000
    assert time.perf_counter() - began < 1


# --- the table ------------------------------------------------------------------------------------


def test_rows_are_sorted_the_best_first_and_what_has_no_value_last():
    rates = {0: 0.01, 1: 0.03, 2: 0.02, 3: 0.05}
    jobs = [{"dynamics.step_size": rate} for rate in rates.values()]
    lost = {0.05: 2}

    def made(job):
        rate = job["dynamics.step_size"]
        return sweeps.result(rate, diverged=lost.get(rate, 0))

    rows = analysis.sweep_rows(sweeps.dataset(jobs, made), {9: "too deep", 7: "no such loss"}, "relative_gap")
    assert [row.job for row in rows] == [1, 2, 0, 3, 7, 9]
    assert [row.best for row in rows] == [True, *[False] * 5]
    assert rows[0].options == {"dynamics.step_size": 0.03}
    assert rows[0].objective == pytest.approx(np.exp(-0.03 * 1.1 * 1000) / 2, rel=1e-12)
    assert rows[0].outcomes == "3 reached end" and rows[0].failed is None
    assert rows[3].objective == np.inf and rows[3].outcomes == "2 diverged, 1 reached end"
    assert rows[4].failed == "no such loss" and np.isnan(rows[4].objective) and rows[4].options == {}


def test_nothing_is_best_where_everything_diverged():
    dataset = sweeps.dataset([{"a": 1}, {"a": 2}], lambda _: sweeps.result(diverged=3))
    assert not any(row.best for row in analysis.sweep_rows(dataset, {}, "loss"))


@pytest.mark.parametrize("objective", ["relative_gap", "loss", "time", "step"])
def test_the_table_and_the_objective_of_a_job_agree(objective):
    parts = [
        sweeps.result(0.01, diverged=1),
        sweeps.result(0.02, seeds=(0, 1, 2, 3, 4), diverged=2),
        sweeps.result(0.03, records=3, seeds=(5,)),
        sweeps.result(0.02, seeds=(0, 1, 2, 3), diverged=2),
    ]
    rows = analysis.sweep_rows(collected(*parts), {}, objective)
    assert {row.job: row.objective for row in rows} == {
        number: analysis.objective(part, objective) for number, part in enumerate(parts)
    }


def test_a_seed_that_diverged_counts_as_infinite_whatever_is_minimized():
    final = sweeps.result(0.01).dataset["loss"].values[:, -1]
    assert analysis.objective(sweeps.result(0.01), "loss") == np.median(final)
    assert analysis.objective(sweeps.result(0.01, diverged=1), "loss") == max(final[1:])
    assert analysis.objective(sweeps.result(0.01, diverged=2), "step") == np.inf


def test_objectives_that_are_not_there_are_refused():
    for name in ("relativ_gap", "outcome", "singular_values"):
        with pytest.raises(InvalidOption, match=r"^objective: got .*takes one of .*relative_gap"):
            analysis.objective(sweeps.result(), name)
    with pytest.raises(InvalidOption, match=r"sharpness; takes .*record.sharpness"):
        analysis.objective(sweeps.result(), "sharpness")
    with pytest.raises(InvalidOption, match="objective: got rank"):
        analysis.sweep_rows(of_grid(), {}, "rank")


def test_every_objective_is_recorded_by_a_run():
    result = simulate.run(problems.job(record={"count": 2, "sharpness": True}))
    scalars = {name for name, each in result.dataset.data_vars.items() if each.dims == ("seed", "record")}
    assert scalars == set(analysis.OBJECTIVES)
    assert all(np.isfinite(analysis.objective(result, name)) for name in analysis.OBJECTIVES)


# --- which options matter -------------------------------------------------------------------------


def test_the_options_that_explain_the_objective_have_the_influence():
    jobs = sweeps.product(
        dynamics__step_size=[0.01, 0.02, 0.03, 0.04], loss__tau=[1.0, 2.0, 3.0], a=["x", "y"]
    )
    dataset = sweeps.dataset(
        jobs, lambda job: sweeps.result(job["dynamics.step_size"] * (1 + (job["a"] == "y")))
    )
    found = {each.option: each.influence for each in analysis.swept(dataset, "relative_gap")}
    assert list(found) == ["dynamics.step_size", "loss.tau", "a"]
    assert found["loss.tau"] < 0.05 < found["a"] < found["dynamics.step_size"] < 1


def test_of_options_that_move_together_one_is_shown_but_not_of_random_ones():
    zipped = [{"a": float(i), "b": 10.0 - i, "c": "xyzuvw"[i], "d": 1} for i in range(6)]
    (only,) = analysis.swept(sweeps.dataset(zipped, lambda _: sweeps.result()), "loss")
    assert only.option == "a" and only.others == ("b", "c")
    draws = np.random.default_rng(0).random((20, 2))
    random = [{"a": float(a), "b": float(b)} for a, b in draws]
    found = analysis.swept(sweeps.dataset(random, lambda _: sweeps.result()), "loss")
    assert [each.option for each in found] == ["a", "b"]


def test_a_table_has_the_values_of_single_jobs_and_medians_of_several():
    jobs = sweeps.product(rate=[0.01, 0.02], a=["x", "y", "z"])
    dataset = sweeps.dataset(jobs[:-1], lambda job: sweeps.result(job["rate"]))
    finals = analysis.sweep_finals(dataset, "loss")
    across, down = analysis.swept(dataset, "loss")
    low, median, high = analysis.sweep_table(finals, across, down)
    assert median.shape == (3, 2) and np.isnan(median[2, 1]) and np.isnan(median).sum() == 1
    np.testing.assert_allclose(median[:2], np.exp(-11 * np.array([[1, 2], [1, 2]])), rtol=1e-12)
    assert (low[0] < median[0]).all() and (median[0] < high[0]).all()
    _, over, _ = analysis.sweep_table(finals, across)
    np.testing.assert_allclose(over, np.exp(-11 * np.array([[1, 2]])), rtol=1e-12)
    _, mixed, _ = analysis.sweep_table(finals, down)
    expected = [(np.exp(-11) + np.exp(-22)) / 2] * 2 + [np.exp(-11)]
    np.testing.assert_allclose(mixed[0], expected, rtol=1e-12)


def test_curves_are_on_the_clock_that_all_jobs_have_and_leave_out_what_diverged():
    jobs = [{"a": 1}, {"a": 2}]
    made = [sweeps.result(0.01, diverged=1), sweeps.result(0.02, records=5, diverged=3)]
    shown = analysis.sweep_curves(sweeps.dataset(jobs, lambda job: made[job["a"] - 1]))
    assert shown.clock == "step" and not shown.logarithmic and shown.axis.shape == (2, 11)
    np.testing.assert_array_equal(shown.axis[0], np.arange(0, 1001, 100))
    assert np.isnan(shown.axis[1, 6:]).all() and np.isnan(shown.median[1]).all()
    kept = made[0].dataset["relative_gap"].values[1:]
    np.testing.assert_allclose(shown.median[0], np.median(kept, axis=0), rtol=1e-12)
    mixed = [sweeps.result(0.01), sweeps.result(0.01, clock="time", logarithmic=True)]
    shown = analysis.sweep_curves(sweeps.dataset(jobs, lambda job: mixed[job["a"] - 1]))
    assert shown.clock == "time" and shown.logarithmic and shown.axis[0, -1] == 100
