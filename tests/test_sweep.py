"""Sweeps as a library: what is planned, what runs together, what is kept, what fails alone."""

import contextlib
import errno
import os
import signal
import time

import jax
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st
from problems import job

from bwdln import lanes, program, results, simulate, sweep
from bwdln.collection import Collection
from bwdln.config import Sweep
from bwdln.dynamics import integrate
from bwdln.errors import InvalidOption
from bwdln.store import Store

DESCENT = {"name": "gradient_descent", "step_size": 0.05, "steps": 60}
FLOW = {"name": "gradient_flow", "end_time": 1.0}
END_TO_END = {"name": "end_to_end_flow", "end_time": 1.0}
BALANCED = {"name": "xavier_normal", "balanced": True}
BURES = {"name": "bures_wasserstein", "tau": 0.0}


def tiny(**changes):
    """A job of a few milliseconds: two seeds, five records."""
    return job(**{"dynamics": DESCENT, "record": {"count": 5}, "seeds": 2} | changes)


def by_tau(*values, **changes):
    return [tiny(loss=BURES | {"tau": value}, **changes) for value in values]


def mixed():
    """Two depths, two losses, three dynamics, several τ, one job that diverges."""
    losses = (*(BURES | {"tau": tau} for tau in (0.0, 0.1, 0.3)), {"name": "frobenius"})
    configs = [
        tiny(loss=loss, dynamics=dynamics, initialization=BALANCED, network={"depth": depth, "bottleneck": 2})
        for depth in (2, 3)
        for loss in losses
        for dynamics in (DESCENT, FLOW, END_TO_END)
    ]
    return [*configs, tiny(dynamics=DESCENT | {"step_size": 50.0})]


def assert_same(left, right, tolerance=1e-10):
    """All variables of two results agree, and so do the attributes but those of the occasion."""
    assert set(left.dataset.variables) == set(right.dataset.variables)
    for name, values in left.dataset.variables.items():
        other = right.dataset[name].values
        if values.dtype.kind in "OU":
            np.testing.assert_array_equal(values.values, other, err_msg=name)
        else:
            np.testing.assert_allclose(values.values, other, rtol=tolerance, atol=tolerance, err_msg=name)
    occasion = {"wall_seconds", "created", "command"}
    for name in left.dataset.attrs.keys() - occasion:
        np.testing.assert_array_equal(left.dataset.attrs[name], right.dataset.attrs[name], err_msg=name)


@pytest.fixture
def lanes_run(monkeypatch):
    """How many lanes each batch that ran had."""
    counts = []
    begin = simulate.begin

    def counted(problems, *arguments, **options):
        counts.append(sum(problem.config.seeds for problem in problems))
        return begin(problems, *arguments, **options)

    monkeypatch.setattr(simulate, "begin", counted)
    return counts


def test_a_mixed_sweep_equals_its_jobs_alone_and_compiles_what_it_plans(monkeypatch):
    configs = mixed()
    refused = tiny(dynamics=DESCENT | {"step_size": -1.0})
    planned = sweep.plan(dict(enumerate([*configs, refused])))
    assert list(planned.refused) == [len(configs)]
    assert str(planned.refused[len(configs)]).startswith("dynamics.step_size: got -1")
    # Programs: depth × dynamics × (τ = 0, τ > 0, Frobenius), where an end-to-end flow is of any depth,
    # and the one that diverges has the widths of no other.
    assert len(planned.programs) == 2 * 2 * 3 + 3 + 1
    assert planned.lanes == 2 * len(configs)

    traced = []
    step = integrate.step

    def counted(dynamics, state, until):
        traced.append(1)
        return step(dynamics, state, until)

    monkeypatch.setattr(integrate, "step", counted)
    program._program.cache_clear()
    done = {each.job: each.outcome for each in sweep.execute(planned)}
    assert program._program.cache_info().misses == len(planned.programs)
    monkeypatch.undo()
    per_program = len(traced) / len(planned.programs)
    assert per_program == int(per_program), "a program was traced more often than another"
    assert set(done[len(configs) - 1].outcomes) == {"diverged"}
    for number, config in enumerate(configs):
        assert_same(done[number], simulate.run(config))


def test_the_order_is_kept_and_jobs_of_equal_content_run_once(lanes_run):
    configs = by_tau(0.2, 0.1, 0.2, 0.3)
    found = sweep.run(configs)
    assert [result.config.json() for result in found] == [config.json() for config in configs]
    assert lanes_run == [6]


@pytest.mark.parametrize("lanes_per_batch", [1, 3, 5])
def test_batches_of_any_size_give_the_same(lanes_per_batch, lanes_run):
    """Five seeds are more than one or three lanes: the job is cut, and joined again."""
    configs = by_tau(0.1, 0.2, seeds=5, seed=7)
    alone = [simulate.run(config) for config in configs]
    lanes_run.clear()
    found = sweep.run(configs, Sweep(lanes_per_batch=lanes_per_batch))
    assert max(lanes_run) == lanes_per_batch
    assert sum(lanes_run) == 10
    for left, right in zip(found, alone, strict=True):
        assert_same(left, right, 1e-12)


def test_batches_of_one_program_share_what_is_compiled(monkeypatch):
    """The last batch is shorter, and on an accelerator all lanes of a batch go together."""
    configs = [tiny(loss=BURES | {"tau": tau, "kernel": "tracked"}) for tau in (0.1, 0.2, 0.3, 0.4, 0.5)]
    alone = [simulate.run(config) for config in configs]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options = Sweep(lanes_per_batch=4)
    planned = sweep.plan(dict(enumerate(configs)), options)
    assert [(batch.lanes, batch.places) for batch in planned.batches] == [(4, 4), (4, 4), (2, 4)]
    for left, right in zip(sweep.run(configs, options), alone, strict=True):
        assert_same(left, right)
    functions = program.program(planned.batches[0].pieces[0].problem.static, planned.devices)
    assert [each._cache_size() for each in functions] == [1, 1, 1]


def test_what_is_stored_is_not_computed_again(tmp_path, lanes_run):
    store = Store(tmp_path)
    first = sweep.run(by_tau(0.1, 0.2), store=store)
    assert lanes_run == [4]
    again = sweep.run(by_tau(0.0, 0.1, 0.2, 0.3), store=store)
    assert lanes_run == [4, 2, 2]  # τ = 0 is a program of its own
    for left, right in zip(first, again[1:3], strict=True):
        assert_same(left, right, 1e-12)
    sweep.run(by_tau(0.1, 0.2), Sweep(fresh=True), store=store)
    assert lanes_run == [4, 2, 2, 4]


def test_a_damaged_file_is_computed_again(tmp_path, lanes_run):
    store = Store(tmp_path)
    (before,) = sweep.run(by_tau(0.1), store=store)
    (file,) = tmp_path.glob("*.nc")
    file.write_bytes(file.read_bytes()[:1000])
    (after,) = sweep.run(by_tau(0.1), store=store)
    assert lanes_run == [2, 2]
    assert_same(before, after, 1e-12)


def test_a_batch_goes_on_from_its_checkpoint(tmp_path, lanes_run, monkeypatch):
    """Ctrl-C in the middle of a batch; the next call takes the remaining steps only, to the same bits."""
    configs = by_tau(0.1, 0.2, dynamics=DESCENT | {"steps": 4000}, record={"count": 40})
    undisturbed = sweep.run(configs)

    def interrupt(progress):
        if progress.running is not None and progress.running.position >= 2000:
            os.kill(os.getpid(), signal.SIGINT)

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(configs, store=store, on_progress=interrupt)
    (kept,) = store.checkpoints()
    assert len(kept) == 2
    positions = []

    def note(progress):
        if progress.running is not None:
            positions.append(progress.running.position)

    # A job more changes the batches, but not that one.
    found = sweep.run([*configs, *by_tau(0.5)], store=store, on_progress=note)
    assert min(positions[:3]) >= 2000
    assert store.checkpoints() == []
    for left, right in zip(found, undisturbed, strict=False):
        assert_same(left, right, 1e-12)


class Killed(BaseException):
    """The process is gone."""


def slowly(problems, *arguments, begin=simulate.begin):
    """As `simulate.begin`, with lanes whose every block takes a while."""
    start, running = begin(problems, *arguments)
    advance = running.program.advance

    def slow(*batch):
        time.sleep(0.002)
        return advance(*batch)

    running.program = running.program._replace(advance=slow)
    return start, running


@pytest.mark.parametrize("dynamics", [DESCENT, FLOW, END_TO_END], ids=lambda d: d["name"])
def test_a_batch_is_saved_between_records(dynamics, tmp_path, monkeypatch):
    """Killed three times between the only two records, it comes to its end, to the same bits."""
    configs = by_tau(0.1, 0.2, dynamics=dynamics, initialization=BALANCED, record={"count": 1})
    undisturbed = sweep.run(configs)
    monkeypatch.setattr(simulate, "begin", slowly)
    save, saved, kills = Store.save_checkpoint, [], 0

    def save_and_die(self, keys, arrays, part=""):
        nonlocal kills
        save(self, keys, arrays, part)
        saved.append(arrays)
        moved = any(np.any(arrays[name] != saved[0][name]) for name in arrays if name.startswith("state"))
        if kills < 3 and len(arrays["record_loss"]) == 1 and moved:
            kills += 1
            raise Killed

    monkeypatch.setattr(Store, "save_checkpoint", save_and_die)
    found = None
    while found is None:
        saved.clear()
        monkeypatch.setattr(lanes, "PACE", 0.001 if kills < 3 else 0.25)
        with contextlib.suppress(Killed):
            found = sweep.run(configs, Sweep(checkpoint_seconds=0), store=Store(tmp_path))
    assert kills == 3
    for left, right in zip(found, undisturbed, strict=True):
        assert_same(left, right, 0)


def test_a_batch_is_saved_no_more_often_than_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "PACE", 0.0)
    monkeypatch.setattr(Store, "save_checkpoint", full_disk)
    sweep.run(by_tau(0.1), Sweep(checkpoint_seconds=1e6), store=Store(tmp_path))


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_checkpoint_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch, caplog):
    configs = by_tau(0.1, 0.2)
    expected = sweep.run(configs)
    monkeypatch.setattr(np, "savez", full_disk)
    found = sweep.run(configs, Sweep(checkpoint_seconds=1e-9), store=Store(tmp_path))
    for left, right in zip(found, expected, strict=True):
        assert_same(left, right, 1e-12)
    assert "no checkpoint: folder: got " in caplog.text
    assert os.strerror(errno.ENOSPC) in caplog.text


def test_what_was_stored_before_the_disk_was_full_is_not_lost(tmp_path, lanes_run):
    configs = by_tau(0.1, 0.2, 0.3)
    store, keep = Store(tmp_path), Store.keep
    with pytest.MonkeyPatch.context() as patched:

        def filling(self, *arguments, **options):
            if len(self.keys()) == 2:
                patched.setattr(results, "_write", full_disk)
            return keep(self, *arguments, **options)

        patched.setattr(Store, "keep", filling)
        with pytest.raises(InvalidOption, match=r"^folder: got .* can be written \(No space"):
            sweep.run(configs, store=store)
    assert len(store.keys()) == 2
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(sweep.run(configs, store=store)) == 3
    assert lanes_run == [6, 2]


def out_of_memory(most, begin=simulate.begin):
    """A device with room for so many lanes."""

    def refusing(problems, *arguments, **options):
        if sum(problem.config.seeds for problem in problems) > most:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return begin(problems, *arguments, **options)

    return refusing


def test_out_of_memory_halves_the_batch(monkeypatch):
    configs = by_tau(0.1, 0.2, 0.3, seeds=4)
    expected = sweep.run(configs)
    monkeypatch.setattr(simulate, "begin", out_of_memory(3))
    for left, right in zip(sweep.run(configs), expected, strict=True):
        assert_same(left, right, 1e-12)
    monkeypatch.setattr(simulate, "begin", out_of_memory(0, simulate.begin))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        sweep.run(configs)


def test_a_job_that_fails_fails_alone(monkeypatch):
    """What one job raises in the middle of a batch is that job's, and the others have their results."""
    configs = by_tau(0.1, 0.2, 0.3, 0.4, 0.5)
    begin = simulate.begin

    def failing(problems, *arguments, **options):
        if any(problem.lane.loss["tau"] == 0.4 for problem in problems):
            raise ValueError("no such luck")
        return begin(problems, *arguments, **options)

    monkeypatch.setattr(simulate, "begin", failing)
    done = {each.job: each.outcome for each in sweep.execute(sweep.plan(dict(enumerate(configs))))}
    assert isinstance(done[3], ValueError)
    monkeypatch.undo()
    for number in (0, 1, 2, 4):
        assert_same(done[number], simulate.run(configs[number]))


def test_a_start_that_is_refused_late_fails_alone():
    """Whether a start is balanced is known only when it is drawn."""
    network = {"depth": 2, "bottleneck": 2}
    sound = tiny(dynamics=END_TO_END, initialization=BALANCED, network=network)
    other = tiny(dynamics=END_TO_END, initialization={"name": "xavier_normal"}, network=network)
    done = {each.job: each.outcome for each in sweep.execute(sweep.plan({0: other, 1: sound}))}
    refused = sweep.plan({0: other}).refused
    assert isinstance(refused.get(0, done.get(0)), InvalidOption)
    assert set(done[1].outcomes) == {"reached_end"}


def test_single_precision_agrees_with_double():
    configs = by_tau(0.0, 0.1)
    singles = by_tau(0.0, 0.1, precision="float32")
    for double, single in zip(*(sweep.run(each) for each in (configs, singles)), strict=True):
        assert single.dataset["loss"].dtype == np.float32
        for name in ("singular_values", "final_end_to_end"):
            scale = np.abs(double.dataset[name].values).max()
            np.testing.assert_allclose(
                single.dataset[name].values, double.dataset[name].values, rtol=0, atol=1e-5 * scale
            )


def test_progress_counts_every_job_and_lane():
    seen = []
    configs = dict(enumerate([*by_tau(0.0, 0.1, 0.2), tiny(dynamics=DESCENT | {"step_size": -1.0})]))
    list(sweep.execute(sweep.plan(configs), on_progress=seen.append))
    assert seen[-1][:6] == (4, 4, 0, 1, 6, 6)
    assert seen[-1].running is None
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert {each.running.lanes for each in seen if each.running} == {2, 4}


def test_more_devices_than_there_are():
    with pytest.raises(InvalidOption, match=r"^sweep.devices: got 64; takes an integer up to 1"):
        sweep.plan(dict(enumerate(by_tau(0.1))), Sweep(devices=64))


def test_results_read_back_from_the_store_are_those_that_were_computed(tmp_path):
    store = Store(tmp_path)
    (computed,) = sweep.run(by_tau(0.1), store=store)
    (read,) = sweep.run(by_tau(0.1), store=store)
    xarray.testing.assert_identical(computed.dataset, read.dataset)


@given(
    st.integers(0, 20),
    st.integers(0, 60),
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=8),
)
def test_a_span_is_cut_around_what_is_fixed(begin, length, size, fixed):
    fixed = [(first, first + count) for first, count in fixed]
    spans = sweep.cut(begin, begin + length, size, fixed)
    assert [seed for span in spans for seed in range(*span)] == list(range(begin, begin + length))
    assert all(behind - first <= size or (first, behind) in fixed for first, behind in spans)
    within = [span for span in fixed if begin <= span[0] and span[1] <= begin + length]
    apart = all(a is b or a[1] <= b[0] or b[1] <= a[0] for a in within for b in within)
    assert not apart or set(within) <= set(spans)
    assert set(within) & set(spans) or not within


@pytest.mark.parametrize("lanes_per_batch", [2, 4, 100])
def test_jobs_whose_seeds_overlap_all_come_to_their_end(tmp_path, lanes_per_batch, lanes_run):
    jobs = [tiny(seeds=4), tiny(seeds=8), tiny(seed=4, seeds=8), tiny(seed=2, seeds=2)]
    found = sweep.run(jobs, Sweep(lanes_per_batch=lanes_per_batch), store=Store(tmp_path))
    for config, result in zip(jobs, found, strict=True):
        seeds = np.arange(config.seed, config.seed + config.seeds)
        np.testing.assert_array_equal(result.dataset["seed"], seeds)
    for result in found[1:]:
        for seed in set(result.dataset["seed"].values) & set(found[0].dataset["seed"].values):
            one, other = (each.dataset["loss"].sel(seed=seed) for each in (found[0], result))
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_parts_of_a_job_are_not_stored_beside_the_whole(tmp_path):
    store, jobs = Store(tmp_path), [tiny(seeds=6), tiny(seed=2, seeds=6), tiny(seeds=2)]
    sweep.run(jobs, Sweep(lanes_per_batch=2), store=store)
    keys = sweep.plan(dict(enumerate(jobs))).keys
    assert {path.stem for path in tmp_path.glob("*.nc")} == set(keys.values())


@pytest.mark.parametrize("dynamics", [DESCENT, FLOW, END_TO_END], ids=lambda d: d["name"])
def test_the_estimate_of_the_dataset_is_what_it_takes(tmp_path, dynamics):
    """That of all jobs, those that are stored among them: once for each job, once for them together."""
    jobs = dict(enumerate(by_tau(0.1, 0.2, dynamics=dynamics, initialization=BALANCED, seeds=40)))
    jobs[2] = tiny(dynamics=dynamics, initialization=BALANCED, seeds=20, record={"count": 40})
    store = Store(tmp_path)
    estimate = sweep.plan(jobs, store=store).bytes_of_dataset
    gathered = Collection({number: {} for number in jobs})
    for number, result in enumerate(sweep.run(list(jobs.values()), store=store)):
        gathered.add(number, result)
    taken = 2 * sum(
        values.nbytes for part in gathered._parts.values() for _, values in part.variables.values()
    )
    assert 0.8 * taken <= estimate <= 1.2 * taken
    new = {3: tiny(dynamics=dynamics, initialization=BALANCED, seeds=100, loss=BURES | {"tau": 0.4})}
    with_stored = sweep.plan(jobs | new, store=store).bytes_of_dataset
    assert with_stored == sweep.plan(new).bytes_of_dataset * (40 + 40 + 20 + 100) / 100
