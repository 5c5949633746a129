"""Sizes that one machine can hold: a deep network on patches of a photograph, of dimension 4,096."""

import subprocess
import sys

import engines
import pytest

from bwdln import results

#: Runs a command, then says how much memory it held at most, in bytes.
MEASURED = """
import resource
import subprocess
import sys

subprocess.run(sys.argv[1:], check=True)
print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in other units")
def test_dimension_4096_with_a_small_bottleneck(tmp_path):
    """Twelve lanes with a start that needs the eigenvectors: each 128 MiB more if they were held for each."""
    options = (
        *("target=image_patches", "target.side=64", "network.depth=4", "network.bottleneck=64"),
        *("network.hidden_width=256", "initialization=aligned", "seeds=12"),
        *("dynamics.steps=20", "record.count=2"),
    )
    run = [sys.executable, "-m", "experiments.train", *engines.QUIET, *options, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *run], cwd=engines.ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 3 * 2**30  # most of it to make the target
    result = results.load(tmp_path)
    assert result.dataset.sizes["feature"] == 4096 and result.dataset.sizes["mode"] == 64
    gaps = result.dataset["relative_gap"].values
    assert gaps.shape == (12, 3)
    assert (gaps[:, 1:] < gaps[:, :-1]).all()
    assert (gaps[:, -1] > 0).all()
