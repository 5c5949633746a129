"""The jobs of a sweep (-m) as lanes of few programs, with one dataset and one set of figures at the end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bwdln.batching import Job
from bwdln.config import Output, Sweep, Training
from bwdln.errors import InvalidOption, check
from experiments import command_line

if TYPE_CHECKING:
    from bwdln.collection import Collection
    from bwdln.engines import Ledger
    from bwdln.store import Store
    from bwdln.sweep import Done, Plan

log = logging.getLogger(__name__)

#: The file that says that a study in a sweep ended, and its score.
ENDED = "study.json"
#: So many rows of the table are printed; the file holds all.
LISTED = 20


class Batches:
    """`experiments.train` as a batch task: what Hydra's launcher asks of it, and what comes at the end.

    A sweeper that optimizes hands over its jobs in several calls; they make one dataset.
    """

    def __init__(self, full: bool) -> None:
        """`full`: errors of a job are raised as they are, with their traceback."""
        self._full, self._began = full, time.perf_counter()
        self._folder: Path | None = None
        self._jobs: dict[int, Job] = {}
        self._trainings: dict[int, Training] = {}
        self._swept: dict[int, Mapping[str, Any]] = {}
        self._collection: Collection | None = None
        self._ended: set[int] = set()
        self._stored = 0  # of these, by an earlier sweep
        self._alone: set[int] = set()  # studies, which run programs of their own
        self._failed: dict[int, Exception] = {}
        self._keys: dict[int, str] = {}
        self._record: Ledger | None = None

    def plan(self, jobs: Sequence[Job], folder: Path) -> None:
        """Print what a sweep would run. Runs and writes nothing."""
        self._read(jobs)
        self._planned(jobs, folder, self._prepared())

    def batch(self, jobs: Sequence[Job], folder: Path) -> Iterator[tuple[int, Callable[[], float]]]:
        """Run jobs together; yields the number of each, and what is left to do as that job.

        Raises `InvalidOption` for what concerns the whole sweep, such as a folder that is in use.
        """
        from bwdln import analysis, engines, studies
        from bwdln.collection import Collection
        from bwdln.store import Store
        from experiments import display

        self._read(jobs)
        takes = "false with this sweeper, which chooses its jobs as it goes"
        check(not self._options().dry_run, "sweep.dry_run", True, takes)
        analysis.check_objective(self._output().objective)
        studies.check_sweep_study(self._options().study)
        options = self._prepared()
        engines.check_there(options, folder)
        self._collection = self._collection or Collection(self._swept)
        store = Store(folder / "store")
        with engines.all_processes(options), store.lock():
            self._folder = folder
            engines.check_free(options, store)
            planned = self._planned(jobs, folder, options)
            self._failed |= planned.refused
            self._keys |= planned.keys
            record = self._record = engines.begin(options, store, self._keys, self._reasons())
            for job in jobs:
                if job.number in self._failed:
                    yield job.number, partial(self._refuse, job.number)
            try:
                with display.sweep_progress(folder) as on_progress:
                    for done in engines.execute(planned, options, store, record, on_progress):
                        if isinstance(done.outcome, Exception):
                            record.failed[done.job] = command_line.said(done.outcome)
                            record.save_sometimes()
                        yield done.job, partial(self._finish, done, store, planned.keys[done.job])
            finally:
                record.failed = self._reasons()
                record.save()
        for job in jobs:
            if job.number in self._alone:
                yield job.number, partial(self._conduct, job.number)

    def conclude(self) -> None:
        """Write the dataset, the table and the figures of the sweep, and say what came of it."""
        if self._folder is None:
            return
        from bwdln import analysis, figures, results, studies
        from experiments import display, train

        folder, output = self._folder, self._output()
        written: list[tuple[str, Path]] = []
        drawn: list[Path] = []
        if self._collection is not None and self._ended - self._alone:
            failed = self._reasons()
            attributes = {"failed": json.dumps(failed), "objective": output.objective}
            dataset = self._collection.dataset(results.provenance() | attributes)
            results.write_dataset(dataset, folder / "sweep.nc")
            found = analysis.sweep_rows(dataset, failed, output.objective)
            columns, rows = display.sweep_table(found, self._swept, output.objective)
            table = studies.base.write_table(folder / "sweep.csv", columns, rows)
            written = [("dataset", folder / "sweep.nc"), ("table", table)]
            shown = [[display.cell(value) for value in row] for row in rows[:LISTED]]
            display.show_table(display.listing(columns, shown))
            if len(rows) > LISTED:
                print(f"… and {len(rows) - LISTED:,} more rows: see the table")
            drawn = figures.sweep(dataset, folder, output.objective) if output.figures != "never" else []
            study = self._options().study
            if study is not None:
                configs = {job: training.config for job, training in self._trainings.items()}
                began = time.perf_counter()
                findings = studies.conduct_on_sweep(study, dataset, configs, folder)
                train.show_findings(findings)
                about = {"name": study, "title": studies.base.title(studies.SWEEP_STUDIES[study])}
                taken = time.perf_counter() - began
                studies.write_findings(findings, folder, kind="sweep study", seconds=taken, **about)
                written += [("table", path) for path in findings.tables]
                drawn += findings.figures
        print(f"{self._came()}, {len(self._failed):,} failed")
        if output.report != "never" and self._ended:
            written += train.make_page(folder)
        for line in train.ending(folder, written, drawn, time.perf_counter() - self._began):
            print(line)

    def interrupted(self) -> str:
        """What came of a sweep that Ctrl-C ended."""
        if self._folder is None:
            return "interrupted"
        said = f"interrupted: {self._came()}; the same command goes on from there"
        if self._record is None or not self._record.left:
            return said
        status = f"python -m experiments.status {self._folder}"
        return f"{said}; {self._record.left} tasks go on without it: {status} shows them, --cancel ends them"

    def detached(self, what: str) -> str:
        """What came of a sweep whose tasks go on without it."""
        status = f"python -m experiments.status {self._folder}"
        return f"{what}: {self._came()}; the same command comes back to them, {status} shows them"

    def _reasons(self) -> dict[int, str]:
        """Why jobs have failed so far, in their order."""
        return {job: command_line.said(error) for job, error in sorted(self._failed.items())}

    def _came(self) -> str:
        counts = f"{len(self._ended):,} of {len(self._jobs):,} jobs done"
        return f"{counts}, {self._stored:,} of them by an earlier sweep"

    # --- what the jobs are ---

    def _read(self, jobs: Sequence[Job]) -> None:
        """Check the options of each job; what is wrong with them fails that job alone."""
        for job in jobs:
            self._jobs[job.number], self._swept[job.number] = job, job.swept
            try:
                if isinstance(job.options, Exception):
                    raise job.options
                training = command_line.training(job.options)
            except Exception as error:
                if isinstance(error, InvalidOption) and _is_of_the_sweep(error.option):
                    raise
                self._failed[job.number] = error
                continue
            self._trainings[job.number] = training
            if training.config.study is not None:
                self._alone.add(job.number)
        for name in sorted({name for job in jobs for name in job.swept}):
            check(not _is_of_the_sweep(name), name, "several values", "one value for the whole sweep")

    def _options(self) -> Sweep:
        return next((each.sweep for each in self._trainings.values()), Sweep())

    def _prepared(self) -> Sweep:
        """The options of the sweep, with those of its engine that are left to it."""
        from bwdln import engines

        options = engines.prepared(self._options())
        takes = "inline where jobs are studies, which run programs of their own"
        check(options.engine == "inline" or not self._alone, "sweep.engine", options.engine, takes)
        return options

    def _output(self) -> Output:
        return next((each.output for each in self._trainings.values()), Output())

    def _planned(self, jobs: Sequence[Job], folder: Path, options: Sweep) -> Plan:
        """Plan the jobs that are no studies, and say what that comes to."""
        from bwdln import engines
        from bwdln.store import Store
        from experiments import display

        numbers = [job.number for job in jobs if job.number in self._trainings.keys() - self._alone]
        configs = {number: self._trainings[number].config for number in numbers}
        planned = engines.plan(configs, options, Store(folder / "store"))
        studies = sum(job.number in self._alone for job in jobs)
        away = None if options.runs_here else len(engines.dealt(planned.batches, options.tasks))
        for line in display.plan(planned, len(jobs), studies, options.engine, away):
            print(line)
        return planned

    # --- what is left to do as a job ---

    def _refuse(self, number: int) -> NoReturn:
        error = self._failed[number]
        if self._full:
            raise error
        command_line.refuse(number, error)

    def _finish(self, done: Done, store: Store, key: str) -> float:
        """Put the result of a job into its folder; log it, and draw it if that is asked for."""
        from experiments import train

        try:
            if isinstance(done.outcome, Exception):
                raise done.outcome
            folder = self._jobs[done.job].folder
            store.publish(key, folder)
            if done.stored:
                log.info("computed by an earlier sweep")
            value = train.finish(done.outcome, self._trainings[done.job], folder)
            if self._collection is not None:
                self._collection.add(done.job, done.outcome)
        except Exception as error:
            self._failed[done.job] = error
            self._refuse(done.job)
        self._ended.add(done.job)
        self._stored += done.stored
        return value

    def _conduct(self, number: int) -> float:
        """Conduct a study as a job, unless an earlier sweep did."""
        from bwdln import store
        from experiments import train

        training, folder = self._trainings[number], self._jobs[number].folder
        try:
            key, ended = store.key(training.config), folder / ENDED
            if ended.is_file() and not training.sweep.fresh:
                found = json.loads(ended.read_text(encoding="utf-8"))
                if found.get("key") == key:
                    log.info("conducted by an earlier sweep")
                    self._stored += 1
                    self._ended.add(number)
                    return float(found["score"])
            free = not command_line.holds_result(folder)
            takes = "a folder without another study, or one that did not end: move it away"
            check(free, "hydra.sweep.dir", folder, takes)
            score = train.train(training, folder)
            ended.write_text(json.dumps({"key": key, "score": score}), encoding="utf-8")
        except Exception as error:
            self._failed[number] = error
            self._refuse(number)
        self._ended.add(number)
        return score


def _is_of_the_sweep(option: str) -> bool:
    """Whether an option holds of all jobs of a sweep."""
    return option.partition(".")[0] in command_line.NOT_OF_THE_RESULT
