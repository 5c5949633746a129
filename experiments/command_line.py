"""The one wrapper of hydra.main: what every command line of this project does alike.

It composes the configuration from configs/ and says every error of its user in one line on standard
error, with exit status 1; nothing is written then but the log. An error that is not the user's still
shows its traceback, and HYDRA_FULL_ERROR=1 shows every one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bwdln.config import Config, Landscape, from_mapping
from bwdln.errors import InvalidOption, check
from bwdln.registry import Choice, load_plugins
from experiments import explain
from experiments.explain import CONFIGS

log = logging.getLogger(__name__)

#: What Hydra writes into its subfolder of a run to describe it.
DESCRIPTION = ("config.yaml", "hydra.yaml", "overrides.yaml")
#: What a command leaves in its folder, or a study in the folders of its runs, that another must not replace.
RESULTS = ("result.nc", "*/result.nc", "critical_points.csv")
#: The exit status of an interrupted run: 128 + the number of the signal.
INTERRUPTED = 130


#: What a command is configured by.
Job = TypeVar("Job", Config, Landscape)


class Refused(Exception):
    """A job of a sweep was refused, and its line already said."""


def application(
    function: Callable[[Job, Path], Any], config_name: str = "config", kind: type[Any] = Config
) -> Callable[[], None]:
    """The command line around `function(config, folder)`, to be called without arguments.

    `config` is of the given kind, composed from `config_name` in configs/; `folder` is the folder of the
    run. What the function returns is what a sweeper optimizes.
    """

    def main() -> None:
        full = os.environ.get("HYDRA_FULL_ERROR") == "1"

        @functools.wraps(function)
        def job(config: DictConfig) -> Any:
            return _run_job(function, config, kind, full)

        try:
            explain.check_flags()
            decorate = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
            with env_override({"HYDRA_FULL_ERROR": "1"}):  # Hydra then raises errors and prints none
                decorate(job)()
        except KeyboardInterrupt:
            _say("interrupted")
            _leave(INTERRUPTED)
        except Refused:
            sys.exit(1)
        except Exception as error:
            if full or _raised_in_job(error):
                raise
            _say(explain.before_job(error, config_name))
            sys.exit(1)

    return main


def _run_job(function: Callable[[Job, Path], Any], config: DictConfig, kind: type[Job], full: bool) -> Any:
    """Run one job that Hydra has composed; an invalid option ends it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        option = "hydra.sweep.dir" if _is_sweep() else "hydra.run.dir"
        check(not _holds_result(folder), option, folder, "a folder without a result; this one has one")
        return function(configuration(plain(config), kind), folder)
    except InvalidOption as error:
        if full:
            raise
        _remove_description(folder)
        _refuse(explain.one_line(error))


def _refuse(line: str) -> NoReturn:
    """End the job. In a sweep by an exception, which Hydra notes to go on with the other jobs."""
    log.info("refused: %s", line)
    if _is_sweep():
        _say(f"job {HydraConfig.get().job.num}: {line}")
        raise Refused(line) from None
    _say(line)
    raise SystemExit(1)


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


def configuration(options: Mapping[str, Any], kind: type[Any] = Config) -> Any:
    """The `Config` (or other kind) of composed options; its plugins are imported.

    All losses have the option `tau` in configs/, so that a sweep over losses can sweep over it, too;
    0 is dropped for a loss whose function has no such option.
    Raises `InvalidOption`.
    """
    config = from_mapping(options, kind)
    import jax  # late, so that --help is quick

    from bwdln.losses import LOSSES

    jax.config.update("jax_enable_x64", True)  # before a plugin makes its first array
    load_plugins(config.plugins)
    chosen = dict(config.loss.options)
    if "tau" not in chosen or "tau" in LOSSES.options(config.loss.name):
        return config
    check(chosen["tau"] == 0, "loss.tau", chosen["tau"], f"only 0 with {config.loss.name}: it has no tau")
    used = tuple(pair for pair in config.loss.options if pair[0] != "tau")
    return dataclasses.replace(config, loss=Choice(config.loss.name, used))


# --- the folder of the run ------------------------------------------------------------------------


def _is_sweep() -> bool:
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def _holds_result(folder: Path) -> bool:
    """Whether a command wrote there."""
    return any(any(folder.glob(name)) for name in RESULTS)


def _output_subdir() -> str | None:
    """Where Hydra describes a run: nowhere in the folder that already holds another's result."""
    with suppress(MissingMandatoryValue):  # there is no folder when only the configuration is shown
        if _holds_result(Path(HydraConfig.get().runtime.output_dir)):
            return None
    return ".hydra"


OmegaConf.register_new_resolver("free_output_subdir", _output_subdir, replace=True)


def _remove_description(folder: Path) -> None:
    """Remove what Hydra wrote to describe a run that then was refused."""
    subfolder = HydraConfig.get().output_subdir
    if subfolder is not None:
        for name in DESCRIPTION:
            (folder / subfolder / name).unlink(missing_ok=True)
        with suppress(OSError):  # what else is there stays
            (folder / subfolder).rmdir()
