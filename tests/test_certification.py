"""What runs record of theory: certificates they were entitled to, and the curvature on the way."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import xarray
from problems import job

from bwdln import comparison, figures, losses, results, simulate
from bwdln.errors import InvalidOption
from bwdln.results import Result
from bwdln.theory import certificates, hessians
from bwdln.theory.starts import start_of
from experiments import train

FLOW = {
    "network": {"depth": 3},
    "initialization": {"name": "close_to_target", "tau": 0.05, "scale": 0.5},
    "loss": {"name": "bures_wasserstein", "tau": 0.05},
    "dynamics": {"name": "gradient_flow", "end_time": 2.0, "relative_tolerance": 1e-8},
    "record": {"count": 8, "certificates": True, "sharpness": True},
    "seeds": 2,
}
NAMES = ["sharp", "sharp_constant", "paper_flow"]


@functools.cache
def flow() -> Result:
    return simulate.run(job(**FLOW))


@functools.cache
def descent() -> Result:
    """Plain descent from Xavier starts, which have no margin, to the minimizer at a bottleneck."""
    options = {"name": "gradient_descent", "step_size": 0.05, "steps": 400}
    return simulate.run(job(dynamics=options, record={"count": 5, "certificates": True, "sharpness": True}))


# --- certificates ---------------------------------------------------------------------------------


def test_a_run_with_a_margin_obeys_what_it_was_promised():
    dataset = flow().dataset
    assert list(dataset["certificate"].values) == NAMES
    assert (dataset["certificate_verdict"].values == "obeyed").all()
    assert (dataset["certificate_failing"].values == "").all()
    bounds = dataset["certificate_bound"].transpose("seed", "certificate", "record").values
    assert (dataset["loss"].values[:, None] <= bounds * (1 + 1e-6)).all()
    np.testing.assert_allclose(bounds[:, :, 0], dataset["loss"].values[:, :1].repeat(3, axis=1), rtol=1e-12)


def test_the_bounds_are_those_of_the_theory_from_the_first_weights():
    dataset = flow().dataset
    target = flow().target
    for lane in range(2):
        first = dataset["initial_end_to_end"].values[lane]
        start = start_of(first, target, depth=3, tau=0.05, loss="bures_wasserstein")
        assert start.margin == pytest.approx(float(dataset["margin"].values[lane]), rel=1e-10)
        for name in NAMES:
            bound = getattr(certificates, name)(start).bound(dataset["time"].values[lane])
            recorded = dataset["certificate_bound"].sel(certificate=name).values[lane]
            np.testing.assert_allclose(recorded, bound, rtol=1e-9)


def test_a_run_without_a_margin_is_not_entitled_and_says_why():
    dataset = descent().dataset
    assert list(dataset["certificate"].values) == ["paper_descent"]
    assert (dataset["certificate_verdict"].values == "not entitled").all()
    assert np.isnan(dataset["certificate_bound"].values).all()
    failing = set(dataset["certificate_failing"].values.ravel())
    assert failing == {"full_rank: the bottleneck 3 is not at least the dimension 5"}


def test_a_loss_above_its_bound_is_a_violation(monkeypatch):
    slow = flow().dataset.copy(deep=True)
    real = certificates.sharp_constant

    def too_fast(start):
        made = real(start)
        return made._replace(bound=lambda times: made.bound(1e4 * times))

    monkeypatch.setitem(certificates.FLOW, "sharp_constant", too_fast)
    verdicts = simulate.run(job(**FLOW)).dataset["certificate_verdict"]
    assert (verdicts.sel(certificate="sharp_constant").values == "violated").all()
    assert (verdicts.sel(certificate="sharp").values == "obeyed").all()
    assert slow.equals(flow().dataset)


def test_an_imbalanced_start_is_not_entitled():
    changes = {**FLOW, "initialization": {"name": "identity"}, "record": {"count": 2, "certificates": True}}
    changes["target"] = {"name": "explicit", "eigenvalues": [1.2, 1.1, 1.0]}
    assert (simulate.run(job(**changes)).dataset["certificate_verdict"].values == "obeyed").all()
    changes["initialization"] = {"name": "xavier_normal"}
    failing = simulate.run(job(**changes)).dataset["certificate_failing"].values
    assert all(each.startswith("balanced: the relative imbalance") for each in failing.ravel())


def test_end_to_end_flows_and_admissible_descent_are_certified():
    ends = {**FLOW, "network": {"depth": 2.5}, "dynamics": {"name": "end_to_end_flow", "end_time": 2.0}}
    ends["record"] = {"count": 4, "certificates": True}
    assert (simulate.run(job(**ends)).dataset["certificate_verdict"].values == "obeyed").all()
    step = {"name": "gradient_descent", "step_size": 1e-9, "steps": 20}
    slow = {**FLOW, "dynamics": step, "record": {"count": 2, "certificates": True}}
    slow |= {"target": {"name": "explicit", "eigenvalues": [1.2, 1.1, 1.0]}, "initialization": "identity"}
    assert (simulate.run(job(**slow)).dataset["certificate_verdict"].values == "obeyed").all()


# --- curvature ------------------------------------------------------------------------------------


def test_the_curvature_is_that_of_the_hessian_of_the_last_weights():
    result = descent()
    weights = result.weights(1)
    loss, target = losses.bures_wasserstein(0.0), result.target
    blocks = jax.hessian(lambda layers: losses.deep_value(loss, layers, target))(weights)
    sizes = [layer.size for layer in weights]
    full = np.block([[np.reshape(blocks[i][j], (sizes[i], sizes[j])) for j in range(3)] for i in range(3)])
    values = np.linalg.eigvalsh(full)
    last = result.dataset.isel(seed=1, record=-1)
    assert float(last["sharpness"]) == pytest.approx(values[-1], rel=1e-6)
    assert float(last["smallest_curvature"]) == pytest.approx(values[0], abs=1e-6 * values[-1])


def test_the_curvature_at_the_end_of_a_balanced_flow_is_the_closed_form():
    result, target = flow(), flow().target
    closed = hessians.spectrum(target.eigenvalues, range(5), depth=3, tau=0.05)
    found = result.dataset["sharpness"].isel(record=-1).values
    np.testing.assert_allclose(found, float(closed.max()), rtol=0.02)


def test_the_curvature_is_recorded_in_both_precisions():
    single = simulate.run(job(**FLOW, precision="float32")).dataset["sharpness"].values
    np.testing.assert_allclose(single, flow().dataset["sharpness"].values, rtol=1e-3)


# --- on disk, in words, in figures ----------------------------------------------------------------


def test_what_was_recorded_survives_the_disk(tmp_path):
    path = results.save(flow(), tmp_path)
    with xarray.open_dataset(path) as dataset:
        assert list(dataset["certificate"].values) == NAMES
        assert (dataset["certificate_verdict"].values == "obeyed").all()
    loaded = results.load(path)
    assert comparison.run.verdict_sentences(loaded) == comparison.run.verdict_sentences(flow())


def test_the_summary_says_who_was_entitled_and_who_obeyed(capsys):
    train.summarize(flow())
    train.summarize(descent())
    said = capsys.readouterr().out
    for name in NAMES:
        assert f"certificate {name}: obeyed by 2 of 2 seeds\n" in said
    why = "full_rank: the bottleneck 3 is not at least the dimension 5"
    assert f"certificate paper_descent: no seed is entitled ({why})\n" in said


def test_a_mixed_batch_is_counted():
    dataset = flow().dataset.copy(deep=True)
    dataset["certificate_verdict"].values[0, 0] = "not entitled"
    dataset["certificate_failing"].values[0, 0] = "margin: none"
    dataset["certificate_verdict"].values[1, 1] = "violated"
    said = comparison.run.verdict_sentences(Result(dataset))
    assert said[0] == "certificate sharp: obeyed by 1 of 1 seeds; 1 not entitled (margin: none)"
    assert said[1] == "certificate sharp_constant: obeyed by 1 of 2 seeds"


def test_figures_show_what_was_recorded():
    shown = figures.run.certificates(flow())
    labels = [line.get_label() for line in shown.axes[0].lines]
    assert labels == ["measured", "sharp", "sharp constant", "paper flow"]
    curvature = figures.run.sharpness(descent())
    (limit,) = [line for line in curvature.axes[0].lines if "stable" in str(line.get_label())]
    assert limit.get_ydata()[0] == 2 / 0.05
    assert figures.run.certificates(descent()) is None
    flat = figures.run.sharpness(flow())
    assert not [line for line in flat.axes[0].lines if "stable" in str(line.get_label())]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": {"name": "frobenius"}, "record": {"count": 2, "certificates": True}},
            "record.certificates: got True; takes false with loss=frobenius",
        ),
        (
            {"dynamics__optimizer": {"name": "adam"}, "record": {"count": 2, "certificates": True}},
            "record.certificates: got True; takes false with dynamics/optimizer=adam",
        ),
        (
            {"dynamics__schedule": {"name": "cosine"}, "record": {"count": 2, "certificates": True}},
            "record.certificates: got True; takes false with dynamics/schedule=cosine",
        ),
        (
            {
                "dynamics": {"name": "end_to_end_flow", "end_time": 1.0},
                "initialization": {"name": "aligned"},
                "record": {"count": 2, "sharpness": True},
            },
            "record.sharpness: got True; takes false with end_to_end_flow, which has no layers",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(changes, message):
    with pytest.raises(InvalidOption, match=message):
        simulate.prepare(job(**changes))
