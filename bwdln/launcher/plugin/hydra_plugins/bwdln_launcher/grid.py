"""`hydra/sweeper=grid`: every combination of the values, with options that move together, and a dry run."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    """`params`, `max_batch_size`: as with Hydra's basic sweeper.

    `zip`: names of options that move together, or several lists of such. `dry_run`: show, do not run. An
    application may offer both as options of its own, `sweep.zip` and `sweep.dry_run`.
    """

    _target_: str = "hydra_plugins.bwdln_launcher.grid.GridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    zip: Any = "${oc.select:sweep.zip,[]}"
    dry_run: Any = "${oc.select:sweep.dry_run,false}"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConf, provider="bwdln")


class GridSweeper(Sweeper):
    """Hands all jobs to the launcher, and composes none of them itself."""

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        zip: Any = (),
        dry_run: bool = False,
    ) -> None:
        self.max_batch_size, self.params, self.dry_run = max_batch_size, params or {}, dry_run
        self.zip = list(zip or ())

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives every sweeper, and make the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run every job, those after a failed one too; then raise what the first that failed raised."""
        from bwdln.launcher import grid

        return grid.sweep(self, arguments)
