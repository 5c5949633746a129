"""One program over many processes: each advances its share of the lanes on its own devices.

Lanes need nothing of each other, so processes meet only where a batch begins and where it ends: what runs is
told by the first process, and what came of it is gathered. In a single process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bwdln.errors import InvalidOption, check

log = logging.getLogger(__name__)

#: Bytes of a process that are gathered at a time.
AT_A_TIME = 2**26
#: Seconds to wait for the other processes at the start.
PATIENCE = 300
#: Seconds that processes on CPUs wait for each other where a batch ends: XLA's half an hour is too short.
LONGEST_WAIT = 10 * 24 * 3600
#: Seconds from the last word of the first process to the end of its service.
LAST_WORDS = 1.0

Tree = TypeVar("Tree")


class Separated(RuntimeError):
    """The processes of the program have lost each other; nothing more can be done together."""


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: int = PATIENCE,
) -> None:
    """Join the other processes of the program, before anything else is asked of JAX.

    Without arguments Slurm, or another cluster that JAX knows, tells them. Raises `InvalidOption` where none
    does, and where the first one does not come within `patience` seconds; where another one does not, JAX
    aborts the first.
    """
    wait, flags = "--xla_cpu_collective_timeout_seconds", os.environ.get("XLA_FLAGS", "")
    if wait not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {wait}={LONGEST_WAIT}".strip()
    if process_id:
        takes = f"the address of the first process, where something listens within {patience} s"
        listening = listens(str(coordinator_address), patience)
        check(listening, "sweep.distributed.coordinator_address", coordinator_address, takes)
    elif process_id == 0 and (num_processes or 1) > 1:
        log.warning("waiting for %d other processes, for %d s at most", (num_processes or 1) - 1, patience)
    # It would take SIGTERM for itself, by which a task is told to save what it has.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address, num_processes, process_id, initialization_timeout=patience
        )
    except ValueError as error:
        takes = f"the address of the first process, inside of Slurm nothing ({_line(error)})"
        got = coordinator_address or "null"
        raise InvalidOption("sweep.distributed.coordinator_address", got, takes) from error
    except RuntimeError as error:
        got = f"{num_processes} of them, process {process_id} at {coordinator_address}"
        takes = f"as many processes as are started within {patience} s ({_line(error)})"
        raise InvalidOption("sweep.distributed.num_processes", got, takes) from error

    log.info("this is process %s", part())


def listens(address: str, patience: float = 5.0) -> bool:
    """Whether something accepts connections at HOST:PORT within some seconds."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return True
        except (OSError, OverflowError, ValueError):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)


def part_company() -> None:
    """Leave the other processes, once all are ready to: whoever goes unannounced takes them down."""
    if not processes_joined():
        return
    # The service through which they find each other, in the first of them, crashes now and then where it ends
    # while it still answers them. JAX has no public way to let it end a moment later.
    state: Any = getattr(sys.modules.get("jax._src.distributed"), "global_state", None)
    service = getattr(state, "service", None)
    if service is not None:
        state.service = None
    jax.distributed.shutdown()
    if service is not None:
        time.sleep(LAST_WORDS)
        service.shutdown()


def processes_joined() -> bool:
    """Whether this process was joined with others already."""
    return bool(jax.distributed.is_initialized())


def processes() -> int:
    """How many processes share the program."""
    return int(jax.process_count())


def is_first() -> bool:
    """Whether this process is the one that decides and writes."""
    return bool(jax.process_index() == 0)


def part() -> str:
    """Which of the processes this is, as `1 of 2`; nothing where it is alone."""
    return f"{jax.process_index() + 1} of {processes()}" if processes() > 1 else ""


def share(count: int) -> np.ndarray:
    """The lanes of this process, of so many; as many in each: the last lane may be in several."""
    size = -(-count // processes())
    return np.minimum(jax.process_index() * size + np.arange(size), count - 1)


def own(every: Tree, count: int) -> Tree:
    """Of arrays of all lanes, along the first axis, those of the `share` of this process."""
    if processes() == 1:
        return every
    lanes = share(count)
    chosen: Tree = jax.tree.map(lambda leaf: leaf[lanes], every)
    return chosen


def gathered(part: Tree, count: int) -> Tree:
    """Arrays of all `count` lanes, along the first axis, from those of the `share` of each process."""
    if processes() == 1:
        return part
    leaves, structure = jax.tree.flatten(part)
    arrays = [np.ascontiguousarray(leaf) for leaf in leaves]
    # As bytes: one program for all of them, and no device changes their precision.
    everyone = _bytes_of_all(np.concatenate([each.reshape(-1).view(np.uint8) for each in arrays]))
    whole, taken = [], 0
    for array in arrays:
        stretch = np.ascontiguousarray(everyone[:, taken : taken + array.nbytes])
        taken += array.nbytes
        lanes = stretch.reshape(-1).view(array.dtype).reshape(-1, *array.shape[1:])
        whole.append(lanes[:count])
    gathered_tree: Tree = jax.tree.unflatten(structure, whole)
    return gathered_tree


def told(text: str) -> str:
    """What the first process says, in every process; it waits for all of them."""
    said = np.frombuffer(text.encode() if is_first() else b"", np.uint8)
    padded = np.zeros(int(_of_all(np.array([said.size]))[0, 0]), np.uint8)
    padded[: said.size] = said
    return _bytes_of_all(padded)[0].tobytes().decode()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What every process does its part of: what is raised in one of them is raised in all.

    In the others it is a `RuntimeError` with the words of the first that failed, or `KeyboardInterrupt`.
    """
    raised: BaseException | None = None
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        raised = error
    if processes() > 1:
        _raise_of_others(raised)
    if raised is not None:
        raise raised


def _raise_of_others(raised: BaseException | None) -> None:
    """Raise what another process raised, unless this one did."""
    interrupted = isinstance(raised, KeyboardInterrupt)
    failed = raised is not None and not interrupted
    text = f"{type(raised).__name__}: {_line(raised)}".encode()[:1000] if raised and failed else b""
    said = np.zeros(1001, np.uint8)
    said[0], said[1 : 1 + len(text)] = interrupted, np.frombuffer(text, np.uint8)
    everyone = _bytes_of_all(said)
    if raised is not None:
        return
    for number, each in enumerate(everyone):
        reason = each[1:].tobytes().rstrip(b"\0").decode(errors="replace")
        if reason:
            raise RuntimeError(f"process {number} of {processes()} failed: {reason}")
    if everyone[:, 0].any():
        raise KeyboardInterrupt


def _bytes_of_all(part: np.ndarray) -> np.ndarray:
    """The bytes of every process, shape (processes, bytes)."""
    begins = range(0, max(1, part.size), AT_A_TIME)
    return np.concatenate([_of_all(part[begin : begin + AT_A_TIME]) for begin in begins], axis=1)


def _of_all(part: np.ndarray) -> np.ndarray:
    """An array of every process, behind a new first axis. Raises `Separated` where one is gone."""
    try:
        return np.asarray(multihost_utils.process_allgather(part)).reshape(processes(), *part.shape)
    except (RuntimeError, ValueError) as error:  # JAX makes either of what Gloo says
        raise Separated(f"another process is gone: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
