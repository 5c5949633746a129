"""Strict settings for every test: float64, no silent rank promotion, warnings are errors."""

from pathlib import Path

import jax
import pytest
from hypothesis import settings

from bwdln import simulate

simulate.set_up_process()
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples compile programs now and then, so no deadline; derandomized, so that a failure is one
# that the code earned and that everybody can repeat.
settings.register_profile("bwdln", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("bwdln")


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """Programs that many tests share are compiled once in the session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


#: Mapped regions of a process, of which Linux allows 65,530: every compiled program takes several.
MOST_MAPS = 20_000


@pytest.fixture(autouse=True)
def few_programs():
    """Drop compiled programs before there are so many that compiling another one would crash."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
