"""The configuration of a run: frozen, validated, free of Hydra.

Every field says in its metadata what a change of it means. *Static* changes the compiled program
(shapes, kinds); *traced* is a number the same program takes as input, so configurations that
differ only there can be lanes of one program; *host* matters only outside of compiled code.
Inside a `Choice`, floats are traced and everything else is static (`split`): texts, integers, lists,
and choices within a choice, such as an optimizer with its numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from bwdln.errors import InvalidOption, check, nearest, within
from bwdln.registry import Choice, convert

#: As many critical points `Landscape` looks at, at most.
MOST_POINTS = 20_000


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field whose change needs another program."""
    return field(default=default, metadata={"role": "static"})


def traced(default: Any = dataclasses.MISSING) -> Any:
    """A field that is an input of the program."""
    return field(default=default, metadata={"role": "traced"})


def host(default: Any = dataclasses.MISSING) -> Any:
    """A field that compiled code never sees."""
    return field(default=default, metadata={"role": "host"})


@dataclass(frozen=True)
class Network:
    """The widths of the network; `networks.widths` says how they follow from these."""

    profile: Literal["constant", "linear", "random"] = static("constant")
    depth: int | float | None = static(None)
    hidden_width: int | None = static(None)
    latent_dim: int | None = static(None)
    bottleneck: int | None = static(None)
    widths: tuple[int, ...] | None = static(None)
    seed: int = static(0)


@dataclass(frozen=True)
class Record:
    """When the run is looked at: at the start and at `count` times after it; and what is kept.

    Logarithmic records begin at the first step, or the given number of decades before the end (4
    for a flow). `end_to_end` keeps the generator at every record, `sharpness` both ends of the Hessian's
    spectrum; `certificates` says whether the run kept what theory promised from its start.
    """

    count: int = host(100)
    spacing: Literal["linear", "logarithmic"] = host("linear")
    decades: float | None = host(None)
    end_to_end: bool = static(False)
    sharpness: bool = static(False)
    certificates: bool = host(False)


@dataclass(frozen=True)
class Config:
    """One job: a target, a network, a start, a loss, a dynamics, and `seeds` lanes of it."""

    target: Choice = traced()
    network: Network = static()
    initialization: Choice = traced()
    loss: Choice = static()
    dynamics: Choice = static()
    record: Record = host(Record())
    seeds: int = traced(16)
    seed: int = traced(0)
    precision: Literal["float64", "float32"] = static("float64")
    plugins: tuple[str, ...] = host(())
    study: Choice | None = host(None)

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        most = 2**32 - self.seed
        check(1 <= self.seeds <= most, "seeds", self.seeds, f"an integer from 1 to {most}")
        record = self.record
        check(record.count >= 1, "record.count", record.count, "an integer from 1")
        sound = record.decades is None or 0 < record.decades < 300
        check(sound, "record.decades", record.decades, "null or a number above 0 and below 300")
        fits = record.decades is None or record.spacing == "logarithmic"
        check(fits, "record.decades", record.decades, "null with record.spacing = linear")

    def mapping(self) -> dict[str, Any]:
        """The configuration as plain nested mappings; `from_mapping` reads it back."""
        mapped: dict[str, Any] = plain(self)
        return mapped

    def json(self) -> str:
        """The configuration as JSON, with sorted keys."""
        return json.dumps(self.mapping(), sort_keys=True)


@dataclass(frozen=True)
class Landscape:
    """A look at critical points: the closed forms of a loss, over many random targets.

    The targets have the seeds `target.seed`, +1, …; `seed` draws the points and paths that are looked at
    where there are more of them than `points` and `paths`. The same points under the loss `against`, too.
    """

    target: Choice = traced()
    loss: Choice = static()
    against: Literal["frobenius"] | None = static("frobenius")
    rank: int | None = static(None)
    depth: int | float = traced(3)
    targets: int = traced(16)
    seed: int = host(0)
    points: int | None = host(100)
    paths: int = host(12)
    plugins: tuple[str, ...] = host(())
    report: Literal["auto", "never"] = host("auto")
    programs: str = host("auto")

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        check(1 <= self.targets <= 10_000, "targets", self.targets, "an integer from 1 to 10000")
        check(1 <= self.depth < float("inf"), "depth", self.depth, "a finite number from 1")
        check(0 <= self.paths <= 1000, "paths", self.paths, "an integer from 0 to 1000")
        takes = f"an integer from 1 to {MOST_POINTS}, or null"
        check(self.points is None or 1 <= self.points <= MOST_POINTS, "points", self.points, takes)

    def mapping(self) -> dict[str, Any]:
        """The configuration as plain nested mappings; `from_mapping` reads it back."""
        mapped: dict[str, Any] = plain(self)
        return mapped


def _check_counts(options: Any, *names: str) -> None:
    """Raise `InvalidOption` for numbers below 1, of a part of the configuration; null is one of some."""
    defaults = {each.name: each.default for each in dataclasses.fields(options)}
    for name in names:
        value, null = getattr(options, name), ", or null" if defaults[name] is None else ""
        check(value is None or value >= 1, name, value, f"an integer from 1{null}")


@dataclass(frozen=True)
class Processes:
    """Tasks as processes of this machine, by submitit, on its cores alone; `parallel`: so many at a time."""

    parallel: int | None = host(None)

    def __post_init__(self) -> None:
        _check_counts(self, "parallel")


#: Options of sbatch on which the engine relies: they are its own.
SET_BY_THE_ENGINE = {"array", "error", "job_name", "no_requeue", "open_mode", "output", "requeue", "signal"}


@dataclass(frozen=True)
class Slurm:
    """Tasks as jobs of Slurm, by submitit, in the words of sbatch; `time` in minutes.

    `signal_delay_s`: how long before its end a task is told to save itself, by Slurm up to a minute earlier;
    `max_num_timeout`: how often it is queued again then; `array_parallelism`: tasks at a time; `nodes`,
    `ntasks_per_node`: the processes of a task, which then share each batch; `setup`: commands of the shell
    before it; `additional_parameters`: any other option of sbatch, by name.
    """

    partition: str | None = host(None)
    account: str | None = host(None)
    qos: str | None = host(None)
    constraint: str | None = host(None)
    time: int = host(60)
    mem: str | None = host(None)
    cpus_per_task: int | None = host(None)
    gpus_per_node: int | None = host(None)
    nodes: int = host(1)
    ntasks_per_node: int = host(1)
    array_parallelism: int = host(256)
    signal_delay_s: int = host(60)
    max_num_timeout: int = host(100)
    setup: tuple[str, ...] = host(())
    additional_parameters: dict | None = host(None)

    def __post_init__(self) -> None:
        _check_counts(self, "cpus_per_task", "nodes", "ntasks_per_node")
        _check_counts(self, "array_parallelism", "signal_delay_s", "max_num_timeout")
        check(self.time >= 2, "time", self.time, "an integer of minutes from 2")
        # A task shall have some time; and submitit counts only what runs for most of its time as timed out.
        most = min(60 * self.time - 61, max(12 * self.time, 600) - 60)
        takes = f"an integer of seconds up to {most} with sweep.slurm.time={self.time}"
        check(self.signal_delay_s <= most, "signal_delay_s", self.signal_delay_s, takes)
        own = {each.name for each in dataclasses.fields(self)} | SET_BY_THE_ENGINE
        for name in self.additional_parameters or ():
            takes = "options of sbatch that are neither those of sweep.slurm nor set by the engine"
            check(str(name).replace("-", "_") not in own, "additional_parameters", name, takes)


@dataclass(frozen=True)
class Ray:
    """Tasks as those of Ray, in its words; `address`: of a cluster, or null for this machine alone."""

    address: str | None = host(None)
    num_cpus: float = host(1.0)
    num_gpus: float = host(0.0)
    memory: int | None = host(None)

    def __post_init__(self) -> None:
        _check_counts(self, "memory")
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), name, value, "a finite number from 0")


@dataclass(frozen=True)
class Distributed:
    """One program over several processes: as `jax.distributed.initialize` has it; all null inside Slurm."""

    coordinator_address: str | None = host(None)
    num_processes: int | None = host(None)
    process_id: int | None = host(None)

    def __post_init__(self) -> None:
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        given = [name for name, value in values.items() if value is not None]
        for name, value in values.items():
            takes = f"a value beside {' and '.join(given)}; all three null inside Slurm"
            check(value is not None or not given, name, "null", takes)
        if self.coordinator_address is not None:
            host, _, port = self.coordinator_address.rpartition(":")
            sound = bool(host) and port.isdecimal() and 0 < int(port) < 2**16
            takes = "HOST:PORT, with a port from 1 to 65535"
            check(sound, "coordinator_address", self.coordinator_address, takes)
        if self.num_processes is not None and self.process_id is not None:
            _check_counts(self, "num_processes")
            takes = f"an integer from 0 to {self.num_processes - 1}, another one in each process"
            check(0 <= self.process_id < self.num_processes, "process_id", self.process_id, takes)


#: The shortest silence, in seconds: signs of life come every two, and are looked for every five.
LEAST_SILENCE = 30.0
#: What the batches of a sweep can be handed to; each but the first has options of its own, named like it.
Engine = Literal["inline", "processes", "slurm", "ray", "distributed"]


@dataclass(frozen=True)
class Sweep:
    """How a sweep is run. Nothing here changes a result.

    `lanes_per_batch`: how many runs go together, or as many as fit; `devices`: how many devices, or all;
    `checkpoint_seconds`: how often a batch in progress is saved. `zip` is for the sweeper: options that
    move together instead of being multiplied. `study`: what it is held against in the end
    (`studies.SWEEP_STUDIES`).

    `engine`: where the batches run, with options under its name; in `tasks` pieces, or one a batch. One that
    ends before its time is handed out again `retries` times at most. `wait_seconds`: how long the command
    waits before it leaves the tasks to themselves; `silence_seconds`: the longest without a sign of life.
    """

    study: str | None = host(None)
    dry_run: bool = host(False)
    fresh: bool = host(False)
    zip: tuple[object, ...] = host(())
    lanes_per_batch: int | None = host(None)
    devices: int | None = host(None)
    checkpoint_seconds: float = host(30.0)
    engine: Engine = host("inline")
    tasks: int | None = host(None)
    retries: int = host(2)
    wait_seconds: float | None = host(None)
    silence_seconds: float = host(600.0)
    processes: Processes = host(Processes())
    slurm: Slurm = host(Slurm())
    ray: Ray = host(Ray())
    distributed: Distributed = host(Distributed())

    def __post_init__(self) -> None:
        _check_counts(self, "lanes_per_batch", "devices", "tasks")
        silence = self.silence_seconds
        check(silence >= LEAST_SILENCE, "silence_seconds", silence, f"a number from {LEAST_SILENCE}")
        for name in ("checkpoint_seconds", "wait_seconds"):
            seconds = getattr(self, name)
            check(seconds is None or seconds >= 0, name, seconds, "a number of seconds from 0")
        check(self.retries >= 0, "retries", self.retries, "an integer from 0")
        for name in ("processes", "slurm", "ray", "distributed"):
            own = getattr(self, name)
            for each in dataclasses.fields(own) if name != self.engine else ():
                value = getattr(own, each.name)
                takes = f"nothing with sweep.engine={self.engine}: it is an option of {name}"
                check(value == each.default, f"{name}.{each.name}", value, takes)
        takes = f"null with sweep.engine={self.engine}, which hands nothing out"
        for name in ("tasks", "wait_seconds") if self.runs_here else ():
            check(getattr(self, name) is None, name, getattr(self, name), takes)

    @property
    def runs_here(self) -> bool:
        """Whether the batches run in the process of the command, which hands nothing out."""
        return self.engine in ("inline", "distributed")


@dataclass(frozen=True)
class Output:
    """What a command makes of a result: its figures, its page, and the number that a sweeper optimizes.

    `programs` is where compiled programs are kept (`compilation`).
    """

    figures: Literal["auto", "always", "never"] = host("auto")
    report: Literal["auto", "never"] = host("auto")
    objective: str = host("relative_gap")
    programs: str = host("auto")


@dataclass(frozen=True)
class Training:
    """What `experiments.train` takes: a configuration, what to make of its result, how to sweep."""

    config: Config
    output: Output = host(Output())
    sweep: Sweep = host(Sweep())

    @staticmethod
    def of(options: Mapping[str, Any]) -> Training:
        """From the options of all three side by side, those of `sweep` in a mapping of its own."""
        output = {each.name for each in dataclasses.fields(Output)}
        with within("sweep"):
            sweep = from_mapping(options.get("sweep", {}), Sweep)
        return Training(
            from_mapping({k: v for k, v in options.items() if k not in output | {"sweep"}}),
            from_mapping({k: v for k, v in options.items() if k in output}, Output),
            sweep,
        )


def plain(value: Any) -> Any:
    """A configuration, or a part of one, as what JSON can hold."""
    if isinstance(value, Choice):
        return value.mapping()
    if dataclasses.is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


_hints = functools.cache(get_type_hints)


def from_mapping(mapping: Mapping[str, Any], kind: type = Config) -> Any:
    """A `Config` (or one of its parts) from nested mappings, such as a composed YAML file.

    Raises `InvalidOption` for an unknown or missing option and for a value of the wrong type.
    """
    hints = _hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}
    for name, value in mapping.items():
        if name not in fields:  # what was meant is looked for then alone: that takes time
            raise InvalidOption(str(name), value, nearest(str(name), fields))
    values: dict[str, Any] = {}
    for name, each in fields.items():
        if name not in mapping:
            missing = each.default is dataclasses.MISSING
            check(not missing, name, "nothing", "a value: it has no default")
        elif dataclasses.is_dataclass(hints[name]) and hints[name] is not Choice:
            given = mapping[name]
            check(isinstance(given, Mapping), name, given, f"options by name, as {name}.OPTION=VALUE")
            with within(name):
                values[name] = from_mapping(given, hints[name])
        elif hints[name] is Choice or (hints[name] == Choice | None and mapping[name] is not None):
            with within(name):
                values[name] = Choice.of(mapping[name])
        else:
            values[name] = convert(name, mapping[name], hints[name])
    return kind(**values)


def split(choice: Choice) -> tuple[Choice, dict[str, float]]:
    """The static part of a choice, and its traced numbers by name.

    A float that is exactly 0 stays static: without a perturbation, say, a loss needs less work.
    """
    numbers = {name: value for name, value in choice.options if isinstance(value, float) and value}
    rest = tuple(pair for pair in choice.options if pair[0] not in numbers)
    return Choice(choice.name, rest), numbers
