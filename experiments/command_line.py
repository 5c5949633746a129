"""The one wrapper of hydra.main: what every command line of this project does alike.

It composes the configuration from configs/ and says every error of its user in one line on standard
error, with exit status 1; nothing is written then but the log. An error that is not the user's still
shows its traceback, and HYDRA_FULL_ERROR=1 shows every one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bwdln.batching import BatchTask, Detached, Refused, expose_plugin
from bwdln.config import Landscape, Training, from_mapping
from bwdln.errors import InvalidOption, check
from bwdln.registry import Choice, load_plugins
from experiments import explain
from experiments.explain import CONFIGS

expose_plugin()

log = logging.getLogger(__name__)

#: What Hydra writes into its subfolder of a run to describe it.
DESCRIPTION = ("config.yaml", "hydra.yaml", "overrides.yaml")
#: What a command leaves in its folder, or a study in the folders of its runs, that another must not replace.
RESULTS = ("result.nc", "*/result.nc", "critical_points.csv")
#: The exit status of an interrupted run: 128 + the number of the signal.
INTERRUPTED = 130


#: Options that change nothing in a result.
NOT_OF_THE_RESULT = ("sweep", "figures", "report", "objective", "programs")
#: Holds the name of the folder of a sweep, once it is known, for the jobs that it starts.
SWEEP_FOLDER = "BWDLN_SWEEP_FOLDER"

#: What a command is configured by.
Job = TypeVar("Job", Training, Landscape)


class Sweeps(BatchTask, Protocol):
    """A batch task that has something to say in the end."""

    def conclude(self) -> None:
        """Say what came of the sweep, and write what belongs to all of it."""

    def interrupted(self) -> str:
        """Say what came of a sweep that Ctrl-C ended."""

    def detached(self, what: str) -> str:
        """Say what came of a sweep of which that much goes on without it."""


def application(
    function: Callable[[Job, Path], Any],
    config_name: str,
    read: Callable[[Mapping[str, Any]], Job],
    sweeps: Callable[[bool], Sweeps] | None = None,
) -> Callable[[], None]:
    """The command line around `function(job, folder)`, to be called without arguments.

    `job` is what `read` makes of the options composed from `config_name` in configs/; `folder` is the
    folder of the run. What the function returns is what a sweeper optimizes. `sweeps` makes what runs
    the jobs of a sweep together; it is told whether errors show their traceback.
    """

    def main() -> None:
        full = os.environ.get("HYDRA_FULL_ERROR") == "1"
        batches = sweeps(full) if sweeps is not None else None

        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            return _run_job(function, config, read, full)

        if batches is not None:
            job.plan, job.batch = batches.plan, batches.batch  # type: ignore[attr-defined]
        try:
            explain.check_flags()
            os.environ.pop(SWEEP_FOLDER, None)
            decorate = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
            refused = False
            try:
                with env_override({"HYDRA_FULL_ERROR": "1"}):  # Hydra then raises errors and prints none
                    decorate(job)()
            except Refused:
                refused = True
            if batches is not None:
                batches.conclude()
            if refused:
                sys.exit(1)
        except Detached as detached:
            assert batches is not None
            _say(batches.detached(str(detached)))
        except KeyboardInterrupt:
            _say("interrupted" if batches is None else batches.interrupted())
            _leave(INTERRUPTED)
        except Exception as error:
            if full or _raised_in_job(error):
                raise
            _say(explain.before_job(error, config_name))
            sys.exit(1)

    return main


def _run_job(
    function: Callable[[Job, Path], Any],
    config: DictConfig,
    read: Callable[[Mapping[str, Any]], Job],
    full: bool,
) -> Any:
    """Run one job that Hydra has composed; an invalid option ends it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        option = "hydra.sweep.dir" if is_sweep() else "hydra.run.dir"
        check(not holds_result(folder), option, folder, "a folder without a result; this one has one")
        return function(read(plain(config)), folder)
    except InvalidOption as error:
        if full:
            raise
        _remove_description(folder)
        if is_sweep():
            refuse(HydraConfig.get().job.num, error)
        log.info("refused: %s", explain.one_line(error))
        _say(explain.one_line(error))
        raise SystemExit(1) from None


def refuse(job: int, error: Exception) -> NoReturn:
    """End a job of a sweep in one line, by an exception that Hydra notes to go on with the other jobs."""
    log.info("refused: %s", error, exc_info=None if isinstance(error, InvalidOption) else error)
    _say(f"job {job}: {said(error)}")
    raise Refused(said(error)) from None


def said(error: Exception) -> str:
    """An error of one job in one line."""
    return explain.of_job(error)


def _raised_in_job(error: Exception) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code is _run_job.__code__ for frame, _ in frames)


def _leave(status: int) -> NoReturn:
    """End the process at once: JAX may be compiling, and would crash in an interpreter that ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


# --- the configuration ----------------------------------------------------------------------------


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as nested mappings, all interpolations resolved.

    Raises `InvalidOption` for a value that is missing or cannot be resolved.
    """
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise explain.unresolved(error) from error


#: Options of a loss that another loss need not have, while they are as here.
NEUTRAL = {"tau": 0, "kernel": "auto"}


def training(options: Mapping[str, Any]) -> Training:
    """The `Training` of composed options; its plugins are imported. Raises `InvalidOption`."""
    given = Training.of(options)
    return dataclasses.replace(given, config=_set_up(given.config, given.output.programs))


def landscape(options: Mapping[str, Any]) -> Landscape:
    """The `Landscape` of composed options; its plugins are imported. Raises `InvalidOption`."""
    given = from_mapping(options, Landscape)
    return _set_up(given, given.programs)


def _set_up(config: Any, programs: str) -> Any:
    """Say where programs are kept, import plugins, and drop what a loss takes for granted (`NEUTRAL`).

    All losses have `tau` in configs/, so that a sweep over losses can sweep over it, too; and options of the
    default loss stay where another one is chosen by its name.
    """
    import jax  # late, so that --help is quick

    from bwdln import compilation
    from bwdln.losses import LOSSES

    compilation.choose(programs)
    jax.config.update("jax_enable_x64", True)  # before a plugin makes its first array
    load_plugins(config.plugins)
    taken = LOSSES.options(config.loss.name)
    for option, value in config.loss.options:
        if option in NEUTRAL and option not in taken:
            takes = f"only {NEUTRAL[option]} with {config.loss.name}: it has no {option}"
            check(value == NEUTRAL[option], f"loss.{option}", value, takes)
    used = tuple(pair for pair in config.loss.options if pair[0] in taken or pair[0] not in NEUTRAL)
    return dataclasses.replace(config, loss=Choice(config.loss.name, used))


# --- the folder of the run ------------------------------------------------------------------------


def is_sweep() -> bool:
    """Whether this process runs jobs of a sweep (-m)."""
    return HydraConfig.initialized() and bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def holds_result(folder: Path) -> bool:
    """Whether a command wrote there."""
    return any(any(folder.glob(name)) for name in RESULTS)


def _output_subdir() -> str | None:
    """Where Hydra describes a run: nowhere in the folder that already holds another's result.

    A job that a sweep runs with others may be described again: its result is that of its description.
    """
    with suppress(MissingMandatoryValue):  # there is no folder when only the configuration is shown
        together = is_sweep() and HydraConfig.get().runtime.choices.get("hydra/launcher") == "batched"
        if not together and holds_result(Path(HydraConfig.get().runtime.output_dir)):
            return None
    return ".hydra"


def _sweep_folder(*, _root_: DictConfig) -> str:
    """The name of the folder of a sweep: of its choices, and a digest of its base configuration.

    That is the configuration without what is swept over, so that a larger grid finds the results of a
    smaller one. It is asked for first for the sweep; its jobs must not give each another name.
    """
    if SWEEP_FOLDER not in os.environ:
        ours = [str(name) for name in _root_ if name not in ("hydra", *NOT_OF_THE_RESULT)]
        options = OmegaConf.to_container(OmegaConf.masked_copy(_root_, ours), resolve=True)
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
        choices = _root_.hydra.runtime.choices
        named = choices.get("experiment") or f"{choices.target}-{choices.dynamics}"
        os.environ[SWEEP_FOLDER] = f"{named}-{digest[:8]}"
    return os.environ[SWEEP_FOLDER]


OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)
OmegaConf.register_new_resolver("free_output_subdir", _output_subdir, replace=True)


def _remove_description(folder: Path) -> None:
    """Remove what Hydra wrote to describe a run that then was refused."""
    subfolder = HydraConfig.get().output_subdir
    if subfolder is not None:
        for name in DESCRIPTION:
            (folder / subfolder / name).unlink(missing_ok=True)
        with suppress(OSError):  # what else is there stays
            (folder / subfolder).rmdir()
