"""Compiled programs are kept in a folder, so that a later process need not compile them again.

It is JAX's persistent cache, under the folder that the system has for caches of the user. Where JAX is told
by its own options where to keep them, or not to, that holds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import sys
import warnings
from pathlib import Path

import jax

from bwdln.errors import check

log = logging.getLogger(__name__)

#: The variable that says where: `auto`, `never`, or a folder. Processes that are started inherit it.
VARIABLE = "BWDLN_PROGRAMS"
#: The programs of one kind of machine take so many bytes at most; then the oldest go, to half of it.
MOST_BYTES = 2**30


def choose(programs: str) -> None:
    """Keep programs of this process and of those it starts in a folder, or `never`; `auto`: as it is.

    Raises `InvalidOption` for an empty text.
    """
    check(programs.strip() != "", "programs", repr(programs), "auto, never or a folder")
    if programs != "auto":
        os.environ[VARIABLE] = (
            programs if programs == "never" else os.path.abspath(os.path.expanduser(programs))
        )


@functools.cache
def keep_programs() -> None:
    """Let JAX keep what it compiles from now on; a folder that cannot be written to is none."""
    chosen = os.environ.get(VARIABLE) or "auto"
    known = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen == "never" or known or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return
    folder = (_user_cache() if chosen == "auto" else Path(chosen).expanduser()) / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder)
    except OSError as error:
        log.info("compiled programs are not kept: %s", error)
        return
    # A program whose file is damaged, by a full disk or a kill, is compiled again, as if there were none.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _user_cache() -> Path:
    """`bwdln/programs` in the folder for caches of this user."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "bwdln" / "programs"


@functools.cache
def _machine() -> str:
    """A name of this kind of machine: a program for one CPU may not run on another, and homes are shared."""
    flags = ""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def _prune(folder: Path) -> None:
    """Remove the oldest files of a folder that has become too large."""
    files = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.iterdir())
    left = sum(size for _, size, _ in files)
    enough = left if left <= MOST_BYTES else MOST_BYTES // 2
    for _, size, file in files:
        if left <= enough:
            break
        file.unlink(missing_ok=True)
        left -= size
