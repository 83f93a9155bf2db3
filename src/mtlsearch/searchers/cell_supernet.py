"""The search space of MTNAS: a network of cells in which some cells have every operation on every edge."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone
from mtlsearch.nn.categorical import Categorical, deterministic
from mtlsearch.nn.cells import EDGES, NODES, derive_pairs
from mtlsearch.nn.gates import Relaxation
from mtlsearch.nn.mixed import MixedCell
from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.searchers.cells import (
    KINDS,
    Cells,
    CellsArchitecture,
    CellsNetwork,
    cells_architecture,
)
from mtlsearch.supernet import Supernet
from mtlsearch.task import Task, check_tasks

NONE = OPERATIONS.index("none")
Drawn = dict[str, tuple[Tensor, Tensor | None]]
Pairs = list[list[Any]]


class CellGates(Categorical):
    """The gates of one kind of cell: an operation for each of its 14 edges.

    Args:
        normalize: edges have weights of their own, which sum to 1 over those into a node: PC-DARTS's edge
            normalisation, for partial channels.
        others: as for `Categorical`.
    """

    def __init__(self, *, normalize: bool = False, relaxation: Relaxation = deterministic) -> None:
        super().__init__(len(EDGES), len(OPERATIONS), relaxation=relaxation)
        self.edge_logits = nn.Parameter(torch.randn(len(EDGES)) * 1e-3) if normalize else None

    def edges(self) -> Tensor | None:
        """The edges' weights (14,)."""
        if self.edge_logits is None:
            return None
        parts = self.edge_logits.split(list(NODES))  # node n has n incoming edges
        return torch.cat([part.softmax(dim=0) for part in parts])

    def derive(self) -> Pairs:
        """The two strongest edges into each node with their strongest operations, by [operation, input]."""
        with torch.no_grad():
            return [list(pair) for pair in derive_pairs(self.probabilities(), self.edges())]

    def sample(self, generator: torch.Generator) -> Pairs:
        """As `derive`, of operations and edges that are drawn: two edges a node, in proportion to their weights."""
        with torch.no_grad():
            p = self.probabilities().cpu()
            edges = self.edges()
        p[:, NONE] = 0
        strength = p.sum(dim=1) * (1 if edges is None else edges.cpu())
        return draw(p, strength, generator)


def draw(operations: Tensor, edges: Tensor, generator: torch.Generator) -> Pairs:
    """A cell: two edges a node, drawn in proportion to `edges` (14,), with operations by `operations` (14, 8)."""
    pairs: Pairs = []
    for node in NODES:
        own = [i for i, (_, target) in enumerate(EDGES) if target == node]
        chosen = torch.multinomial(edges[own].clamp(min=1e-12), 2, generator=generator)
        for i in sorted(own[j] for j in chosen.tolist()):
            operation = torch.multinomial(operations[i].clamp(min=0), 1, generator=generator)
            pairs.append([OPERATIONS[int(operation)], EDGES[i][0]])
    return pairs


class SearchedCell(MixedCell):
    """A mixed cell that takes its gates from those that its supernet has drawn."""

    def __init__(self, drawn: Drawn, owner: str, key: str, *args: Any, **others: Any) -> None:
        super().__init__(*args, **others)
        self.drawn, self.owner, self.key = drawn, owner, key

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(s0, s1, *self.drawn[self.key])


class CellSupernet(Supernet):
    """A `CellsNetwork` whose cells are searched or fixed, by their owner.

    Args:
        tasks: K >= 1.
        searched: {owner: name of its gates}. Owners with the same name search one pair of cells together, as a
            branch does with the backbone that is built of its cells.
        fixed: {owner: its cells}; None for a task without a branch. Owners are "backbone" and the tasks' names.
        layout: as for `CellsNetwork`.
        backbone: in place of one of cells.
        partial: 1 / partial of a node's channels pass the operations (PC-DARTS), the others pass by.
        recompute: save memory and compute the operations again in the backward pass.
        relaxation: of the gates, see `mtlsearch.nn.categorical`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        searched: Mapping[str, str],
        fixed: Mapping[str, Cells | None],
        *,
        layout: Mapping[str, Any],
        backbone: Backbone | None = None,
        partial: int = 1,
        recompute: bool = False,
        relaxation: Relaxation = deterministic,
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        self.searched = dict(searched)
        self.fixed = dict(fixed)
        self.layout = dict(layout)
        self.backbone_spec = backbone.spec if backbone is not None else None
        self.exact = partial == 1
        self.gates: Any = nn.ModuleDict(
            {
                key: nn.ModuleDict(
                    {kind: CellGates(normalize=partial > 1, relaxation=relaxation) for kind in KINDS}
                )
                for key in dict.fromkeys(self.searched.values())
            }
        )
        self._drawn: Drawn = {}
        shown = self.architecture(self._cells())
        mixed = {"partial": partial, "recompute": recompute}

        def make_cell(owner: str, *args: Any, reduction: bool, **others: Any) -> nn.Module:
            if owner not in self.searched:
                return shown.make_cell(owner, *args, reduction=reduction, **others)
            key = f"{self.searched[owner]}.{KINDS[reduction]}"
            return SearchedCell(self._drawn, owner, key, *args, reduction=reduction, **others, **mixed)

        self.network = CellsNetwork(self.tasks, make_cell, backbone, without=shown.branchless, **self.layout)

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Architecture | None = None
    ) -> dict[str, Tensor]:
        for name, kinds in self.gates.items():
            for kind, gate in kinds.items():
                key = f"{name}.{kind}"
                if gates is None:
                    self._drawn[key] = (gate(), gate.edges())
                else:
                    owner = next(owner for owner, own in self.searched.items() if own == name)
                    cells = CellsArchitecture.of(gates).cells_of(owner)
                    if cells is None:
                        raise ValueError(f"The architecture has no cells of {owner!r}.")
                    self._drawn[key] = (hard(cells[kind], gate.logits), None)
        predictions: dict[str, Tensor] = self.network(image, tasks)
        return predictions

    def arch_parameters(self) -> list[nn.Parameter]:
        return list(self.gates.parameters())

    def derive(self) -> CellsArchitecture:
        return self.architecture(self._cells())

    def sample(self, generator: torch.Generator) -> CellsArchitecture:
        drawn = {
            key: {kind: gate.sample(generator) for kind, gate in kinds.items()}
            for key, kinds in self.gates.items()
        }
        return self.architecture(self.fixed | {owner: drawn[key] for owner, key in self.searched.items()})

    def _cells(self) -> dict[str, Cells | None]:
        found = {
            key: {kind: gate.derive() for kind, gate in kinds.items()} for key, kinds in self.gates.items()
        }
        return self.fixed | {owner: found[key] for owner, key in self.searched.items()}

    def architecture(self, cells: Mapping[str, Cells | None]) -> CellsArchitecture:
        """The architecture with these cells, by their owners."""
        return cells_architecture(self.tasks, cells, self.layout, self.backbone_spec)

    def extract(self, architecture: Architecture) -> CellsNetwork:
        """The network of an architecture of this space, with the trained weights copied.

        With partial channels a derived cell's operations are larger than the searched ones: they start anew.
        """
        chosen = CellsArchitecture.of(architecture)
        derived = {}
        for cell in self.network.modules():
            if isinstance(cell, SearchedCell):
                cells = chosen.cells_of(cell.owner)
                if cells is None:
                    raise ValueError(f"The architecture has no cells of {cell.owner!r}.")
                derived[id(cell)] = cell.extract(cells[cell.key.rpartition(".")[2]])
        # What is in the memo already is taken for the copy.
        return copy.deepcopy(self.network, dict(derived))

    def derived_weights(self) -> dict[str, Tensor]:
        """The state of the derived network, without what starts anew in it."""
        anew: tuple[str, ...] = ()
        if not self.exact:
            cells = (n for n, module in self.network.named_modules() if isinstance(module, SearchedCell))
            anew = tuple(f"{name}.operations." for name in cells)
        state = self.extract(self.derive()).state_dict()
        return {name: value for name, value in state.items() if not name.startswith(anew)}


def hard(pairs: Sequence[Sequence[Any]], like: Tensor) -> Tensor:
    """The gates (14, 8) that are 1 for these [operation, input] and 0 elsewhere."""
    gates = torch.zeros_like(like)
    for i, (operation, source) in enumerate(pairs):
        gates[EDGES.index((source, 2 + i // 2)), OPERATIONS.index(operation)] += 1
    return gates
