"""Strict settings for every test: float64, no silent rank promotion, warnings are errors."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import settings

from bwdln import compilation, figures, losses, simulate
from experiments import train

# Programs that many tests share are compiled once, in processes of their own, too, and not kept for longer.
if compilation.VARIABLE not in os.environ:
    os.environ[compilation.VARIABLE] = tempfile.mkdtemp(prefix="bwdln-programs-")
    atexit.register(shutil.rmtree, os.environ[compilation.VARIABLE], ignore_errors=True)
simulate.set_up_process()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples compile programs now and then, so no deadline; derandomized, so that a failure is one
# that the code earned and that everybody can repeat.
settings.register_profile("bwdln", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("bwdln")


def pytest_addoption(parser):
    parser.addoption(
        "--kernel", choices=["exact", "tracked", "products"], help="in place of loss.kernel=auto"
    )


@pytest.fixture(autouse=True, scope="session")
def kernel(request):
    """Every test holds for every kernel: `pytest --kernel=products`."""
    if chosen := request.config.getoption("kernel"):
        losses.automatic_kernel = lambda: chosen


#: Mapped regions of a process, of which Linux allows 65,530: every compiled program takes several.
MOST_MAPS = 20_000


@pytest.fixture(autouse=True)
def few_programs():
    """Drop compiled programs before there are so many that compiling another one would crash."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def own_logging(monkeypatch):
    """What Hydra does to logging, undone in the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Hydra sets logging up anew, which closes every handler: keep pytest's and absl's out of it.
    monkeypatch.setattr(logging, "_handlerList", [])
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, own_logging):
    """The command line, run here in an empty folder: gives exit status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "save_all", lambda result, folder: [folder / "gap.pdf", folder / "gap.png"])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            train.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run
