"""Whole runs: lanes, repeats, precision, records, bad input, and a user's own parts."""

import functools
import logging
import os
import signal
import sys
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import job as config

from bwdln import lanes, losses, networks, results, simulate
from bwdln.config import Record
from bwdln.dynamics.base import DYNAMICS
from bwdln.dynamics.gradient_descent import OPTIMIZERS, SCHEDULES
from bwdln.errors import InvalidOption
from bwdln.initializations import STARTS
from bwdln.losses import LOSSES
from bwdln.record_points import record_steps
from bwdln.targets import TARGETS


@functools.cache
def finished():
    return simulate.run(config())


# --- lanes ----------------------------------------------------------------------------------------


def test_a_seed_alone_equals_the_same_seed_in_a_batch():
    batch = simulate.run(config(seeds=16)).dataset
    for seed in (0, 7, 15):
        alone = simulate.run(config(seeds=1, seed=seed)).dataset
        for name in ("loss", "gap", "singular_values", "weights_2", "time"):
            left, right = alone[name].values[0], batch[name].sel(seed=seed).values
            np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_run_twice_is_bitwise_equal():
    first, second = (simulate.run(config(seeds=4)).dataset for _ in range(2))
    for name in first.variables:
        np.testing.assert_array_equal(first[name].values, second[name].values, err_msg=name)


def test_more_lanes_than_a_batch_holds_with_padding(monkeypatch):
    whole = simulate.run(config(seeds=7)).dataset
    monkeypatch.setattr(lanes, "batch_size_on_cpu", lambda count, clock: 3)
    parts = simulate.run(config(seeds=7)).dataset
    assert parts.sizes["seed"] == 7
    for name in ("loss", "weights_1", "final_cosines", "outcome"):
        left, right = parts[name].values, whole[name].values
        if name == "outcome":
            np.testing.assert_array_equal(left, right)
        else:
            np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)


def test_runs_of_one_static_part_share_one_program(caplog):
    """Other numbers (τ, step size, seed, spectrum) compile nothing new."""
    simulate.run(config(loss__tau=0.1))
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        simulate.run(config(loss__tau=0.2, dynamics__step_size=0.01, seed=9, target__condition_number=5.0))
    compiled = [r.getMessage() for r in caplog.records if "advance_all" in r.getMessage()]
    assert not compiled


def test_a_loss_registered_anew_is_compiled_anew():
    """As when a user edits a cell of a notebook and runs it again."""
    runs = []
    try:
        for factor in (1.0, 2.0):

            @LOSSES.register("edited")
            def edited(factor=factor):
                base = losses.bures_wasserstein()
                return base._replace(gradient=lambda w, t: factor * base.gradient(w, t))

            runs.append(simulate.run(config(loss={"name": "edited"})).dataset["loss"].values[0, -1])
    finally:
        LOSSES._functions.pop("edited", None)
    assert runs[1] < 0.9 * runs[0]


# --- starts ---------------------------------------------------------------------------------------


def aligned(seeds=1, seed=0, target_seed=0, scale=0.1, **changes):
    """A job whose start needs the eigenvectors of its target."""
    changes = {"network": {"depth": 2, "bottleneck": 2, "hidden_width": 2}} | changes
    start = {"name": "aligned", "scale": scale}
    return config(initialization=start, target__seed=target_seed, seeds=seeds, seed=seed, **changes)


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("seeds", "jobs"), [(64, 1), (4, 16)])
def test_the_memory_of_starts_holds_each_target_once(seeds, jobs):
    """On the host, in what is passed to the program, and in what the program takes meanwhile."""
    dimension = 256
    changes = {"target__dimension": dimension, "seeds": seeds}
    problems = [simulate.prepare(aligned(scale=0.1 + job / 100, **changes)) for job in range(jobs)]
    matrix, drawn = 8 * dimension**2, bytes_of(simulate.starts(problems))
    tracemalloc.start()
    try:
        traced = jax.make_jaxpr(lambda: simulate.starts(problems))()
        host = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert bytes_of(traced.consts) < matrix + drawn
    assert host < 4 * matrix  # besides one stacked target: what tracing takes
    lowered = jax.jit(functools.partial(jax.core.eval_jaxpr, traced.jaxpr)).lower(traced.consts)
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 3 * matrix + 2 * drawn


def test_starts_of_several_targets_are_those_of_each_job_alone():
    """Lanes of one program; two of the jobs share a target, one sees it through other options."""
    jobs = [
        aligned(seeds=2, target_seed=3),
        aligned(seeds=3, seed=5, target_seed=1, scale=0.2),
        aligned(seeds=1, seed=9, target_seed=3, scale=0.3),
        aligned(seeds=2, target_seed=2),
    ]
    problems = [simulate.prepare(job) for job in jobs]
    assert problems[0].target is problems[2].target
    together, taken = simulate.starts(problems), 0
    for job, problem in zip(jobs, problems, strict=True):
        own = slice(taken, taken + job.seeds)
        taken = own.stop
        part = jax.tree.map(lambda leaf, own=own: leaf[own], together)
        jax.tree.map(np.testing.assert_array_equal, part, simulate.starts([problem]))
        vectors, scale = problem.target.eigenvectors[:, :2], job.initialization.option("scale", None)
        for generator in part.end_to_end:  # by the definition of this start
            np.testing.assert_allclose(vectors @ (vectors.T @ generator), generator, atol=1e-14)
            np.testing.assert_allclose(np.linalg.svd(generator, compute_uv=False), scale, rtol=1e-12)
    assert taken == len(together.end_to_end)


def test_jobs_share_the_target_of_a_file_until_it_is_written_anew(tmp_path):
    path = tmp_path / "values.npy"
    values = np.random.default_rng(0).normal(size=(9, 5))
    target = {"name": "file", "path": str(path)}
    np.save(path, values)
    first, second = (simulate.prepare(config(target=target, seeds=seeds)) for seeds in (1, 2))
    assert first.target is second.target
    assert first.samples is second.samples
    np.save(path, 2 * values)
    os.utime(path, (1, 1))
    again = simulate.prepare(config(target=target))
    np.testing.assert_allclose(again.target.eigenvalues, 4 * first.target.eigenvalues, rtol=1e-12)


def test_the_target_of_a_folder_is_made_for_each_job(tmp_path):
    """Nothing tells cheaply whether a file within is another one by now."""

    def of_folder(*, path: str):
        return TARGETS["file"](path=f"{path}/values.npy")

    job = config(target={"name": "of_folder", "path": str(tmp_path)})
    values = np.random.default_rng(0).normal(size=(9, 5))
    TARGETS.register("of_folder")(of_folder)
    try:
        made = []
        for factor in (1, 2):
            np.save(tmp_path / "values.npy", factor * values)
            made.append(simulate.prepare(job).target.eigenvalues)
    finally:
        TARGETS._functions.pop("of_folder", None)
    np.testing.assert_allclose(made[1], 4 * made[0], rtol=1e-12)


# --- records --------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.data(), st.sampled_from(["linear", "logarithmic"]))
def test_record_steps_increase_from_start_to_end(steps, data, spacing):
    count = data.draw(st.integers(1, min(steps, 300)))
    chosen = record_steps(steps, Record(count, spacing))
    assert len(chosen) == count + 1
    assert chosen[0] == 0
    assert chosen[-1] == steps
    assert np.all(np.diff(chosen) >= 1)


def test_logarithmic_records_are_evenly_spaced_in_the_logarithm():
    chosen = record_steps(10**6, Record(25, "logarithmic"))[1:]
    ratios = chosen[8:-1] / chosen[7:-2]
    np.testing.assert_allclose(ratios, 10 ** (6 / 24), rtol=0.02)


def test_records_do_not_depend_on_how_often_one_looks():
    few, many = (simulate.run(config(record={"count": count})).dataset for count in (1, 60))
    np.testing.assert_array_equal(few["loss"].values[:, -1], many["loss"].values[:, -1])
    np.testing.assert_array_equal(many["step"].values[0], np.arange(61))


def test_one_row_describes_one_iterate():
    """Recomputed from the weights of the last record by the library in data coordinates."""
    result = finished()
    last, sigma, loss = result.dataset.isel(record=-1), result.target, losses.bures_wasserstein()
    gradients_of = jax.grad(lambda layers: losses.deep_value(loss, layers, sigma))
    for lane in range(3):
        weights, row = result.weights(lane), last.isel(seed=lane)
        generator = networks.end_to_end(weights)
        np.testing.assert_allclose(row["loss"], loss.value(generator, sigma), rtol=1e-11)
        np.testing.assert_allclose(row["gap"], loss.gap(generator, sigma, 3), rtol=1e-9)
        singular = np.linalg.svd(generator, compute_uv=False)
        np.testing.assert_allclose(row["singular_values"], singular, rtol=1e-11)
        np.testing.assert_allclose(row["imbalance"], networks.imbalance(weights), rtol=1e-9)
        norm = np.sqrt(sum(np.sum(np.square(each)) for each in gradients_of(weights)))
        np.testing.assert_allclose(row["gradient_norm"], norm, rtol=1e-10)
        left = np.linalg.svd(generator)[0]
        cosines = np.abs(left.T @ sigma.eigenvectors)
        np.testing.assert_allclose(row["alignment"], np.diag(cosines)[:3], atol=1e-10)
        np.testing.assert_allclose(row["final_cosines"], cosines[:3], atol=1e-10)
        distance = np.linalg.norm(generator @ generator.T - sigma.covariance)
        np.testing.assert_allclose(row["covariance_distance"], distance, rtol=1e-11)
        optimum = loss.minimizer(sigma, 3)
        frobenius = np.linalg.norm(generator @ generator.T - optimum)
        np.testing.assert_allclose(row["optimum_distance_frobenius"], frobenius, rtol=1e-10)
        shares = singular / singular.sum()
        effective = np.exp(-np.sum(shares * np.log(shares)))
        np.testing.assert_allclose(row["effective_rank"], effective, rtol=1e-12)
        errors = singular**2 - np.asarray(sigma.eigenvalues)[:3]
        np.testing.assert_allclose(row["eigenvalue_error"], errors, atol=1e-11)


def test_the_distance_to_the_optimum_vanishes_there():
    dataset = simulate.run(config(dynamics__steps=3000, dynamics__gap_tolerance=1e-20)).dataset
    last = dataset.isel(record=-1)
    trace = float(dataset["target_trace"])
    assert np.all(last["relative_gap"] <= 1e-20)
    assert np.all(last["optimum_distance_bures_wasserstein"] <= 1e-9 * np.sqrt(trace))
    assert np.all(last["optimum_distance_frobenius"] <= 1e-9 * trace)
    assert np.all(last["alignment"] >= 1 - 1e-12)
    np.testing.assert_allclose(last["loss"], float(dataset["minimum"]), rtol=1e-12)
    assert set(dataset["outcome"].values) == {"converged"}
    assert np.all(last["step"] < 3000)


def test_a_diverged_lane_is_marked_frozen_and_recorded():
    dataset = simulate.run(config(dynamics__step_size=5.0)).dataset
    assert set(dataset["outcome"].values) == {"diverged"}
    assert np.all(dataset["step"].values[:, -1] < 60)
    for name in ("loss", "gap", "weights_1"):
        assert np.all(np.isfinite(dataset[name].values))
    np.testing.assert_array_equal(dataset["loss"].values[:, -1], dataset["loss"].values[:, -2])


@pytest.mark.parametrize("shape", [{"depth": 1}, {"depth": 2, "latent_dim": 8}, {"widths": [7, 2, 4, 5]}])
@pytest.mark.parametrize("loss", [{"name": "bures_wasserstein", "tau": 0.1}, {"name": "frobenius"}])
def test_every_shape_runs_for_every_loss(shape, loss):
    result = simulate.run(config(network=shape, loss=loss, dynamics__step_size=0.01))
    assert np.all(result.dataset["gap"].values >= 0)
    assert np.all(np.diff(result.dataset["loss"].values, axis=1) <= 1e-12)
    assert ("interface" in result.dataset.sizes) == (result.config.network.depth != 1)


def test_float32_runs_in_float32_from_the_same_start():
    double, single = (simulate.run(config(precision=p)).dataset for p in ("float64", "float32"))
    assert single["loss"].dtype == np.float32
    assert single["weights_1"].dtype == np.float32
    np.testing.assert_allclose(single["loss"].values[:, 0], double["loss"].values[:, 0], rtol=1e-5)
    np.testing.assert_allclose(single["loss"].values[:, -1], double["loss"].values[:, -1], rtol=1e-4)


FLOWS = [
    {"name": "gradient_flow", "end_time": 2.0},
    {"name": "end_to_end_flow", "end_time": 2.0, "gap_tolerance": 1e-9},
]


@pytest.mark.parametrize("dynamics", [None, *FLOWS])
def test_float32_programs_hold_no_float64(dynamics):
    changes = {"dynamics": dynamics, "initialization__balanced": True} if dynamics else {}
    problem = simulate.prepare(config(precision="float32", **changes))
    _, begun = simulate.begin([problem])
    batch, until = begun.batches[0], np.ones(1, np.float32 if dynamics else np.int32)
    traced = begun.program.advance.trace(batch.lanes, batch.state, until, np.int32(1))
    assert "f64" not in str(traced.jaxpr)


# --- results --------------------------------------------------------------------------------------


def test_reloaded_weights_give_the_recorded_loss(tmp_path):
    path = results.save(finished(), tmp_path)
    loaded = results.load(path)
    recorded = loaded.dataset["loss"].values[:, -1]
    for lane in range(3):
        value = losses.deep_value(losses.bures_wasserstein(), loaded.weights(lane), loaded.target)
        np.testing.assert_allclose(value, recorded[lane], rtol=1e-12)
    assert loaded.config == config()


def test_data_targets_keep_samples_and_their_shape():
    result = simulate.run(config(target={"name": "digits"}, dynamics__step_size=1e-4, seeds=1))
    assert result.dataset["real_samples"].shape == (simulate.REAL_SAMPLES, 64)
    np.testing.assert_array_equal(result.dataset.attrs["image_shape"], [8, 8])


@pytest.mark.parametrize("center", [True, False])
def test_a_users_own_samples(tmp_path, center):
    """The optimum at rank 3 is the tail of their second moments, about the mean or about 0."""
    values = np.random.default_rng(0).normal(size=(40, 5)) + 3
    np.save(tmp_path / "values.npy", values)
    target = {"name": "file", "path": str(tmp_path / "values.npy"), "center": center}
    dataset = simulate.run(config(target=target, dynamics__step_size=1e-3)).dataset
    mean = values.mean(axis=0) if center else np.zeros(5)
    np.testing.assert_allclose(dataset["sample_mean"], mean, rtol=1e-13)
    moments = np.linalg.svd(values - mean, compute_uv=False) ** 2 / 40
    np.testing.assert_allclose(float(dataset["minimum"]), np.sum(moments[3:]), rtol=1e-11)


def test_digits_optimum_is_the_pca_tail():
    from sklearn.datasets import load_digits

    centered = load_digits().data - load_digits().data.mean(axis=0)
    variances = np.linalg.svd(centered, compute_uv=False) ** 2 / len(centered)
    result = simulate.run(config(target={"name": "digits"}, dynamics__step_size=1e-4, seeds=1))
    np.testing.assert_allclose(float(result.dataset["minimum"]), np.sum(variances[3:]), rtol=1e-12)


# --- interruption and progress --------------------------------------------------------------------


def test_interrupt_keeps_what_was_recorded():
    """Ctrl-C between two records: the last row describes the weights that are kept."""

    def interrupt(progress):
        if progress.position >= 20:
            raise KeyboardInterrupt

    result = simulate.run(config(), on_progress=interrupt)
    dataset = result.dataset
    assert dataset.attrs["interrupted"] == 1
    assert set(dataset["outcome"].values) == {"running"}
    assert 20 <= int(dataset["step"].values[0, -1]) < 60
    value = losses.deep_value(losses.bures_wasserstein(), result.weights(0), result.target)
    np.testing.assert_allclose(value, dataset["loss"].values[0, -1], rtol=1e-12)


@pytest.mark.slow
def test_a_real_interrupt_ends_a_long_run_soon():
    timer = threading.Timer(8.0, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    result = simulate.run(config(dynamics__steps=10**9, dynamics__step_size=1e-9, record={"count": 2}))
    assert result.dataset.attrs["interrupted"] == 1


def test_progress_is_told_from_start_to_end():
    seen = []
    simulate.run(config(), on_progress=seen.append)
    steps = [each.position for each in seen]
    assert steps == sorted(steps)
    assert steps[0] == 0
    assert steps[-1] == 60
    assert {(each.end, each.clock) for each in seen} == {(60, "step")}
    assert seen[0].running == 3
    assert seen[-1].running == 0
    assert seen[-1].best_gap <= seen[-1].median_gap < seen[0].median_gap


# --- every choice, and a user's own ---------------------------------------------------------------

FAMILIES = ("zipf", "random", "power_law", "geometric", "spiked")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_targets_runs(name):
    dataset = simulate.run(config(target={"name": name, "dimension": 5}, dynamics__step_size=1e-3)).dataset
    assert np.all(np.isfinite(dataset["loss"].values))


@pytest.mark.parametrize("name", ["faces", "image_patches"])
def test_every_data_target_runs(name):
    target = {"name": name} | ({"side": 4, "count": 100} if name == "image_patches" else {})
    dynamics = {"name": "gradient_descent", "step_size": 1e-4, "steps": 2}
    changes = {"target": target, "dynamics": dynamics, "record": {"count": 1}, "seeds": 1}
    dataset = simulate.run(config(**changes)).dataset
    assert np.all(np.isfinite(dataset["loss"].values))


START_CASES = [
    (name, balanced)
    for name in STARTS
    for balanced in ((False, True) if "balanced" in STARTS.options(name) else (None,))
    if name != "file"
]


@pytest.mark.parametrize(("name", "balanced"), START_CASES)
def test_every_start_runs(name, balanced):
    options = {"name": name} | ({} if balanced is None else {"balanced": balanced})
    options |= {"rank": 2} if "rank" in STARTS.options(name) else {}
    dataset = simulate.run(config(initialization=options, network={"depth": 2})).dataset
    assert np.all(np.isfinite(dataset["loss"].values))


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(name, "constant") for name in OPTIMIZERS] + [("descent", name) for name in SCHEDULES],
)
def test_every_optimizer_and_schedule_runs(optimizer, schedule):
    options = {"optimizer": {"name": optimizer}, "schedule": {"name": schedule}}
    options["schedule"] |= {"warmup_steps": 5} if schedule == "warmup_cosine" else {}
    mapping = {"name": "gradient_descent", "step_size": 0.01, "steps": 30, **options}
    dataset = simulate.run(config(dynamics=mapping)).dataset
    assert np.all(dataset["loss"].values[:, -1] < dataset["loss"].values[:, 0])


PLUGIN = '''
"""A user's own loss, start and target."""
import jax.numpy as jnp
from bwdln.initializations import STARTS
from bwdln.losses import LOSSES, bures_wasserstein
from bwdln.targets import TARGETS, from_covariance


@LOSSES.register("scaled")
def scaled(*, factor: float = 2.0):
    base = bures_wasserstein()
    return base._replace(
        value=lambda w, t: factor * base.value(w, t),
        gradient=lambda w, t: factor * base.gradient(w, t),
        value_and_gradient=lambda w, t: (factor * base.value(w, t), factor * base.gradient(w, t)),
        gap=lambda w, t, rank: factor * base.gap(w, t, rank),
        minimum=lambda t, rank: factor * base.minimum(t, rank),
    )


@STARTS.register("ones")
def ones(key, widths, target, *, height: float = 1.0):
    return tuple(height * jnp.ones((up, down)) for down, up in zip(widths, widths[1:]))


@TARGETS.register("toeplitz")
def toeplitz(*, dimension: int = 4, decay: float = 0.5):
    index = jnp.arange(dimension)
    return from_covariance(decay ** jnp.abs(index[:, None] - index[None, :]))
'''


def test_a_users_own_loss_start_and_target(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    job = config(
        plugins=["my_parts"],
        target={"name": "toeplitz", "dimension": 5},
        initialization={"name": "ones", "height": 0.5},
        loss={"name": "scaled", "factor": 3.0},
        dynamics__step_size=0.02,
    )
    try:
        dataset = simulate.run(job).dataset
        plain = simulate.run(
            config(
                target={"name": "toeplitz", "dimension": 5},
                initialization={"name": "ones", "height": 0.5},
                dynamics__step_size=0.06,
            )
        ).dataset
        np.testing.assert_allclose(dataset["weights_1"], plain["weights_1"], rtol=1e-9)
        np.testing.assert_allclose(dataset["loss"], 3 * plain["loss"], rtol=1e-9)
        message = r"^loss\.fctor: got 1\.0; takes one of factor; did you mean factor"
        with pytest.raises(InvalidOption, match=message):
            simulate.run(config(plugins=["my_parts"], loss={"name": "scaled", "fctor": 1.0}))
    finally:
        for registry, name in ((LOSSES, "scaled"), (STARTS, "ones"), (TARGETS, "toeplitz")):
            registry._functions.pop(name, None)
        sys.modules.pop("my_parts", None)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"name": "bures_waserstein"}}, r"^loss: got bures_waserstein; takes .*did you mean bures"),
        ({"loss__tau": -1.0}, r"^loss\.tau: got -1\.0; takes a finite number from 0"),
        ({"loss__tau": float("nan")}, r"^loss\.tau: got nan"),
        ({"loss": {"name": "frobenius", "tau": 0.1}}, r"^loss\.tau: got 0\.1; takes "),
        ({"target": {"name": "digit"}}, r"^target: got digit; takes .*did you mean digits"),
        ({"target__rank": 9}, r"^target\.rank: got 9; "),
        ({"initialization": {"name": "xavier"}}, r"^initialization: got xavier; takes .*xavier_"),
        ({"initialization__scle": 1.0}, r"^initialization\.scle: got 1\.0"),
        ({"network__bottleneck": 6}, r"^network\.bottleneck: got 6; takes an integer up to dimension = 5"),
        ({"network__depth": 0}, r"^network\.depth: got 0; takes an integer from 1"),
        ({"network__hidden_width": 0}, r"^network\.hidden_width: got 0"),
        ({"record__count": 61}, r"^record\.count: got 61; takes an integer up to steps = 60"),
        ({"dynamics__step_size": 0.0}, r"^dynamics\.step_size: got 0\.0; takes a finite number above 0"),
        ({"dynamics": {"name": "descent"}}, r"^dynamics: got descent; takes .*gradient_descent"),
        ({"plugins": ["no_such_module"]}, r"^plugins: got no_such_module; takes "),
    ],
)
def test_bad_input_is_refused_before_anything_compiles(changes, message, monkeypatch):
    def compiled(*_):
        raise AssertionError("a program was asked for")

    monkeypatch.setattr(lanes, "program", compiled)
    with pytest.raises(InvalidOption, match=message) as caught:
        simulate.run(config(**changes))
    assert "\n" not in str(caught.value)


def test_float64_is_refused_where_the_backend_has_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(InvalidOption, match=r"^precision: got float64; takes float32 on tpu"):
        simulate.prepare(config())


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_steps_of_fixed_size_that_just_reach_the_end_are_enough(precision):
    """Ten times 0.1 is a little less than 1."""
    dynamics = {"name": "gradient_flow", "end_time": 1.0, "method": "euler", "step_size": 0.1}
    result = simulate.run(config(dynamics={**dynamics, "max_steps": 10}, precision=precision, seeds=1))
    assert result.outcomes == ("reached_end",)
    assert float(result.dataset["time"][0, -1]) == 1.0


def test_registries_name_what_they_hold():
    assert set(DYNAMICS) == {"gradient_descent", "gradient_flow", "end_to_end_flow"}
    assert {"bures_wasserstein", "frobenius"} == set(LOSSES)
    assert jnp.asarray(1.0).dtype == jnp.float64
