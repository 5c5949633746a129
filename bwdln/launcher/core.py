"""What the launcher `batched` does: compose the jobs, let the task run them, keep the books."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from omegaconf import DictConfig

from bwdln.batching import Job
from bwdln.errors import InvalidOption
from bwdln.launcher import books, composition
from bwdln.launcher.composition import Composer

log = logging.getLogger(__name__)


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run the jobs, numbered from `first`; the returns are in their order.

    Raises `InvalidOption` for an option of Hydra that cannot differ between jobs that run together, and
    what composing raised if no job composes.
    """
    setup_globals()
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    composer = Composer(launcher.hydra_context.config_loader, launcher.config)
    if not hasattr(launcher.task_function, "batch"):
        return _one_by_one(launcher, composer, job_overrides, first)
    original = HydraConfig.instance().cfg
    returns = [JobReturn(overrides=list(filter_overrides(each))) for each in job_overrides]
    folder = Path(str(launcher.config.hydra.sweep.dir)).absolute()
    try:
        jobs = compose(composer, job_overrides, first, folder)
        places = {job.number: job.folder for job in jobs}
        for number, work in launcher.task_function.batch(jobs, folder):
            config = _config(composer, number, job_overrides[number - first])
            _current(config)
            returns[number - first] = books.kept(
                launcher.task_function,
                work,
                config,
                launcher.hydra_context,
                places[number],
                composer.hydra(),
            )
            configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    finally:
        HydraConfig.instance().cfg = original
    return returns


def plan(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> bool:
    """Let the task show what it would run; whether it declares how."""
    setup_globals()
    if not hasattr(launcher.task_function, "plan"):
        return False
    composer = Composer(launcher.hydra_context.config_loader, launcher.config)
    folder = Path(str(launcher.config.hydra.sweep.dir)).absolute()
    original = HydraConfig.instance().cfg
    try:
        launcher.task_function.plan(compose(composer, job_overrides, first, folder), folder)
    finally:
        HydraConfig.instance().cfg = original
    return True


def compose(
    composer: Composer, job_overrides: Sequence[Sequence[str]], first: int, folder: Path
) -> list[Job]:
    """The jobs; one that does not compose holds why. Raises that if none does."""
    swept = _swept(composer, job_overrides)
    jobs = []
    for number, overrides in enumerate(job_overrides, start=first):
        task = tuple(filter_overrides(overrides))
        differing = {name: values[number - first] for name, values in swept.items()}
        place = folder / str(number)
        try:
            config = composer.job(number, overrides)
            _current(config)
            place = books.folder_of(config)
            options: Any = composition.options(config)
        except Exception as error:  # of composing: Hydra and OmegaConf have many
            options = error
        jobs.append(Job(number, task, differing, options, place))
    failed = [job.options for job in jobs if isinstance(job.options, Exception)]
    if failed and len(failed) == len(jobs):
        raise failed[0]
    return jobs


def _swept(composer: Composer, job_overrides: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
    """What differs between the jobs: the values of each such option, in the order of the jobs."""
    each_job = [{_name(each): _value(each) for each in map(composer.parsed, job)} for job in job_overrides]
    first = list(each_job[0]) if each_job else []
    values = {
        name: [own.get(name) for own in each_job]
        for name in dict.fromkeys([*first, *sorted(set().union(*each_job))])
    }
    # As texts: 1 is not true there, and nan is nan.
    differing = {name: each for name, each in values.items() if len(set(map(repr, each))) > 1}
    for name in differing:
        if name.startswith(("hydra.", "hydra/")):
            raise InvalidOption(name, "several values", "one value: the jobs run together")
    return differing


def _name(override: Override) -> str:
    """The option or group an override is about, whether it sets, adds or deletes it."""
    return str(override.get_key_element().lstrip("+~"))


def _value(override: Override) -> Any:
    """The value of an override; a choice from a group is its name."""
    return None if override.is_delete() else override.value()


def _current(config: DictConfig) -> None:
    """What `${hydra:…}` refers to from now on; as `HydraConfig.set_config`, which copies."""
    HydraConfig.instance().cfg = config  # type: ignore[assignment]


def _config(composer: Composer, number: int, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a job; that of the sweep, numbered, for one that does not compose."""
    try:
        return composer.job(number, overrides)
    except Exception:
        return composer.numbered(number, overrides)


def _one_by_one(
    launcher: Any, composer: Composer, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Run the jobs of a task that does not declare how to run several, as Hydra's basic launcher does."""
    Path(str(launcher.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    log.info("Launching %d jobs locally, one by one", len(job_overrides))
    returns = []
    for number, overrides in enumerate(job_overrides, start=first):
        log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        returns.append(
            run_job(
                hydra_context=launcher.hydra_context,
                task_function=launcher.task_function,
                config=composer.whole(number, overrides),
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        )
        configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    return returns
