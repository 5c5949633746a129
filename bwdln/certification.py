"""What theory promised each seed of a run from its start, and whether the run kept it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bwdln.config import Config
from bwdln.errors import check
from bwdln.theory import certificates
from bwdln.theory.certificates import Certificate
from bwdln.theory.starts import Start, start_at

#: The dynamics that certificates are about, by name, and whether they are flows.
FLOWS = {"gradient_flow": True, "end_to_end_flow": True, "gradient_descent": False}


def check_certifiable(config: Config) -> None:
    """Refuse certificates of a loss, a dynamics or an optimizer that there are none of."""
    option, loss, motion = "record.certificates", config.loss.name, config.dynamics.name
    check(loss == "bures_wasserstein", option, True, f"false with loss={loss}: they are of bures_wasserstein")
    takes = f"false with dynamics={motion}: they are of {', '.join(FLOWS)}"
    check(motion in FLOWS, option, True, takes)
    chosen = dict(config.dynamics.options)
    for part, plain in (("optimizer", "descent"), ("schedule", "constant")):
        name = chosen[part].name if part in chosen else plain
        check(name == plain, option, True, f"false with dynamics/{part}={name}: they are of {plain}")


def certified(
    config: Config, eigenvalues: np.ndarray, depth: float, rank: int, records: dict[str, Any]
) -> dict[str, Any]:
    """The variables of a result that say so: bound, verdict and failing hypothesis by certificate.

    `records` are variables of the result, with their dimensions; the first record is the start.
    """
    losses, times = (records[name][1] for name in ("loss", "time"))
    _, imbalances = records.get("imbalance", (None, np.zeros((len(losses), 1, 1))))
    squares = records["singular_values"][1][:, 0] ** (2 / depth)
    # Of balanced layers, which are the smallest of their product: others look worse than they are.
    sizes = depth * np.sum(squares, axis=1)
    tau = float(config.loss.option("tau", 0.0))
    bounds, verdicts, failing = [], [], []
    for lane in range(len(losses)):
        start = start_at(
            eigenvalues,
            float(losses[lane, 0]),
            depth=depth,
            tau=tau,
            loss="bures_wasserstein",
            rank=rank,
            imbalance=float(np.max(imbalances[lane, 0], initial=0) / sizes[lane]) if sizes[lane] else 0.0,
        )
        promised = [make(start) for make in _makers(config)]
        bounds.append([_bound(each, times[lane]) for each in promised])
        verdicts.append([_verdict(each, times[lane], losses[lane]) for each in promised])
        failing.append([each.failing for each in promised])
    names = [each.name for each in promised]
    return {
        "certificate": ("certificate", np.array(names, dtype=object)),
        "certificate_bound": (("seed", "certificate", "record"), np.array(bounds)),
        "certificate_verdict": (("seed", "certificate"), np.array(verdicts, dtype=object)),
        "certificate_failing": (("seed", "certificate"), np.array(failing, dtype=object)),
    }


def _makers(config: Config) -> list[Callable[[Start], Certificate]]:
    """What can be promised of the dynamics of a configuration."""
    if FLOWS[config.dynamics.name]:
        return list(certificates.FLOW.values())
    step_size = float(dict(config.dynamics.options)["step_size"])
    return [lambda start: certificates.paper_descent(start, step_size)]


def _bound(certificate: Certificate, times: np.ndarray) -> np.ndarray:
    return certificate.bound(times) if certificate.holds else np.full(times.shape, np.nan)


def _verdict(certificate: Certificate, times: np.ndarray, losses: np.ndarray) -> str:
    if not certificate.holds:
        return "not entitled"
    return "obeyed" if certificates.obeyed(certificate, times, losses) else "violated"
