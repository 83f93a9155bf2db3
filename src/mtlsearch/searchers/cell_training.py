"""What follows a search for cells: training of the derived network, from the weights that were searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mtlsearch.multitask import MultiTask
from mtlsearch.namespace import pl, rank_zero_info
from mtlsearch.nn.mixed import MixedCell
from mtlsearch.searchers.cell_supernet import CellSupernet
from mtlsearch.searchers.cells import BACKBONE
from mtlsearch.task import Task


class CellTraining(MultiTask):
    """Training of a network of cells, with BatchNorm over all processes on CUDA.

    Args:
        network, tasks: as for `MultiTask`.
        datamodule: to train and validate on in place of the run's.
        training: as for `MultiTask`.
    """

    def __init__(
        self, network: nn.Module, tasks: Sequence[Task], *, datamodule: Any = None, **training: Any
    ) -> None:
        super().__init__(network, tasks, **training)
        self._datamodule = (datamodule,)  # in a tuple, lest it count as a part of this module

    def train_data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        own: pl.LightningDataModule = self._datamodule[0] or datamodule
        return own

    def setup(self, stage: str) -> None:
        if stage == "fit":
            synchronize(self.net, self.trainer)


def synchronize(network: nn.Module, trainer: pl.Trainer) -> None:
    """Let BatchNorm take its statistics over all processes, where there are several and they are on CUDA.

    torch has this for CUDA alone. Mixed cells keep the statistics of each process, which are averaged at the end of
    an epoch.
    """
    if trainer.world_size > 1 and trainer.strategy.root_device.type == "cuda":
        convert(network)


def convert(network: nn.Module) -> None:
    """Make every BatchNorm a synchronised one, in place, but those in mixed cells."""
    from timm.layers.norm_act import (
        convert_sync_batchnorm,
    )  # which keeps timm's activations, as torch's does not

    for name, child in network.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(network, name, convert_sync_batchnorm(child))
        elif not isinstance(child, MixedCell):
            convert(child)


class Inheritance:
    """Weights that pass from stage to stage, by their names."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.carried: dict[str, set[str]] = {}
        """By stage, the stages whose weights its network has, itself included."""
        self._origins: dict[str, set[str]] = {}

    def keep(self, module: nn.Module, stage: str, parts: Sequence[str]) -> None:
        """Keep these parts of a stage's network, or of its search space and of the network derived from that."""
        before = dict(self.weights)
        self._keep(module, parts)
        changed = [name for name, value in self.weights.items() if before.get(name) is not value]
        self._origins |= dict.fromkeys(changed, self.carried.setdefault(stage, {stage}))

    def _keep(self, module: nn.Module, parts: Sequence[str]) -> None:
        own = module.state_dict()
        if not isinstance(module, CellSupernet):
            prefixes = tuple(f"{part}." for part in parts)
            self.weights |= {name: value for name, value in own.items() if name.startswith(prefixes)}
            return
        for name, value in module.derived_weights().items():
            if name.startswith(tuple(f"{part}." for part in parts)):
                self.weights |= {name: value, f"network.{name}": value}
        prefixes = (f"gates.{BACKBONE}.", *(f"network.{part}." for part in parts))
        self.weights |= {name: value for name, value in own.items() if name.startswith(prefixes)}

    def hand_to(self, module: nn.Module, stage: str) -> None:
        """Copy what fits, and say how much did."""
        own = module.state_dict()
        fitting = {k: v for k, v in self.weights.items() if k in own and own[k].shape == v.shape}
        self.carried[stage] = {stage}.union(*(self._origins[name] for name in fitting))
        if not fitting:
            return
        module.load_state_dict(fitting, strict=False)
        parameters = dict(module.named_parameters())
        taken = sum(parameters[name].numel() for name in fitting if name in parameters)
        total = sum(parameter.numel() for parameter in parameters.values())
        rank_zero_info(
            f"{stage}: starts from {taken:,} of its {total:,} parameters as they were searched, "
            f"{100 * taken / total:.0f} %."
        )
