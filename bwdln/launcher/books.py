"""What Hydra keeps of a job: its folder, its description in it, its log, its value or failure.

`kept` leaves what `hydra.core.utils.run_job` leaves, at a fraction of its cost, which is mostly that of
copying configurations and of writing YAML in Python. Where callbacks are configured, or the process changes
with the job (its directory, its environment), it is `run_job`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, _flush_loggers, configure_log, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf._utils import get_omega_conf_dumper


class _Dumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """YAML as OmegaConf writes it, in C where PyYAML has that."""


_Dumper.add_representer(str, get_omega_conf_dumper().str_representer)


def to_yaml(container: Any) -> str:
    """What `OmegaConf.to_yaml` makes of a configuration, from its plain container."""
    text: str = yaml.dump(
        container, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )
    return text


def folder_of(config: DictConfig) -> Path:
    """The output folder of a job."""
    return Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()


def kept(
    task: TaskFunction,
    work: Callable[[], Any],
    config: DictConfig,
    context: HydraContext,
    folder: Path,
    hydra: dict[str, Any],
) -> JobReturn:
    """Do what is left of a job as that job of the task, and keep the books of it in its `folder_of`.

    `hydra`: Hydra's part of the configuration, unresolved, as nested mappings.
    """
    if not _is_usual(config, context):

        def named(_: DictConfig) -> Any:
            return work()

        named.__name__, named.__module__ = task.__name__, task.__module__
        return run_job(named, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    with read_write(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    configure_log(config.hydra.job_logging, config.hydra.verbose)
    overrides = OmegaConf.to_container(config.hydra.overrides.task)
    hydra["runtime"]["output_dir"] = str(folder)
    _describe(config, folder, overrides, hydra)
    done = JobReturn(overrides=overrides, working_dir=os.getcwd())  # type: ignore[arg-type]
    try:
        done.return_value = work()
        done.status = JobStatus.COMPLETED
    except Exception as error:
        done.return_value = error
        done.status = JobStatus.FAILED
    done.task_name = JobRuntime.instance().get("name")
    _flush_loggers()
    return done


def _is_usual(config: DictConfig, context: HydraContext) -> bool:
    """Whether nobody looks at the job while it runs, and the process stays as it is."""
    job = config.hydra.job
    moves = job.chdir or (job.chdir is None and not version.base_at_least("1.2"))
    return not (context.callbacks.callbacks or moves or job.env_set)


def _unresolved(node: Any) -> Any:
    """A part of a configuration as plain values, interpolations as they are written."""
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=False, enum_to_str=True)
    value = node._value()
    return value.name if isinstance(value, Enum) else value


def _describe(config: DictConfig, folder: Path, overrides: Any, hydra: dict[str, Any]) -> None:
    """Write the configuration, that of Hydra, and the overrides, where they are asked for."""
    subfolder = config.hydra.output_subdir
    if subfolder is None:
        return
    task = {name: _unresolved(config._get_node(name)) for name in config if name != "hydra"}
    described = {"config.yaml": task, "hydra.yaml": {"hydra": hydra}, "overrides.yaml": overrides}
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for name, container in described.items():
        (folder / subfolder / name).write_text(to_yaml(container), encoding="utf-8")
