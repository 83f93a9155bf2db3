"""The network of MTNAS as data: cells of a backbone and of a branch for each task, and how they are stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.architecture import Architecture, backbone_of, check_spec, specs_of, tasks_of
from mtlsearch.backbones import Backbone
from mtlsearch.nn.cells import Cell, check_pairs
from mtlsearch.searchers.trunk import BackboneTrunk, CellTrunk, MakeCell, check_layout
from mtlsearch.task import Task
from mtlsearch.tasks.boxes import Boxes

Cells = Mapping[str, Sequence[Sequence[Any]]]
"""A pair of cells: "normal" and "reduce", each a list of [operation, input node] in node order, two a node."""

BACKBONE = "backbone"
KINDS = ("normal", "reduce")


@dataclass(frozen=True)
class CellsArchitecture(Architecture):
    """Cells, and the network that is stacked of them.

    Args:
        layout: {"channels", "cells", "reductions", "detection_cells"}, see `CellsNetwork`.
        backbone: {"name", "arguments"} of a timm backbone that stands in place of a searched one, or None.
        backbone_cells: the cells of the backbone; None where there is another.
        branch_cells: by task, the cells of its branch; None for a task with a head on the backbone alone.
    """

    layout: dict[str, Any]
    backbone: dict[str, Any] | None
    backbone_cells: dict[str, list[list[Any]]] | None
    branch_cells: dict[str, dict[str, list[list[Any]]] | None]

    kind = "cells"

    def check(self) -> None:
        if not isinstance(self.layout, dict):
            raise ValueError(f"layout must be a dict, not {self.layout!r}.")
        try:
            check_layout(**self.layout)
        except TypeError as error:
            raise ValueError(f"layout: {error}.") from error
        check_spec(self.backbone)
        if self.backbone_cells is not None:
            check_cells("backbone_cells", self.backbone_cells)
        if not isinstance(self.branch_cells, dict) or self.branch_cells.keys() != self.tasks.keys():
            raise ValueError(f"branch_cells must name the tasks {list(self.tasks)}.")
        for task, cells in self.branch_cells.items():
            if cells is not None:
                check_cells(f"branch_cells of {task!r}", cells)

    def cells_of(self, owner: str) -> Cells | None:
        """Those of the backbone, or of a task's branch."""
        return self.backbone_cells if owner == BACKBONE else self.branch_cells[owner]

    def build(self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None) -> CellsNetwork:
        if self.backbone_cells is None:
            backbone = backbone_of(self.backbone, backbone)
        elif backbone is not None:
            raise ValueError("This architecture has a backbone of cells: no other can take its place.")
        return CellsNetwork(
            tasks_of(self, tasks), self.make_cell, backbone, without=self.branchless, **self.layout
        )

    @property
    def branchless(self) -> list[str]:
        """Tasks whose head stands on the backbone."""
        return [task for task, cells in self.branch_cells.items() if cells is None]

    def make_cell(
        self, owner: str, in_channels: tuple[int, int], channels: int, *, reduction: bool, **others: bool
    ) -> Cell:
        """A derived cell with fresh weights, as `CellsNetwork` asks for it."""
        cells = self.cells_of(owner)
        assert cells is not None
        pairs: Any = cells["reduce" if reduction else "normal"]
        return Cell(pairs, in_channels, channels, reduction=reduction, **others)


def cells_architecture(
    tasks: Sequence[Task],
    cells: Mapping[str, Cells | None],
    layout: Mapping[str, Any],
    backbone: dict[str, Any] | None = None,
) -> CellsArchitecture:
    """The data of a network: cells by their owner, "backbone" or a task's name."""
    plain: dict[str, Any] = {}
    for owner, own in cells.items():
        plain[owner] = own and {kind: [list(pair) for pair in own[kind]] for kind in KINDS}
    architecture = CellsArchitecture(
        tasks=specs_of(tasks),
        layout={**layout, "reductions": list(layout["reductions"])},
        backbone=backbone,
        backbone_cells=plain.get(BACKBONE),
        branch_cells={task.name: plain[task.name] for task in tasks},
    )
    architecture.check()
    return architecture


def check_cells(name: str, cells: Any) -> None:
    """Raise a ValueError that names what is wrong with a pair of cells."""
    if not isinstance(cells, Mapping) or set(cells) != set(KINDS):
        raise ValueError(f"{name} must have 'normal' and 'reduce', not {cells!r}.")
    for kind in KINDS:
        try:
            check_pairs(cells[kind])
        except ValueError as error:
            raise ValueError(f"{name}, {kind}: {error}") from error


class CellsNetwork(nn.Module):
    """A backbone, a branch of cells for each task, and the tasks' heads.

    A task for every pixel has a top-down path: a normal cell at every level, each fed one map twice, enlarged
    to the next finer level and added to it. Detection adds cells below the coarsest level, a reduction first; its
    head sees these, the coarsest level and the sums of the first dense task's path, or of a path of its own where
    there is none. A task for the whole image has one normal cell on the coarsest level.

    Args:
        tasks: K >= 1.
        make_cell: called as `make_cell(owner, in_channels, channels, reduction=..., ...)`, owner "backbone" or a
            task's name.
        backbone: in place of one of cells.
        without: names of tasks whose head stands on the backbone, without a branch.
        channels, cells, reductions: of the backbone, see `CellTrunk`.
        detection_cells: added for detection, at least 1.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        make_cell: MakeCell,
        backbone: Backbone | None = None,
        *,
        without: Sequence[str] = (),
        channels: int,
        cells: int,
        reductions: Sequence[int],
        detection_cells: int,
    ) -> None:
        super().__init__()
        check_layout(channels=channels, cells=cells, reductions=reductions, detection_cells=detection_cells)
        self.trunk: Any = (
            CellTrunk(make_cell, channels=channels, cells=cells, reductions=reductions)
            if backbone is None
            else BackboneTrunk(backbone)
        )
        levels, strides = self.trunk.channels, self.trunk.strides
        branched = [task for task in tasks if task.name not in without]
        dense = [task.name for task in branched if task.target.dense]
        self.path_of = {task.name: task.name for task in branched if task.target.dense}
        self.path_of |= {t.name: (dense or [t.name])[0] for t in branched if isinstance(t.target, Boxes)}
        self.paths: Any = nn.ModuleDict(
            {
                owner: TopDown(owner, make_cell, levels if owner in dense else levels[1:])
                for owner in dict.fromkeys(self.path_of.values())
            }
        )
        self.branches: Any = nn.ModuleDict()
        heads = {}
        for task in tasks:
            widths, steps = list(levels), list(strides)
            if task in branched and isinstance(task.target, Boxes):
                branch = Below(task.name, make_cell, (self.trunk.before, levels[-1]), detection_cells)
                widths = [*levels[1:], *branch.channels]
                steps = [*strides[1:], *(strides[-1] * 2 ** (i + 1) for i in range(detection_cells))]
                self.branches[task.name] = branch
            elif task in branched and task.target.dense:
                widths, steps = widths[:-1], steps[:-1]
            elif task in branched:
                inputs = (self.trunk.before, levels[-1])
                self.branches[task.name] = make_cell(
                    task.name, inputs, levels[-1] // 4, reduction=False, reduces_first=False, unpadded=False
                )
            heads[task.name] = Activated(task.head(widths, steps), widths)
        self.heads = nn.ModuleDict(heads)

    def forward(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Predictions by task, computing only what these need.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: all.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        levels, before = self.trunk(image)
        sums: dict[str, list[Tensor]] = {}
        for owner in dict.fromkeys(self.path_of[name] for name in wanted if name in self.path_of):
            # Detection does not look at the finest level.
            needed = levels if owner in wanted and owner not in self.branches else levels[1:]
            sums[owner] = self.paths[owner](needed)
        size = image.shape[-2:]
        predictions = {}
        for name in wanted:
            features = levels
            if name in self.path_of:
                features = sums[self.path_of[name]]
                if name in self.branches:
                    coarser = features[len(features) + 2 - len(levels) :]
                    features = [*coarser, levels[-1], *self.branches[name](before, levels[-1])]
            elif name in self.branches:
                features = [*levels[:-1], self.branches[name](before, levels[-1])]
            predictions[name] = self.heads[name](features, size)
        return predictions


class Activated(nn.Module):
    """A head that sees ReLU(BN(x)) of each level: a cell begins with its activations and ends without one.

    Ours: the authors' heads are linear on what cells hand on, with a BatchNorm behind them, and need long training.
    """

    def __init__(self, head: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in channels)
        self.head = head

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        prediction: Tensor = self.head([norm(x).relu() for norm, x in zip(self.norms, features)], size)
        return prediction


class TopDown(nn.Module):
    """A normal cell a level, from the coarsest to the finest, with the sums of a feature pyramid between them."""

    def __init__(self, owner: str, make_cell: MakeCell, channels: Sequence[int]) -> None:
        super().__init__()
        above = channels[-1]
        cells = []
        for width in reversed(channels[:-1]):
            cells.append(
                make_cell(
                    owner, (above, above), width // 4, reduction=False, reduces_first=False, unpadded=False
                )
            )
            above = width
        self.cells = nn.ModuleList(cells)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The sums at all levels but the coarsest, the finest first; the finest levels may be left out."""
        sums, x = [], levels[-1]
        for cell, level in zip(self.cells, reversed(levels[:-1])):
            x = level + F.interpolate(cell(x, x), size=level.shape[-2:], mode="nearest")
            sums.append(x)
        return sums[::-1]


class Below(nn.Module):
    """Detection's cells below the coarsest level: a reduction, then normal cells that shrink by two pixels.

    In the published network the second cell sees the coarsest level and the first cell, the third sees the second
    twice, and half as many channels from the second on.
    """

    def __init__(self, owner: str, make_cell: MakeCell, inputs: tuple[int, int], count: int) -> None:
        super().__init__()
        width = inputs[1] // 4
        first = make_cell(owner, inputs, width, reduction=True, reduces_first=False, unpadded=False)
        self.cells = nn.ModuleList([first])
        self.channels = [4 * width]
        before = inputs[1]
        for i in range(1, count):
            ends = (before, self.channels[-1])
            self.cells.append(
                make_cell(owner, ends, width // 2, reduction=False, reduces_first=i == 1, unpadded=True)
            )
            self.channels.append(4 * (width // 2))
            before = self.channels[-1]

    def forward(self, before: Tensor, coarsest: Tensor) -> list[Tensor]:
        x = self.cells[0](before, coarsest)
        outputs, other = [x], coarsest
        for cell in list(self.cells)[1:]:
            x = cell(other, x)
            outputs.append(x)
            other = x
        return outputs
