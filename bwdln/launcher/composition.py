"""Composing the jobs of a sweep: once as a whole for each kind of job, then by setting values.

Hydra composes a configuration in tens of milliseconds. Jobs whose overrides set the same plain options,
beside the same other overrides, differ in those values only; so one of them is composed, and for the others
the values are set on a scratch copy, in fractions of a millisecond.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import filter_overrides
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf, open_dict, read_write

from bwdln.errors import check


@dataclass
class Kind:
    """A configuration to set values on, and whether setting them is all there is to a job of this kind.

    `hydra`: the plain container of its part of Hydra, once that was asked for.
    """

    config: DictConfig
    plain: bool
    hydra: dict[str, Any] | None = None


class Composer:
    """Composes jobs for the sweep whose configuration without them is `master`."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._runners = _runners(master)
        self._kinds: dict[tuple[str, ...], Kind] = {}
        self._latest = Kind(master, False)

    def parsed(self, text: str) -> Override:
        """An override, parsed once."""
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_override(text)
        return self._parsed[text]

    def whole(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job, composed as Hydra does.

        Raises what Hydra raises, and `InvalidOption` where the job chooses, or sets up, another launcher
        or sweeper than that which runs it: they would do nothing.
        """
        config = self._loader.load_sweep_config(self._master, list(overrides))
        for option, got in _runners(config).items():
            takes = "what the whole sweep has: it is chosen before a job of it is composed"
            check(got == self._runners[option], option, _difference(got, self._runners[option]), takes)
        _number(config, number)
        return config

    def job(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job, the same as `whole`; good until the next call.

        Raises what Hydra raises where it does not compose.
        """
        every = [self.parsed(text) for text in overrides]
        simple = [self._is_value(each) for each in every]
        signature = tuple(
            each.key_or_group if plain else text
            for text, each, plain in zip(overrides, every, simple, strict=True)
        )
        if signature not in self._kinds:
            config = self.whole(number, overrides)
            named = [each.key_or_group for each, plain in zip(every, simple, strict=True) if plain]
            # Values are set after all choices of groups were made, whatever the order they are typed in.
            others = [
                each.key_or_group
                for each, plain in zip(every, simple, strict=True)
                if not (plain or self._is_group(each.key_or_group))
            ]
            settable = all(_is_plain(config, name) and not _overlaps(name, others) for name in named)
            self._latest = self._kinds[signature] = Kind(config, settable)
            return config
        kind = self._kinds[signature]
        if not kind.plain:
            self._latest = Kind(self.whole(number, overrides), False)
            return self._latest.config
        for each, plain in zip(every, simple, strict=True):
            if plain:
                OmegaConf.update(kind.config, each.key_or_group, each.value(), merge=True)
        _number(kind.config, number)
        ours = [each for each in every if not each.is_hydra_override()]
        form = kind.config.hydra.job.config.override_dirname
        with read_write(kind.config.hydra):
            kind.config.hydra.overrides.task = [each.input_line for each in ours]
            kind.config.hydra.job.override_dirname = get_overrides_dirname(
                overrides=ours,
                kv_sep=form.kv_sep,
                item_sep=form.item_sep,
                exclude_keys=form.exclude_keys,
            )
        self._latest = kind
        return kind.config

    def hydra(self) -> dict[str, Any]:
        """Hydra's part of the configuration of the latest job, unresolved, as nested mappings.

        Good until the next job: of a kind, jobs differ in what is set here.
        """
        latest, job = self._latest, self._latest.config.hydra.job
        if latest.hydra is None:
            container = OmegaConf.to_container(latest.config.hydra, resolve=False, enum_to_str=True)
            latest.hydra = cast(dict[str, Any], container)
        latest.hydra["job"] |= {"id": job.id, "num": job.num, "override_dirname": job.override_dirname}
        latest.hydra["overrides"]["task"] = list(latest.config.hydra.overrides.task)
        return latest.hydra

    def numbered(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """That of the sweep, with the number and the overrides of a job that does not compose."""
        config = copy.deepcopy(self._master)
        _number(config, number)
        with read_write(config.hydra):
            config.hydra.overrides.task = list(filter_overrides(overrides))
        self._latest = Kind(config, False)
        return config

    def _is_value(self, override: Override) -> bool:
        """Whether an override sets a plain value of an option of the task, and nothing else."""
        key = override.key_or_group
        if override.type != OverrideType.CHANGE or override.package is not None or "/" in key:
            return False
        if override.is_hydra_override() or override.is_sweep_override() or self._is_group(key):
            return False
        value = override.value()
        values = value if isinstance(value, list) else [value]
        return all(_is_literal(each) for each in values)

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return self._groups[key]


def options(config: DictConfig) -> dict[str, Any]:
    """The resolved options of the task, as nested mappings.

    Raises what OmegaConf raises for a value that is missing or cannot be resolved.
    """
    task = [str(name) for name in config if name != "hydra"]
    return {name: _resolved(config, name) for name in task}


def _resolved(config: DictConfig, name: str) -> Any:
    value = config[name]
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _runners(config: DictConfig) -> dict[str, dict[str, Any]]:
    """What runs the jobs: the options of the launcher and of the sweeper."""
    nodes = {f"hydra.{name}": config.hydra[name] for name in ("launcher", "sweeper")}
    return {name: OmegaConf.to_container(node, resolve=False) for name, node in nodes.items()}  # type: ignore[misc]


def _difference(got: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in got.items() if name not in expected or value != expected[name]}


def _number(config: DictConfig, number: int) -> None:
    with read_write(config.hydra.job), open_dict(config.hydra.job):
        config.hydra.job.id = number
        config.hydra.job.num = number


def _is_literal(value: Any) -> bool:
    """Whether a value stands for itself."""
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def _overlaps(name: str, others: Sequence[str]) -> bool:
    """Whether one of other options is an option, a part of it, or what it is a part of."""
    inside = f"{name}."
    return any(f"{other}.".startswith(inside) or inside.startswith(f"{other}.") for other in others)


def _is_plain(config: DictConfig, name: str) -> bool:
    """Whether an option has no type of its own, and may hold any value."""
    node = OmegaConf.select(config, name.rpartition(".")[0]) if "." in name else config
    leaf = name.rpartition(".")[2]
    node = node._get_node(leaf, validate_access=False) if isinstance(node, DictConfig) else None
    return isinstance(node, AnyNode | ListConfig)
