"""MultiTask: trains and evaluates any network that maps an image to one prediction a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlsearch.balancing import Balancing, Fixed, Step
from mtlsearch.budget import GROUPS, ImageCount
from mtlsearch.checks import check_epoch, check_finite, checked_batch
from mtlsearch.namespace import pl, rank_zero_info
from mtlsearch.nn.statistics import average_buffers
from mtlsearch.optimizers import ADAMW, MakeOptimizer, add_learnt, bare, poly, scaled_optimizer
from mtlsearch.task import Task, check_tasks
from mtlsearch.tasks.evaluation import Evaluation

Batch = Mapping[str, Any]
FIXED = Fixed()


def parts_of(batch: Batch) -> list[Batch]:
    """The batches of different images that one step takes: of {"parts": [...]} those, else the batch itself."""
    return list(batch["parts"]) if isinstance(batch, Mapping) and batch.keys() == {"parts"} else [batch]


class MultiTask(pl.LightningModule):
    """Trains a network on the weighted sum of its tasks' losses.

    Any Trainer will do. Learning rates follow `schedule`; everything random in a step depends on `seed`, the
    epoch and the batch only, so a training that is resumed from the checkpoint of an epoch continues as if
    it had not been stopped. A validation logs `val/{task}/{metric}` and `val/loss`, a test `test/...`.

    Args:
        network: `network(image, tasks) -> {task: prediction}`.
        tasks: what it predicts.
        optimizer: makes the optimiser from parameter groups. A module may declare `lr_factors`, {"weight":
            10.0}: factors on the learning rate of its own parameters.
        schedule: from progress in [0, 1] to a factor on the learning rate.
        balancing: of the tasks' losses, see `mtlsearch.balancing`; by default the sum of them, each times
            `Task.weight`. Arch parameters always descend on that sum.
        clip: largest norm of the weights' gradient; 0: unlimited.
        accumulate: batches a step.
        seed: of dropout and whatever else the network draws.
        unpack: turns a batch of a foreign format into ours: {"image": (B, 3, H, W), task: target, ...}.
        stage: what this training is called in a run.
    """

    recomputes_statistics = False
    """Whether a run computes BatchNorm's running statistics anew for the finished network."""
    single_task_backbone_params: int | None = None
    """Parameters of the backbones of single-task networks, heads left out, to compare with."""
    inherited_run: Path | None = None
    """The run whose weights the training begins with, if it does with those of one."""

    def __init__(
        self,
        network: nn.Module,
        tasks: Sequence[Task],
        *,
        optimizer: MakeOptimizer = ADAMW,
        schedule: Callable[[float], float] = poly,
        balancing: Balancing | None = None,
        clip: float = 0.0,
        accumulate: int = 1,
        seed: int = 0,
        unpack: Callable[[Any], Batch] | None = None,
        stage: str = "train",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = network
        self.tasks = check_tasks(tasks)
        self.optimizer = optimizer
        self.schedule = schedule
        self.balancing = (balancing or FIXED).for_tasks(self.tasks)
        self.clip = clip
        self.accumulate = accumulate
        self.seed = seed
        self.unpack = unpack
        self.stage = stage
        self._metrics: Any = nn.ModuleDict({split: Evaluation(self.tasks) for split in ("val", "test")})
        self._seen: dict[str, Tensor] = {}
        self._values: dict[str, Tensor] = {}
        self.images = ImageCount(self.tasks)

    # What a kind of training overrides.

    def groups(self, epoch: int) -> tuple[str, ...]:
        """The parameter groups that a step of this epoch updates, in order."""
        return ("weights",)

    def active_tasks(self, labelled: list[Task], batch_index: int) -> list[Task]:
        """The tasks whose losses a step takes, of those that have targets in its batch."""
        return labelled

    def parameters_of(self, group: str) -> list[nn.Parameter]:
        """The parameters of a group."""
        return list(self.net.parameters())

    def train_data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        """The data that this stage trains on, made from those of the run."""
        return datamodule

    def network(self) -> nn.Module:
        """What the training ends in: `network(image, tasks=None) -> {task: prediction}`."""
        return self.net

    # Training.

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizer = scaled_optimizer(self.optimizer, self.net, self.parameters_of("weights"))
        return [add_learnt(optimizer, self.balancing)]

    def progress(self, batch_index: int) -> float:
        """How much of the training is over before this batch of the current epoch, in [0, 1]."""
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 0:
            if self.trainer.max_steps < 0:
                raise ValueError(
                    "Learning rates follow the progress of the training, which has no end: give the Trainer "
                    "max_epochs or max_steps."
                )
            return min(self.global_step / max(self.trainer.max_steps, 1), 1.0)
        return (self.current_epoch + batch_index / self.trainer.num_training_batches) / epochs

    def on_train_epoch_start(self) -> None:
        self._seen = {task.name: torch.zeros((), device=self.device) for task in self.tasks}
        self.images.start(self.device)

    def on_train_epoch_end(self) -> None:
        self.images.finish()
        average_buffers(self.net)
        self.balancing.end_epoch()
        check_epoch(self._seen, self.net, self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images"] = self.images.by_group

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images.by_group = checkpoint["images"]

    def training_step(self, batch: Any, batch_index: int) -> None:
        self.update("weights", self._checked(batch), batch_index)

    def update(self, group: str, batch: Batch, batch_index: int) -> None:
        """One update of a group's parameters on one batch."""
        number = GROUPS.index(group)
        self.seed_step(batch_index, group)
        self.images.see(group, parts_of(batch), self.active(batch, batch_index))
        progress = self.progress(batch_index)
        terms = self.terms(group, batch, batch_index)
        optimizers = self.optimizers()
        optimizer = optimizers[number] if isinstance(optimizers, list) else optimizers
        last = batch_index + 1 == self.trainer.num_training_batches
        step = Step(
            terms,
            self._values,
            [p for parameters in optimizer.param_groups for p in parameters["params"]],
            self.manual_backward,
            self.accumulate,
            ends=last or (batch_index + 1) % self.accumulate == 0,
            progress=progress,
            precision=str(self.trainer.precision),
        )
        factors = (self.balancing if group == "weights" else FIXED).backward(step)
        for name, factor in factors.items():
            self.log(f"train/weight/{name}", factor, on_step=False, on_epoch=True, batch_size=1)
        if step.ends:
            for parameters in optimizer.param_groups:
                parameters["lr"] = parameters["initial_lr"] * self.schedule_of(group, progress)
            optimizer.step()
            optimizer.zero_grad()

    def seed_step(self, batch_index: int, group: str) -> None:
        """Seed what an update draws, the same on all processes."""
        seed = np.random.SeedSequence([self.seed, self.current_epoch, batch_index, GROUPS.index(group)])
        torch.manual_seed(int(seed.generate_state(1)[0]))

    def schedule_of(self, group: str, progress: float) -> float:
        """The factor on a group's learning rates."""
        return self.schedule(progress)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip and optimizer is bare(self.optimizers())[0]:
            groups = [group for group in optimizer.param_groups if group.get("clipped", True)]
            parameters = [p for group in groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)

    def terms(self, group: str, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """What an update minimises the sum of, by name: here the weighted loss of each task."""
        active = self.active(batch, batch_index)
        predictions: dict[str, Tensor] = {}
        targets: dict[str, Any] = {}
        for part in parts_of(batch):
            own = {name: part[name] for name in active if name in part}
            if own:
                predictions |= self.net(part["image"], list(own))
                targets |= own
        if not predictions:
            raise ValueError(
                f"The step of epoch {self.current_epoch}, batch {batch_index} takes the losses of {active}, for "
                "which the batch has no target: let every batch have one, as PerTask(..., together=True) does."
            )
        terms, means = self.losses(predictions, targets)
        for name, mean in means.items():
            self.log(f"train/{group}/{name}", mean, on_step=False, on_epoch=True, batch_size=1)
        self.check_finite(means, group, batch_index)
        return terms

    def active(self, batch: Batch, batch_index: int) -> list[str]:
        """The names of the tasks whose losses a step takes."""
        labelled = [task for task in self.tasks if any(task.name in part for part in parts_of(batch))]
        return [task.name for task in self.active_tasks(labelled, batch_index)]

    def losses(
        self, predictions: Mapping[str, Tensor], batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each predicted task's weighted loss to descend on, and its plain mean to look at.

        Both are means over the labelled entries of all processes: gradients, which DDP averages, come out as
        those of one process with all the data. A task whose targets are in another process only has the mean.
        """
        sums = torch.zeros(2, len(self.tasks), device=self.device)
        totals = {}
        for i, task in enumerate(self.tasks):
            if task.name in predictions and task.name in batch:
                totals[task.name], count = task.loss(predictions[task.name], batch[task.name])
                sums[0, i], sums[1, i] = totals[task.name].detach(), count
        world = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            world = dist.get_world_size()
        terms, means = {}, {}
        self._values = {}
        there = (sums[1] > 0).tolist()
        for i, task in enumerate(self.tasks):
            count = sums[1, i].clamp(min=1)
            if task.name in totals:
                terms[task.name] = task.weight * totals[task.name] * (world / count)
            if task.name in totals or there[i]:
                means[task.name] = sums[0, i] / count
            if there[i]:
                self._values[task.name] = task.weight * means[task.name]
            if task.name in self._seen:
                self._seen[task.name] += sums[1, i]
        return terms, means

    def check_finite(self, values: Mapping[str, Tensor], group: str, batch_index: int) -> None:
        """Raise a ValueError that names step and term where a value is not a finite number."""
        where = f"epoch {self.current_epoch}, batch {batch_index}, in the update of the {group}"
        check_finite(values, where)

    def _checked(self, batch: Any) -> Batch:
        return checked_batch(batch, self.tasks, self.unpack)

    # Evaluation.

    def on_validation_epoch_start(self) -> None:
        average_buffers(self.net)
        # Not at the end: what Trainer.validate resets there are inference tensors, of no use to a fit.
        self._metrics["val"].reset()

    def on_test_epoch_start(self) -> None:
        self._metrics["test"].reset()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_index: int) -> None:
        self._evaluate("test", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def forward(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        predictions: dict[str, Tensor] = self.net(image, tasks)
        return predictions

    def _evaluate(self, split: str, batch: Any) -> None:
        batch = self._checked(batch)
        names = [task.name for task in self.tasks if task.name in batch]
        self._metrics[split].update(self.net(batch["image"], names), batch)

    def _log_metrics(self, split: str) -> None:
        values, missing = self._metrics[split].compute()
        if not self.trainer.sanity_checking:
            for name in missing:
                rank_zero_info(f"No finite {split} loss for task {name!r}: it has no label there.")
        logged = {f"{split}/{name}": value for name, value in values.items()}
        self.log_dict(logged, sync_dist=dist.is_available() and dist.is_initialized())
