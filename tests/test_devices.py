"""Lanes cut over several devices: the same results, however many there are, and no waiting for ever."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

COMPARED = """
import json

import jax
import numpy as np
from problems import job

from bwdln import sweep
from bwdln.config import Sweep

DYNAMICS = (
    {"name": "gradient_descent", "step_size": 0.05, "steps": 300, "gap_tolerance": 1e-6},
    {"name": "gradient_flow", "end_time": 2.0, "gap_tolerance": 1e-6},
    {"name": "end_to_end_flow", "end_time": 2.0},
)
NAMES = ("loss", "singular_values", "final_end_to_end", "time")
assert len(jax.local_devices()) == 8
# Seven seeds and three more: a multiple of none but one device, in batches of ten and of four lanes.
configs = [
    job(
        dynamics=dynamics,
        initialization={"name": "xavier_normal", "balanced": True},
        loss={"name": "bures_wasserstein", "tau": tau},
        record={"count": 6},
        seeds=seeds,
    )
    for dynamics in DYNAMICS
    for tau, seeds in ((0.1, 7), (0.3, 3))
]
alone = sweep.run(configs, Sweep(devices=1))
found = {}
for devices in (2, 3, 8):
    for lanes in (None, 4):
        worst = 0.0
        cut = sweep.run(configs, Sweep(devices=devices, lanes_per_batch=lanes))
        for one, other in zip(alone, cut, strict=True):
            assert (one.dataset["outcome"].values == other.dataset["outcome"].values).all()
            for name in NAMES:
                left, right = one.dataset[name].values, other.dataset[name].values
                worst = max(worst, float(np.max(np.abs(left - right) / (1 + np.abs(left)))))
        found[f"{devices} devices, {lanes} lanes"] = worst
print(json.dumps(found))
"""

REPEATED = """
import jax
from problems import job

from bwdln import sweep
from bwdln.config import Sweep

assert len(jax.local_devices()) == 8
config = job(
    target={"name": "zipf", "dimension": 20},
    network={"depth": 3},
    initialization={"name": "orthogonal", "balanced": True},
    dynamics={"name": "end_to_end_flow", "end_time": 0.05},
    record={"count": 40},
    seeds=32,
)
for _ in range(12):
    sweep.run([config], Sweep())
"""


def run(script, timeout):
    """What a script prints in a process with eight CPU devices."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same():
    found = json.loads(run(COMPARED, 300))
    assert len(found) == 6
    assert all(worst <= 1e-10 for worst in found.values()), found


@pytest.mark.slow
def test_decompositions_on_many_devices_never_wait_for_each_other():
    """A batch of several matrices in LAPACK did, after minutes or at once."""
    run(REPEATED, 240)
