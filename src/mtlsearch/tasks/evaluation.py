"""The loss and the metrics of all tasks over a split of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtlsearch.task import Task
from mtlsearch.tasks.metrics import shared


class Evaluation(nn.Module):
    """Gathers over batches what the tasks' losses and metrics need.

    Args:
        tasks: those that are predicted. A batch may have targets of some of them only.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        made = {task.name: shared([make() for make in task.metrics.values()]) for task in self.tasks}
        self.losses: Any = nn.ModuleDict({name: MeanLoss() for name in made})
        self.metrics: Any = nn.ModuleDict({name: nn.ModuleList(metrics) for name, metrics in made.items()})

    def reset(self) -> None:
        """Begin anew."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()

    def update(self, predictions: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Take a batch into account: predictions of the tasks that it has targets of."""
        for task in self.tasks:
            loss = self.losses[task.name]
            if task.name not in predictions:
                loss.update(torch.zeros(()), torch.zeros(()))
                continue
            prediction, target = predictions[task.name], batch[task.name]
            loss.update(*task.loss(prediction, target))
            for metric in self.metrics[task.name]:
                metric.update(prediction.float(), target)

    def compute(self) -> tuple[dict[str, Tensor], list[str]]:
        """{"{task}/{metric}": value, "loss": the weighted sum of the tasks' losses}, and the tasks without a finite
        loss, which are left out. A metric is left out where it is NaN: of a class that is not there."""
        total, values, missing = 0.0, {}, []
        for task in self.tasks:
            mean = self.losses[task.name].compute()
            if not mean.isfinite():
                missing.append(task.name)
                continue
            total += task.weight * mean
            for name, metric in zip(task.metrics, self.metrics[task.name]):
                value = metric.compute()
                if not value.isnan():
                    values[f"{task.name}/{name}"] = value
        return {**values, "loss": torch.as_tensor(total)}, missing


class MeanLoss(Metric):
    """The mean of a loss over all labelled entries, from sums and counts."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor) -> None:
        self.total += total.detach()
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count
