"""`hydra/launcher=batched`: the jobs of a sweep run together, if the task says how (`bwdln.batching`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class BatchedLauncherConf:
    """It has no options: a task has those of its batches in its own configuration."""

    _target_: str = "hydra_plugins.bwdln_launcher.batched.BatchedLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="batched", node=BatchedLauncherConf, provider="bwdln"
)


class BatchedLauncher(Launcher):
    """Composes all jobs at once and cheaply, and hands them to the task in one call."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives every launcher."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what failed is told by the status of its return."""
        from bwdln.launcher import core

        return core.launch(self, job_overrides, initial_job_idx)

    def plan(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> bool:
        """Let the task show what it would run; whether it can."""
        from bwdln.launcher import core

        return core.plan(self, job_overrides, initial_job_idx)
