"""What a sweep has computed, by content: results, and checkpoints of the batches in progress.

A result is stored under a digest of its configuration, of the files it reads and of the code that
computes it. Files get their names only when they are whole; a process may be killed at any moment.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import textwrap
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

import bwdln
from bwdln import results
from bwdln.config import Config
from bwdln.dynamics.base import DYNAMICS
from bwdln.errors import InvalidOption, check
from bwdln.initializations import STARTS
from bwdln.losses import LOSSES
from bwdln.registry import Choice, load_plugins
from bwdln.results import Result
from bwdln.targets import TARGETS

log = logging.getLogger(__name__)

#: Parts of the package that decide no number of a result.
NOT_NUMERICS = (
    *("analysis", "batching", "collection", "comparison", "compilation", "engines", "errors", "figures"),
    *("interruption", "launcher", "report", "results", "store", "studies", "sweep", "types"),
)
#: The choices of a configuration, and where their functions are.
REGISTRIES = {"target": TARGETS, "initialization": STARTS, "loss": LOSSES, "dynamics": DYNAMICS}
#: Packages whose version is part of what computes a result.
PACKAGES = ("jax", "jaxlib", "optax", "numpy")

#: What reading a damaged file of arrays raises.
UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
#: Modules of the user's by name: the specification each was loaded by, and the digest of its code.
_loaded: dict[str, tuple[Any, str]] = {}


# --- keys -----------------------------------------------------------------------------------------


def key(config: Config) -> str:
    """A digest of all that decides the numbers of a result, in hexadecimal.

    That is the configuration, the files that its choices name as `path`, the code of the package, of plugins
    and of other modules whose functions it chooses; not what these import in turn.

    Raises `InvalidOption` for a plugin that cannot be imported, and for a choice with options that it does
    not take.
    """
    load_plugins(config.plugins)
    content = config.mapping()
    chosen = {group: (registry, getattr(config, group)) for group, registry in REGISTRIES.items()}
    content |= {group: registry.resolved(choice).mapping() for group, (registry, choice) in chosen.items()}
    functions = [registry[choice.name] for registry, choice in chosen.values()]
    content["plugins"] = [
        *map(_code_of_module, config.plugins),
        *(_code_of_function(each) for each in functions if not _is_numerics(each.__module__)),
    ]
    paths = _paths(tuple(choice for _, choice in chosen.values()))
    content["files"] = {path: _digest_of_file(path) for path in sorted(paths)}
    content["numerics"] = numerics()
    return _digest(json.dumps(_alike(content), sort_keys=True))


@functools.cache
def numerics() -> str:
    """A digest of the code that decides the numbers; comments and docstrings do not count."""
    root = Path(bwdln.__file__).parent
    modules = {
        str(path.relative_to(root)): code(path.read_text(encoding="utf-8"))
        for path in root.rglob("*.py")
        if path.relative_to(root).with_suffix("").parts[0] not in NOT_NUMERICS
    }
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return _digest(json.dumps([modules, versions], sort_keys=True))


def code(source: str) -> str:
    """What a module does, as text: without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    return ast.dump(tree)


def _alike(value: Any) -> Any:
    """With every number that is whole as an integer: 1 and 1.0 are the same number."""
    if isinstance(value, dict):
        return {name: _alike(each) for name, each in value.items()}
    if isinstance(value, list):
        return list(map(_alike, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_numerics(module: str) -> bool:
    """Whether `numerics` covers a module."""
    package, _, rest = module.partition(".")
    return package == bwdln.__name__ and rest.partition(".")[0] not in NOT_NUMERICS


def _code_of_module(name: str) -> str:
    """A digest of a module of the user's as it was loaded, or of all modules of a package."""
    module = sys.modules[name]
    known = _loaded.get(name)
    # Once for each time that it was loaded: what is edited later does not run.
    if known is None or known[0] is not module.__spec__:
        folders = [Path(each) for each in getattr(module, "__path__", ())]
        file = getattr(module, "__file__", None)
        files = sorted(path for folder in folders for path in folder.rglob("*.py")) or [Path(file or name)]
        known = _loaded[name] = (module.__spec__, _digest("\n".join(map(_read_code, files))))
    return known[1]


def _read_code(path: Path) -> str:
    """What a file of code does, or its digest where it is not in Python."""
    return code(path.read_text(encoding="utf-8")) if path.suffix == ".py" else str(_digest_of_file(str(path)))


def _code_of_function(function: Callable[..., Any]) -> str:
    """A digest of the module that defines a function, or of the function alone where it was typed in."""
    if getattr(sys.modules.get(function.__module__), "__file__", None) is not None:
        return _code_of_module(function.__module__)
    try:
        return _digest(code(textwrap.dedent(inspect.getsource(function))))
    except OSError:
        return function.__qualname__


def _paths(value: Any) -> Iterator[str]:
    """The files that choices, and choices within them, name as their `path`."""
    if isinstance(value, tuple):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, Choice):
        for name, option in value.options:
            yield from [str(option)] if name == "path" else _paths(option)


def _digest_of_file(path: str) -> str | None:
    """Of its content, read once for each state of the file; None where there is none that can be read."""
    try:
        state = os.stat(os.path.expanduser(path))
        return _read_digest(os.path.expanduser(path), state.st_ino, state.st_mtime_ns, state.st_size)
    except OSError:
        return None


@functools.lru_cache(maxsize=1024)
def _read_digest(path: str, *_state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# --- the store ------------------------------------------------------------------------------------


class Store:
    """Results and checkpoints in a folder of the sweep. One sweep at a time writes there; see `lock`.

    Whatever writes raises `InvalidOption` where the folder cannot be written or is full.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other sweeps out; a lock goes with the process that holds it, however that ends.

        Raises `InvalidOption` if another process holds it.
        """
        results.writable(self.folder)
        with results.writing(self.folder):
            file = open(self.folder / "lock", "a+b", buffering=0)  # noqa: SIM115
        with file:
            with results.writing(self.folder):
                if not _locked(file):
                    takes = f"a folder where no sweep runs; there is {self.holder()}: wait, or choose another"
                    raise InvalidOption("hydra.sweep.dir", self.folder.parent, takes)
                file.truncate(0)
                own = f"process {os.getpid()} on {socket.gethostname()}, {shlex.join(sys.orig_argv)}"
                file.write(own.encode(errors="replace"))
                self._tidy()
            yield

    def holder(self) -> str | None:
        """The process that holds the lock, as it describes itself; None where none does."""
        try:
            with open(self.folder / "lock", "rb", buffering=0) as file:
                # Shared: over NFS a file that is open for reading cannot be locked otherwise.
                if _locked(file, fcntl.LOCK_SH):
                    return None
                return " ".join(file.read().decode(errors="replace").split())
        except OSError:
            return None

    def _tidy(self) -> None:
        """Remove what processes left that were killed while they wrote, unless some may be writing."""
        if any(self.folder.glob("tasks/*.alive.json")):
            return
        for pattern in (".*.nc", ".*.json", ".writable-*", "checkpoints/.*.npz", "checkpoints/.writable-*"):
            for left in self.folder.glob(pattern):
                left.unlink(missing_ok=True)

    def has(self, key: str) -> bool:
        """Whether there is a result."""
        return self._result(key).is_file()

    def keys(self) -> list[str]:
        """Of all results."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.nc"))

    def result(self, key: str) -> Result | None:
        """The result; None where there is none. A file that is damaged, or not of that key, is set aside."""
        path = self._result(key)
        if not path.is_file():
            return None
        try:
            result = results.read(path)
            check(result.dataset.attrs.pop("key", None) == key, "path", path, "the result of its name")
        except InvalidOption as error:
            self._set_aside(path, error)
            return None
        return result

    def keep(self, key: str, result: Result, *, replace: bool = False) -> Path:
        """Store a result, at once or not at all; one that is there stays, unless it is to be replaced.

        The attribute `key` of the file says what it is the result of.
        """
        path = self._result(key)
        if replace or not path.exists():
            results.write_dataset(result.dataset.assign_attrs(key=key), path)
        return path

    def drop(self, key: str) -> None:
        """Remove a result that is stored, if it is; what was published stays."""
        self._drop([self._result(key)])

    def publish(self, key: str, folder: Path) -> Path:
        """Show a stored result as `result.nc` in a folder, in place of another one of this store.

        It is the same file under a second name, or a copy where the file system has no such thing.
        Raises `InvalidOption` for a folder that holds a file of another origin.
        """
        source, path = self._result(key), folder / "result.nc"
        if path.exists():
            if path.samefile(source):
                return path
            takes = "a folder whose result.nc this sweep wrote; another file has that name: move it away"
            check(self._is_ours(path), "hydra.sweep.dir", folder, takes)
        results.writable(folder)
        temporary = folder / ".result.nc"  # one name: what a killed process leaves goes with the next call
        try:
            with results.writing(folder):
                temporary.unlink(missing_ok=True)
                _link_or_copy(source, temporary)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _is_ours(self, path: Path) -> bool:
        """Whether a file is a result of this store, be it an earlier one, or one that was set aside."""
        if any(path.samefile(each) for each in self.folder.glob("*.damaged")):
            return True
        try:
            return self.has(str(results.read(path).dataset.attrs.get("key")))
        except InvalidOption:
            return False

    # --- checkpoints ---

    def save_checkpoint(self, keys: Sequence[str], arrays: Mapping[str, np.ndarray], part: str = "") -> None:
        """Save how far the batch of the results of those keys is, in place of what was saved of it before.

        `part`: of which of several processes it is, that share the batch.
        """
        path = self._checkpoint(keys, part)
        results.writable(path.parent)
        temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npz")
        try:
            with results.writing(path.parent):
                with temporary.open("wb") as file:
                    named: dict[str, Any] = {f"state_{name}": each for name, each in arrays.items()}
                    named |= {"keys": np.array(list(keys)), "names": np.array(list(arrays), str)}
                    np.savez(file, **named)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def checkpoints(self) -> list[tuple[str, ...]]:
        """The keys of every batch that has a checkpoint which can be read."""
        found = []
        for path in sorted(self.folder.glob("checkpoints/[!.]*.npz")):
            with contextlib.suppress(*UNREADABLE), _opened(path) as file:
                found.append(tuple(map(str, file["keys"])))
        return found

    def checkpoint(self, keys: Sequence[str], part: str = "") -> dict[str, np.ndarray] | None:
        """What was saved of a batch, if anything was. A damaged file is set aside."""
        path = self._checkpoint(keys, part)
        if not path.is_file():
            return None
        try:
            _check_sums(path)
            with _opened(path) as file:
                same = list(map(str, file["keys"])) == list(keys)
                check(same, "path", path, "the checkpoint of its name")
                return {str(name): file[f"state_{name}"] for name in file["names"]}
        except UNREADABLE as error:
            self._set_aside(path, error)
            return None

    def drop_checkpoint(self, keys: Sequence[str]) -> None:
        """Remove what was saved of a batch, if anything was."""
        self._drop(self._saved(keys))

    def drop_older(self, keys: Sequence[str], moment: float) -> None:
        """Remove the results of those keys, and what was saved of their batches, from before a moment.

        `moment`: a time that a file was changed, in seconds since the epoch. What was published stays.
        """
        batches = [batch for batch in self.checkpoints() if set(batch) <= set(keys)]
        saved = [
            path for batch in batches for path in self.folder.glob(f"checkpoints/{_name_of(batch)}*.npz")
        ]
        found = [path for path in map(self._result, keys) if path.is_file()]
        self._drop(path for path in [*found, *saved] if path.stat().st_mtime < moment)

    def _saved(self, keys: Sequence[str]) -> list[Path]:
        """The checkpoints of a batch: one, or one of each process that shares it."""
        return list(self.folder.glob(f"checkpoints/{_name_of(keys)}*.npz"))

    def _drop(self, paths: Iterable[Path]) -> None:
        with results.writing(self.folder):
            for path in paths:
                path.unlink(missing_ok=True)

    def _result(self, key: str) -> Path:
        return self.folder / f"{key}.nc"

    def _checkpoint(self, keys: Sequence[str], part: str = "") -> Path:
        behind = f"-{part.replace(' ', '-')}" if part else ""
        return self.folder / "checkpoints" / f"{_name_of(keys)}{behind}.npz"

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Rename a file that cannot be read, so that what it should hold is computed again."""
        with results.writing(path.parent):
            path.replace(path.with_name(f"{path.name}.damaged"))
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning("%s is computed again; the file is kept as %s.damaged (%s)", path, path.name, reason)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[NpzFile]:
    """The arrays of an `.npz` file; it is closed even where NumPy cannot make sense of it."""
    with path.open("rb") as stream, NpzFile(stream, allow_pickle=False) as file:
        yield file


def _check_sums(path: Path) -> None:
    """Compare every checksum; NumPy does not where a damaged shape makes it read less."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def _locked(file: FileIO, how: int = fcntl.LOCK_EX) -> bool:
    """Lock a file, unless another process holds it."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _name_of(keys: Sequence[str]) -> str:
    """Of a batch, from the keys of its pieces."""
    return _digest(" ".join(keys))


def _link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such thing."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
