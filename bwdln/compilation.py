"""Compiled programs are kept in a folder, so that a later process need not compile them again.

It is JAX's persistent cache, under the folder that the system has for caches of the user. Where JAX is told
by its own options where to keep them, or not to, that holds, unless the option or variable here says more. A
file that was damaged, by a full disk or a kill, costs the time of compiling and a warning of JAX that names
it; remove it, or the folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import sys
from pathlib import Path

import jax

from bwdln.errors import check

log = logging.getLogger(__name__)

#: The variable that says where: `auto`, `never`, or a folder. Processes that are started inherit it.
VARIABLE = "BWDLN_PROGRAMS"
#: The programs of one kind of machine take so many bytes at most; then the oldest go, to half of it.
MOST_BYTES = 2**30


def choose(programs: str) -> None:
    """Say where programs are kept, of this process before it compiles any, and of those that it starts.

    `programs` is a folder, `never`, or `auto`: as the variable says, or else in the user's cache.

    Raises `InvalidOption` for an empty text, or a folder that cannot be written to.
    """
    takes = "auto, never or a folder that can be written to"
    check(programs.strip() != "", "programs", repr(programs), takes)
    if programs not in ("auto", "never"):
        folder = os.path.abspath(os.path.expanduser(programs))
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
        check(os.path.isdir(folder) and os.access(folder, os.W_OK), "programs", programs, takes)
        os.environ[VARIABLE] = folder
    elif programs == "never":
        os.environ[VARIABLE] = programs
    keep_programs()


def keep_programs() -> None:
    """Let JAX keep what it compiles from now on, where it is said; a folder that cannot be made is none."""
    _keep(os.environ.get(VARIABLE) or "auto")


@functools.cache
def _keep(chosen: str) -> None:
    if chosen == "never":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    known = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen == "auto" and (known or not jax.config.jax_enable_compilation_cache):  # type: ignore[attr-defined]
        return
    folder = (_user_cache() if chosen == "auto" else Path(chosen).expanduser()) / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder)
    except OSError as error:
        log.warning("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _user_cache() -> Path:
    """`bwdln/programs` in the folder for caches of this user."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "bwdln" / "programs"


def _machine() -> str:
    """A name of this kind of machine: a program for one CPU may not run on another, and homes are shared."""
    flags = ""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def _prune(folder: Path) -> None:
    """Remove the files that were written first from a folder that has become too large.

    JAX can remove those that were used least recently, but with a lock that every reading waits for.
    """
    files = []
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process removes files, too
            found = file.stat()
            files.append((found.st_mtime, found.st_size, file))
    left = sum(size for _, size, _ in files)
    enough = left if left <= MOST_BYTES else MOST_BYTES // 2
    for _, size, file in sorted(files):
        if left <= enough:
            break
        file.unlink(missing_ok=True)
        left -= size
