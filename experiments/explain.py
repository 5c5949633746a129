"""Hydra's errors, and those of the flags and folders it takes, as one line each."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bwdln.errors import Failure, InvalidOption, nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def check_flags() -> None:
    """Raise `InvalidOption` for flags that Hydra would answer with a page."""

    def refuse(message: str) -> NoReturn:
        raise InvalidOption("command line", shlex.join(sys.argv[1:]), f"what --help says ({message})")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


def one_line(error: BaseException) -> str:
    """The message of an error, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def before_job(error: Exception, config_name: str) -> str:
    """One line for an error that was raised before any job began."""
    if isinstance(error, InvalidOption):
        return one_line(error)
    given = get_args_parser().parse_args()
    if isinstance(error, OmegaConfBaseException):
        return one_line(unresolved(error))
    if isinstance(error, MissingConfigException):
        return one_line(_unknown_choice(error))
    if isinstance(error, OverrideParseException):
        return one_line(_unreadable(error))
    if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        return one_line(_unwritable(error, given))
    if isinstance(error, HydraException | ValueError):
        return _of_composition(error, given, config_name)
    return unforeseen(error)


def of_job(error: Exception) -> str:
    """One line for an error of one job among others, in composing it or in running it."""
    if isinstance(error, OmegaConfBaseException):
        return one_line(unresolved(error))
    if isinstance(error, MissingConfigException):
        return one_line(_unknown_choice(error))
    if isinstance(error, HydraException):
        cause = f": {str(error.__cause__).partition(chr(10))[0]}" if error.__cause__ else ""
        return one_line(error) + cause
    return one_line(error) if isinstance(error, Failure | InvalidOption) else unforeseen(error)


def unforeseen(error: Exception) -> str:
    """An error that is not of its user, in one line."""
    return f"{type(error).__name__}: {one_line(error)} (HYDRA_FULL_ERROR=1 shows where)"


def unresolved(error: OmegaConfBaseException) -> InvalidOption:
    """A value that is missing, or an interpolation that leads nowhere."""
    if isinstance(error, MissingMandatoryValue):
        return InvalidOption(str(error.full_key), "nothing", "a value: it has no default")
    reason = str(error).partition("\n")[0]
    return InvalidOption(str(error.full_key), "an interpolation", f"one that can be resolved ({reason})")


def _unknown_choice(error: MissingConfigException) -> InvalidOption:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    anywhere = "the name of a YAML file in the configuration folders"
    takes = nearest(choice, error.options) if error.options else anywhere
    return InvalidOption(group or "--config-name", choice, takes)


def _unreadable(error: OverrideParseException) -> InvalidOption:
    said = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See "))]
    return InvalidOption("command line", error.override, f"option=value ({' '.join(said[0].split())})")


def _unwritable(error: Exception, given: Namespace) -> InvalidOption:
    cause = error if isinstance(error, OSError) else error.__cause__
    option = "hydra.sweep.dir" if given.multirun else "hydra.run.dir"
    folder = _value(option, given) or getattr(cause, "filename", None)
    reason = getattr(cause, "strerror", None) or cause
    return InvalidOption(option, folder, f"a folder that can be written ({reason})")


# --- errors of composing --------------------------------------------------------------------------


def _of_composition(error: Exception, given: Namespace, config_name: str) -> str:
    message = str(error)
    if unknown := re.match(r"Could not override '([^']+)'", message):
        inner = str(getattr(error.__cause__, "full_key", ""))  # target.x where the user gave target={x: 1}
        name = inner if inner.startswith(f"{unknown[1]}.") else unknown[1]
        return one_line(_unknown_option(name, _value(unknown[1], given), given, config_name))
    if several := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^=']+)=(.*)'", message):
        takes = "one value; several need -m, and a list square brackets"
        return one_line(InvalidOption(several[1], several[2], takes))
    reason = one_line(error)
    if isinstance(error.__cause__, OmegaConfBaseException):
        reason += f": {str(error.__cause__).partition(chr(10))[0]}"
    culprit = _culprit(given, config_name)
    return reason if culprit is None or culprit in reason else f"{culprit}: {reason}"


def _unknown_option(name: str, value: str | None, given: Namespace, config_name: str) -> InvalidOption:
    """An option that does not exist, with the names that do in place of its first wrong part."""
    options, groups = _composed(given, config_name)
    if name in groups and name not in options:
        group, _, part = name.rpartition("/")
        chosen = options["hydra"]["runtime"]["choices"].get(group)
        nothing = f"nothing with {group}={chosen}, which has no {part}"
        return InvalidOption(name, value, nothing if chosen else f"a plus sign in front, +{name}={value}")
    if "/" in name:
        ours = [each for each in groups if each.startswith("hydra") == name.startswith("hydra")]
        return InvalidOption(name, value, nearest(name, ours))
    known = ""
    for part in name.split("."):
        if not isinstance(options, dict):
            return InvalidOption(name, value, f"nothing: {known[:-1]} has no options")
        if part not in options:
            return InvalidOption(name, value, nearest(known + part, [known + each for each in options]))
        known, options = f"{known}{part}.", options[part]
    return InvalidOption(name, value, "another value")


def _composed(given: Namespace, config_name: str) -> tuple[Any, list[str]]:
    """All options, nested, and all groups: with the choices that were made, if they compose."""
    choices = [each for each in given.overrides if "." not in each.partition("=")[0]]
    whole = [each for each in choices if "/" not in each.partition("=")[0]]
    for overrides in (choices, whole, []):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"), suppress(Exception):
            config = compose(config_name, [*_search_path(given), *overrides], return_hydra_config=True)
            state = GlobalHydra.instance().hydra
            groups = list(state.list_all_config_groups()) if state is not None else []
            return OmegaConf.to_container(config), groups
    return {}, []


def _culprit(given: Namespace, config_name: str) -> str | None:
    """The first override with which the configuration does not compose."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for count, override in enumerate(given.overrides):
            try:
                compose(config_name, [*_search_path(given), *given.overrides[: count + 1]])
            except Exception:
                return str(override)
    return None


def _search_path(given: Namespace) -> list[str]:
    """The override that stands for the flag --config-dir."""
    folder = given.config_dir
    return [] if folder is None else [f'hydra.searchpath=["file://{Path(folder).resolve()}"]']


def _value(name: str, given: Namespace) -> str | None:
    """What the command line gives an option; None if it says nothing of it."""
    pairs = (override.lstrip("+~").partition("=") for override in given.overrides)
    values = [value for key, _, value in pairs if key == name]
    return values[-1] if values else None
