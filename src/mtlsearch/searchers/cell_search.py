"""One stage of a search for cells: DARTS on any `CellSupernet`, with early stopping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlsearch.data.bilevel import Bilevel
from mtlsearch.multitask import Batch, parts_of
from mtlsearch.namespace import pl, rank_zero_info
from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.searcher import Searcher
from mtlsearch.searchers.cell_supernet import CellSupernet
from mtlsearch.searchers.cell_training import synchronize
from mtlsearch.searchers.cells import KINDS
from mtlsearch.searchers.ranges import check_ranges, check_temperatures
from mtlsearch.task import Task

EPSILON = 0.01


class CellSearch(Searcher):
    """Searches the cells of a supernet (MTNAS Eq. 1), each group of parameters on its own part of the data.

    Args:
        supernet: with cells to search.
        tasks: K >= 1.
        datamodule: to train and validate on in place of the run's.
        in_turn: a step takes the loss of one task only, of each in turn, as MTNAS's backbone search does.
        train_branches: False trains the weights of backbone and heads alone.
        patience: stop when the derived cells have not changed for so many epochs (the paper's K = 10); 0: never.
        min_epochs: but not before so many.
        max_skips: stop when a derived normal cell holds more skip connections (the paper's T = 2); None: never.
        max_steps: stop after so many steps, to be reached within the Trainer's epochs; None: never.
        second_order: the arch parameters' gradient looks through one step of the weights (DARTS Eq. 7 and 8).
        entropy_weight: γ >= 0, on the mean entropy of an edge in nats, as in MTL-NAS.
        temperature, temperature_end: of relaxations that draw, falling by the same factor in every step.
        arch_fraction: of the training data for the arch parameters, in (0, 1).
        training: as for `Searcher` and `MultiTask`.

    Raises:
        ValueError: a value out of range.
    """

    net: CellSupernet
    unchanged: Tensor
    stopped: Tensor
    genotype: Tensor

    def __init__(
        self,
        supernet: CellSupernet,
        tasks: Sequence[Task],
        *,
        datamodule: Any = None,
        in_turn: bool = False,
        train_branches: bool = True,
        patience: int = 10,
        min_epochs: int = 5,
        max_skips: int | None = None,
        max_steps: int | None = None,
        second_order: bool = False,
        entropy_weight: float = 0.0,
        temperature: float = 5.0,
        temperature_end: float = 0.1,
        arch_fraction: float = 0.5,
        **training: Any,
    ) -> None:
        check_ranges(
            {"patience": patience, "min_epochs": min_epochs, "entropy_weight": entropy_weight}, low=0
        )
        check_temperatures(temperature, temperature_end)
        if second_order and training.get("accumulate", 1) > 1:
            raise ValueError("second_order looks through one step on one batch: leave accumulate at 1.")
        super().__init__(supernet, tasks, **training)
        self._datamodule = (datamodule,)  # in a tuple, lest it count as a part of this module
        self.in_turn = in_turn
        self.train_branches = train_branches
        self.patience = patience
        self.min_epochs = min_epochs
        self.max_skips = max_skips
        self.max_steps = max_steps
        self.second_order = second_order
        self.entropy_weight = entropy_weight
        self.temperatures = (temperature, temperature_end)
        self.arch_fraction = arch_fraction
        self._weights_batch: Batch = {}
        self.register_buffer("unchanged", torch.zeros((), dtype=torch.long))
        self.register_buffer("stopped", torch.zeros((), dtype=torch.bool))
        self.register_buffer("genotype", self._genotype())

    def setup(self, stage: str) -> None:
        if stage == "fit":
            synchronize(self.net, self.trainer)

    # The data and the schedule.

    def train_data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        return Bilevel(
            self._datamodule[0] or datamodule,
            arch_fraction=self.arch_fraction,
            tasks=[task.name for task in self.tasks],
            seed=self.seed,
        )

    def active_tasks(self, labelled: list[Task], batch_index: int) -> list[Task]:
        if not self.in_turn or not labelled:
            return labelled
        step = self.current_epoch * int(self.trainer.num_training_batches) + batch_index
        return [labelled[step % len(labelled)]]

    def parameters_of(self, group: str) -> list[nn.Parameter]:
        parameters = super().parameters_of(group)
        if group == "arch" or self.train_branches:
            return parameters
        fixed = {
            id(p) for part in (self.net.network.branches, self.net.network.paths) for p in part.parameters()
        }
        return [parameter for parameter in parameters if id(parameter) not in fixed]

    def anneal(self, progress: float) -> None:
        start, end = self.temperatures
        for kinds in self.net.gates.values():
            for gate in kinds.values():
                gate.temperature.fill_(start * (end / start) ** progress)

    def regularization(self, progress: float) -> dict[str, Tensor]:
        gates = [gate for kinds in self.net.gates.values() for gate in kinds.values()]
        entropy = torch.stack([gate.entropy() for gate in gates]).mean()
        self.log("train/entropy", entropy.detach(), on_step=False, on_epoch=True, batch_size=1)
        return {"entropy": self.entropy_weight * entropy} if self.entropy_weight else {}

    # Second order.

    def _split(self, batch: Any, groups: tuple[str, ...]) -> dict[str, Batch]:
        parts = super()._split(batch, groups)
        self._weights_batch = parts.get("weights", {})
        return parts

    def arch_step(self, batch: Batch, batch_index: int) -> None:
        if self.second_order:
            self._unrolled_step(batch, batch_index)
        else:
            super().arch_step(batch, batch_index)

    def _unrolled_step(self, batch: Batch, batch_index: int) -> None:
        """DARTS Eq. 7, its matrix-vector product by finite differences (Eq. 8).

        The step that it looks through is one of plain gradient descent at the weights' learning rate.
        """
        self.images.see("arch", parts_of(batch), self.active(batch, batch_index))
        arch, weights = self.net.arch_parameters(), self.parameters_of("weights")
        optimizers: Any = self.optimizers()
        rate = optimizers[0].param_groups[0]["lr"]

        def gradients(of: Sequence[nn.Parameter], group: str, batch: Batch) -> list[Tensor]:
            self.seed_step(batch_index, "arch")
            loss = torch.stack(list(self.terms(group, batch, batch_index).values())).sum()
            found = torch.autograd.grad(loss, of, allow_unused=True)
            return averaged([torch.zeros_like(p) if g is None else g for p, g in zip(of, found)])

        for parameter in weights:
            parameter.requires_grad_(True)
        kept = [parameter.detach().clone() for parameter in weights]
        step = gradients(weights, "weights", self._weights_batch)
        move(weights, kept, step, -rate)
        both = gradients([*arch, *weights], "arch", batch)
        direct, direction = both[: len(arch)], both[len(arch) :]
        epsilon = EPSILON / float(torch.stack([d.norm() for d in direction]).norm().clamp(min=1e-12))
        move(weights, kept, direction, epsilon)
        up = gradients(arch, "weights", self._weights_batch)
        move(weights, kept, direction, -epsilon)
        down = gradients(arch, "weights", self._weights_batch)
        move(weights, kept, direction, 0.0)
        for parameter in weights:
            parameter.requires_grad_(False)
        for parameter, own, p, n in zip(arch, direct, up, down):
            parameter.grad = own - rate * (p - n) / (2 * epsilon)
        optimizers[1].step()
        optimizers[1].zero_grad()

    # When it is over.

    def on_train_start(self) -> None:
        if self.stopped:  # a finished stage that is resumed
            self.trainer.should_stop = True

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        step = self.current_epoch * int(self.trainer.num_training_batches) + batch_index + 1
        if self.max_steps is not None and step >= self.max_steps:
            self._stop(f"{step} steps")

    def on_train_epoch_end(self) -> None:
        if self.in_turn and self.trainer.num_training_batches < len(self.tasks):
            self._seen = {
                name: count for name, count in self._seen.items() if count
            }  # not all had their turn
        super().on_train_epoch_end()
        found = self._genotype()
        self.unchanged.fill_(int(self.unchanged) + 1 if torch.equal(found, self.genotype) else 0)
        self.genotype.copy_(found)
        epochs = self.current_epoch + 1
        for name, kinds in self.net.gates.items():
            for kind, gate in kinds.items():
                for operation, p in zip(OPERATIONS, gate.probabilities().mean(dim=0).tolist()):
                    self.log(f"arch/{name}/{kind}/{operation}", p)
        if epochs >= self.min_epochs:
            skips = max(
                sum(name == "skip_connect" for name, _ in kinds["normal"].derive())
                for kinds in self.net.gates.values()
            )
            if self.patience and self.unchanged >= self.patience:
                self._stop(f"the cells have not changed for {int(self.unchanged)} epochs")
            elif self.max_skips is not None and skips > self.max_skips:
                self._stop(f"the normal cell holds {skips} skip connections")

    def _stop(self, why: str) -> None:
        if not self.stopped:
            self.stopped.fill_(True)
            self.trainer.should_stop = True
            rank_zero_info(f"{self.stage}: done after {self.current_epoch + 1} epochs: {why}.")

    def _genotype(self) -> Tensor:
        """All derived cells as numbers."""
        pairs = [
            (OPERATIONS.index(operation), source)
            for kinds in self.net.gates.values()
            for kind in KINDS
            for operation, source in kinds[kind].derive()
        ]
        return torch.tensor(pairs, dtype=torch.long)


def move(
    parameters: Sequence[nn.Parameter], start: Sequence[Tensor], direction: Sequence[Tensor], scale: float
) -> None:
    """Set parameters to start + scale * direction."""
    with torch.no_grad():
        for parameter, value, change in zip(parameters, start, direction):
            parameter.copy_(value if scale == 0 else value + scale * change)


def averaged(gradients: list[Tensor]) -> list[Tensor]:
    """Their mean over all processes."""
    if dist.is_available() and dist.is_initialized():
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    return gradients
