"""What the sweeper `grid` does: the list of jobs, and their runs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import OmegaConf

from bwdln.batching import Refused
from bwdln.errors import InvalidOption, check, within

log = logging.getLogger(__name__)

#: So many jobs are shown of a dry run.
LISTED = 50


def sweep(sweeper: Any, arguments: Sequence[str]) -> list[Sequence[JobReturn]] | None:
    """Run what `params` and the command line ask for, in batches of `max_batch_size`.

    Raises `InvalidOption` for options that cannot move together, and what the first failed job raised.
    """
    given = [f"{name}={values}" for name, values in sweeper.params.items()]
    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    # An application may offer the option under a name of its own, as the default of the sweeper has it.
    with within("sweep" if "sweep" in sweeper.config else "hydra.sweeper"):
        found = jobs(parser.parse_overrides([*given, *arguments]), _zipped(sweeper.zip))
    size = sweeper.max_batch_size
    check(size is None or size > 0, "hydra.sweeper.max_batch_size", size, "an integer from 1, or null")
    if sweeper.dry_run:
        _show(sweeper.launcher, found)
        return None
    folder = Path(sweeper.config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(sweeper.config, folder / "multirun.yaml")
    returns = []
    for first in range(0, len(found), size or len(found)):
        batch = found[first : first + (size or len(found))]
        returns.append(sweeper.launcher.launch(batch, initial_job_idx=first))
    for each in itertools.chain.from_iterable(returns):
        if each.status == JobStatus.FAILED:
            if isinstance(each._return_value, Refused):
                raise each._return_value
            _ = each.return_value  # says which job failed, and raises what it raised
    return returns


def jobs(overrides: Sequence[Override], zipped: Sequence[Sequence[str]]) -> list[list[str]]:
    """The overrides of each job: every combination, the last option fastest; the `zipped` move together.

    Raises `InvalidOption` for a zipped option that is not swept over, or not over as many values.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            takes = "a list, a range or a glob of values: hydra/sweeper=grid goes through all of them"
            raise HydraException(f"{override.input_line}: takes {takes}")
    return [list(itertools.chain.from_iterable(job)) for job in itertools.product(*_axes(values, zipped))]


def _axes(values: dict[str, list[str]], zipped: Sequence[Sequence[str]]) -> Iterator[list[tuple[str, ...]]]:
    """What is multiplied: for each option its values, for options that move together the tuples of them."""
    leader: dict[str, Sequence[str]] = {}
    for names in zipped:
        for name in names:
            swept = [key for key, each in values.items() if len(each) > 1]
            check(name in swept, "zip", name, f"options that are swept over: {', '.join(swept) or 'none is'}")
            check(name not in leader, "zip", name, "each option once")
            leader[name] = names
        counts = {name: len(values[name]) for name in names}
        got = ", ".join(f"{name} with {count} values" for name, count in counts.items())
        check(len(set(counts.values())) <= 1, "zip", got, "options with as many values each")
    for key, each in values.items():
        together = leader.get(key, (key,))
        if key == next(name for name in values if name in together):
            ordered = [name for name in values if name in together]
            yield (
                list(zip(*(values[name] for name in ordered), strict=True))
                if len(ordered) > 1
                else [(value,) for value in each]
            )


def _zipped(given: Sequence[Any]) -> list[list[str]]:
    """`[a, b]` and `[[a, b], [c, d]]` as lists of names."""
    if all(isinstance(each, str) for each in given):
        return [list(given)] if given else []
    if any(isinstance(each, str) for each in given):
        raise InvalidOption("zip", list(given), "a list of options, or a list of such lists")
    return [list(each) for each in given]


def _show(launcher: Any, found: Sequence[Sequence[str]]) -> None:
    """Show what would run: by the task, where it can, else the jobs."""
    if hasattr(launcher, "plan") and launcher.plan(found, 0):
        return
    print(f"{len(found):,} jobs")
    for number, overrides in enumerate(found[:LISTED]):
        print(f"#{number} {' '.join(overrides)}")
    if len(found) > LISTED:
        print(f"… and {len(found) - LISTED:,} more")
