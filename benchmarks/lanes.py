"""Many lanes on whatever devices there are: lanes per second, and memory.

Usage: python benchmarks/lanes.py [--lanes N] [--dimension 20] [--devices D] [--repeats 3]
           [--precision float64]

Depth 3: 1,000 steps of gradient descent, and the end-to-end flow to time 20; ten records. By
default 100,000 lanes on an accelerator, 2,000 on a CPU, whose lanes go one after the other. The first run
compiles and is told apart; then the median of the repeats.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from bwdln import sweep  # noqa: E402
from bwdln.config import Config, Sweep, from_mapping  # noqa: E402

DYNAMICS = {
    "gradient descent": {"name": "gradient_descent", "step_size": 0.01, "steps": 1000},
    "end-to-end flow": {"name": "end_to_end_flow", "end_time": 20.0},
}


def config(dynamics: dict[str, object], lanes: int, dimension: int, precision: str) -> Config:
    return from_mapping(
        {
            "target": {"name": "zipf", "dimension": dimension},
            "network": {"depth": 3},
            "initialization": {"name": "xavier_normal", "balanced": True},
            "loss": {"name": "bures_wasserstein", "tau": 0.01},
            "dynamics": dynamics,
            "record": {"count": 10},
            "seeds": lanes,
            "precision": precision,
        },
        Config,
    )


def memory() -> str:
    """The most that was used: of the devices, where they tell, and of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] / 1e9 for each in stats if "peak_bytes_in_use" in each]
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{max(peaks):.2f} GB on a device, {host:.2f} GB on the host" if peaks else f"{host:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--dimension", type=int, default=20)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", default="float64")
    given = parser.parse_args()
    lanes = given.lanes or (2_000 if jax.default_backend() == "cpu" else 100_000)
    options = Sweep(devices=given.devices)
    for name, dynamics in DYNAMICS.items():
        seconds = []
        for _ in range(given.repeats + 1):
            began = time.perf_counter()
            planned = sweep.plan({0: config(dynamics, lanes, given.dimension, given.precision)}, options)
            (done,) = sweep.execute(planned, options)
            if isinstance(done.outcome, Exception):
                raise done.outcome
            seconds.append(time.perf_counter() - began)
        first, median = seconds[0], statistics.median(seconds[1:])
        devices = f"{len(planned.devices)} x {planned.devices[0].device_kind}"
        what = f"{name}, n = {given.dimension}, {given.precision}, {devices}"
        print(
            f"{what}: {lanes:,} lanes in {len(planned.batches)} batches, "
            f"{median:.1f} s (the first {first:.1f} s), {lanes / median:,.0f} lanes a second; {memory()}"
        )


if __name__ == "__main__":
    main()
