"""MTNAS: the cells of a backbone that tasks share, and of a branch for each of them.

Liu, Li, Peng, Zhao, Tian and Shan, "MTNAS: Search Multi-Task Networks for Autonomous Driving", ACCV 2020. First
the branches are searched one by one, each on a backbone of its own cells; then the backbone, on an auxiliary image
classification and with one task's loss a step; then all weights are finetuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone, load
from mtlsearch.balancing import Balancing
from mtlsearch.multitask import MultiTask
from mtlsearch.nn.categorical import RELAXATIONS
from mtlsearch.nn.gates import Relaxation, relaxation_of
from mtlsearch.optimizers import MakeOptimizer
from mtlsearch.searchers.cell_search import CellSearch
from mtlsearch.searchers.cell_supernet import CellSupernet
from mtlsearch.searchers.cell_training import CellTraining, Inheritance
from mtlsearch.searchers.cells import BACKBONE, Cells, CellsArchitecture, cells_architecture
from mtlsearch.searchers.genotypes import HANDMADE
from mtlsearch.task import Task, check_tasks

SGD: MakeOptimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=3e-5)
ARCH_ADAM: MakeOptimizer = partial(torch.optim.Adam, lr=0.03, betas=(0.5, 0.999))
METHODS = ("two_stage", "together", "proxy")


class MTNAS(CellSearch):
    """Searches cells for branches and backbone, then finetunes the network.

    In a run, stage "branch_TASK" searches a branch, "presearch" the backbone on the auxiliary data, "backbone"
    goes on from there with the tasks' losses in turn, "pretrain" (if wanted) trains the backbone that was found on
    the auxiliary data, and "finetune" trains the whole network, by default from every searched weight that fits. A
    bare `Trainer.fit` is the stage "backbone" alone.

    Args:
        tasks: K >= 1, for every pixel, for the image, or detection.
        backbone: name of a timm model, or a `Backbone`, on which branches are searched; the backbone is not
            (Table 1, "w/o backbone search"). None: it is searched.
        pretrained: of a timm backbone: start from timm's weights.
        method: "two_stage", the paper's; "together" searches branches and backbone at the same time (Table 1,
            "Co-search"); "proxy" searches on the auxiliary data alone and uses these cells everywhere (Table 1,
            "Search on proxy tasks": DARTS; with `partial` PC-DARTS; with `max_skips` DARTS+). "Random search" is
            `RandomSearch`.
        search_branches: False takes `branches`.
        presearch, search_backbone: which of the two searches of the backbone take place.
        pretrain: train the derived backbone's weights on the auxiliary data before finetuning.
        inherit: finetuning starts from the searched weights that fit (Algorithm 1); False: from the network's own
            initialisation, as DARTS's evaluation, so that its weights see the images of that stage alone.
        branches: by task, the cells that it has where they are not searched; by default plain ones for all.
        auxiliary: a datamodule of one image-classification task; by default rendered shapes.
        channels, cells, reductions, detection_cells: the layout, see `CellsNetwork`.
        partial: 1 / partial of the channels pass the operations (PC-DARTS); 1: all.
        recompute: save memory while searching, at the cost of time.
        relaxation: "deterministic" (softmax), "concrete" (Gumbel-softmax), or a function of (logits, temperature).
        patience, min_epochs, max_steps: when the searches stop, see `CellSearch`; max_steps may be {stage: steps},
            "branch" standing for all branches.
        max_skips: when the pre-search stops, T.
        train_branches: whether the search of the backbone trains the branches' weights.
        finetune_optimizer: for pre-training and finetuning; by default that of the search.
        balancing: of the tasks' losses in finetuning; while it searches there is one loss a step.
        training: as for `CellSearch`, `Searcher` and `MultiTask`.

    Raises:
        ValueError: a value out of range, an unknown name, a backbone beside a search of the backbone.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone | None = None,
        *,
        pretrained: bool = False,
        method: str = "two_stage",
        search_branches: bool = True,
        presearch: bool = True,
        search_backbone: bool = True,
        pretrain: bool = False,
        inherit: bool = True,
        branches: Mapping[str, Cells] | None = None,
        auxiliary: Any = None,
        channels: int = 8,
        cells: int = 6,
        reductions: Sequence[int] = (2, 4),
        detection_cells: int = 1,
        partial: int = 1,
        recompute: bool = False,
        relaxation: str | Relaxation = "deterministic",
        max_steps: int | Mapping[str, int] | None = None,
        max_skips: int | None = 2,
        train_branches: bool = True,
        finetune_optimizer: MakeOptimizer | None = None,
        balancing: Balancing | None = None,
        optimizer: MakeOptimizer = SGD,
        arch_optimizer: MakeOptimizer = ARCH_ADAM,
        seed: int = 0,
        **training: Any,
    ) -> None:
        tasks = check_tasks(tasks)
        names = [task.name for task in tasks]
        if BACKBONE in names:
            raise ValueError(f"A task cannot be called {BACKBONE!r} here: rename it.")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
        if backbone is not None and (method != "two_stage" or presearch or search_backbone):
            raise ValueError(
                f"The backbone of mtnas is the searched one: {_name(backbone)} cannot be given beside it. Leave "
                "backbone= out, or search branches only: presearch=false, search_backbone=false."
            )
        if partial < 1 or channels % (4 * partial):
            raise ValueError(
                f"channels must be a multiple of {4 * max(partial, 1)}, 4 times partial, not {channels}: the last "
                "cell of a branch has a quarter of them."
            )
        if method != "two_stage" and not (
            search_branches and search_backbone and (presearch or method == "together")
        ):
            raise ValueError(
                f"method={method} searches all cells at once: leave search_branches, presearch and search_backbone "
                "as they are, they are for two_stage."
            )
        if pretrain and backbone is not None:
            raise ValueError("pretrain trains a searched backbone: it cannot be set where there is none.")
        if branches and search_branches and method == "two_stage":
            raise ValueError("branches are searched here: leave branches= out, or set search_branches=false.")
        if unknown := [name for name in branches or {} if name not in names]:
            raise ValueError(f"branches names {unknown[0]!r}, but the tasks are {', '.join(names)}.")
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        stack = {
            "channels": channels,
            "cells": cells,
            "reductions": list(reductions),
            "detection_cells": detection_cells,
        }
        space: dict[str, Any] = {
            "layout": stack,
            "partial": partial,
            "recompute": recompute,
            "relaxation": relaxation_of(relaxation, RELAXATIONS),
        }
        found: dict[str, Cells] = {name: (branches or {}).get(name, HANDMADE) for name in names}
        searched = {owner: owner for owner in ([BACKBONE, *names] if method == "together" else [BACKBONE])}
        fixed = {name: cells for name, cells in found.items() if name not in searched}
        super().__init__(
            CellSupernet(tasks, searched, fixed, **space),
            tasks,
            in_turn=True,
            train_branches=train_branches,
            max_steps=_cap(max_steps, "backbone"),
            optimizer=optimizer,
            arch_optimizer=arch_optimizer,
            seed=seed,
            **{"stage": "backbone", **training},
        )
        self.method = method
        self.plan = _plan(names, method, search_branches, presearch, search_backbone, pretrain)
        self.layout, self.space, self.searched = stack, space, searched
        self.caps, self.skips, self.inherit = max_steps, max_skips, inherit
        self.training_arguments = {"optimizer": optimizer, "arch_optimizer": arch_optimizer, **training}
        self.finetune_optimizer = finetune_optimizer or optimizer
        self.finetune_balancing = (balancing,)  # in a tuple, lest it count as a part of this module
        self._backbone = (backbone,)
        self._auxiliary = (auxiliary,)
        self._cells: dict[str, Cells | None] = dict(found)
        if backbone is None:
            self._cells[BACKBONE] = HANDMADE
        self._inheritance = Inheritance()
        self._finalists: list[tuple[CellsArchitecture, MultiTask]] = []

    # The stages.

    def first_stage(self) -> MultiTask:
        return self._make(self.plan[0])

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        self._learn(finished)
        following = self.plan.index(finished.stage) + 1
        return self._make(self.plan[following]) if following < len(self.plan) else None

    def _make(self, stage: str) -> MultiTask:
        torch.manual_seed(self.seed)
        if stage.startswith("branch_"):
            return self._branch(stage.removeprefix("branch_"))
        if stage == "presearch":
            return self._presearch()
        if stage == "backbone":
            self.net = self._supernet()
            return self
        if stage == "pretrain":
            return self._pretrain()
        return self._finetune(stage)

    def _branch(self, name: str) -> CellSearch:
        """One task's search: its cells in its branch, and in the backbone too, which is its own."""
        task = next(task for task in self.tasks if task.name == name)
        backbone = self._backbone[0]
        owners = [name] if backbone is not None else [BACKBONE, name]
        supernet = CellSupernet(
            [task],
            dict.fromkeys(owners, name),
            {},
            backbone=backbone.again() if backbone is not None else None,
            **self.space,
        )
        return self._search(f"branch_{name}", supernet, [task])

    def _presearch(self) -> CellSearch:
        auxiliary = self.auxiliary()
        tasks = list(auxiliary.tasks)
        supernet = CellSupernet(
            tasks, {BACKBONE: BACKBONE}, dict.fromkeys((task.name for task in tasks), None), **self.space
        )
        return self._search("presearch", supernet, tasks, datamodule=auxiliary, max_skips=self.skips)

    def _search(self, stage: str, supernet: CellSupernet, tasks: list[Task], **others: Any) -> CellSearch:
        training = {**self.training_arguments, "seed": self.seed, "stage": stage, **others}
        return CellSearch(supernet, tasks, max_steps=_cap(self.caps, stage), **training)

    def _supernet(self) -> CellSupernet:
        """The search space of the backbone, with the branches that were found and all weights that fit."""
        fixed = {owner: cells for owner, cells in self._cells.items() if owner not in self.searched}
        supernet = CellSupernet(self.tasks, self.searched, fixed, **self.space)
        self._inheritance.hand_to(supernet, "backbone")
        return supernet

    def _pretrain(self) -> MultiTask:
        auxiliary = self.auxiliary()
        tasks = list(auxiliary.tasks)
        cells = {BACKBONE: self._cells[BACKBONE], **dict.fromkeys((task.name for task in tasks), None)}
        network = cells_architecture(tasks, cells, self.layout).build(tasks)
        self._inheritance.hand_to(network, "pretrain")
        return CellTraining(network, tasks, datamodule=auxiliary, **self._finetuning("pretrain"))

    def _finetune(self, stage: str) -> MultiTask:
        backbone = self._backbone[0]
        spec = backbone.spec if backbone is not None else None
        architecture = cells_architecture(self.tasks, self._cells, self.layout, spec)
        network = architecture.build(self.tasks, backbone.again() if backbone is not None else None)
        self._inheritance.hand_to(network, stage)
        training = {**self._finetuning(stage), "balancing": self.finetune_balancing[0]}
        module = CellTraining(network, self.tasks, **training)
        self._finalists.append((architecture, module))
        return module

    def _finetuning(self, stage: str) -> dict[str, Any]:
        known = ("schedule", "clip", "accumulate", "unpack")
        training = {key: value for key, value in self.training_arguments.items() if key in known}
        return {**training, "optimizer": self.finetune_optimizer, "seed": self.seed, "stage": stage}

    def auxiliary(self) -> Any:
        """The image-classification data of the pre-search."""
        from mtlsearch.data.shapes import Shapes

        return self._auxiliary[0] if self._auxiliary[0] is not None else Shapes(seed=self.seed)

    def carried(self, stages: Sequence[str], chosen: int) -> list[str]:
        last = self._finalists[chosen][1].stage
        carried = self._inheritance.carried.get(last, {last})  # what is trained from scratch inherits nothing
        return [stage for stage in stages if stage in carried]

    # What passes from stage to stage.

    def _learn(self, finished: MultiTask) -> None:
        """Keep the cells and the weights of a stage."""
        stage = finished.stage
        keep = partial(self._inheritance.keep, finished.net, stage)
        if isinstance(finished, CellSearch):
            architecture = finished.net.derive()
            found = {BACKBONE: architecture.backbone_cells, **architecture.branch_cells}
            if stage.startswith("branch_"):
                name = stage.removeprefix("branch_")
                self._cells[name] = found[name]
                keep(("paths", "branches", "heads"))
            elif stage == "presearch":
                if self.method == "proxy":
                    self._cells = dict.fromkeys(self._cells, found[BACKBONE])
                self._cells[BACKBONE] = found[BACKBONE]
                keep(("trunk",))
            else:
                self._cells |= found
                keep(("trunk", "paths", "branches", "heads"))
            if not self.inherit and self.plan[self.plan.index(stage) + 1] in ("pretrain", "finetune"):
                self._inheritance = Inheritance()
        elif stage == "pretrain":
            keep(("trunk",))

    # What the search ends in.

    def supernet(self) -> CellSupernet | None:
        return self.net if "backbone" in self.plan else None

    def search_space(self) -> CellSupernet:
        backbone = self._backbone[0]
        owners = [name for name in self._cells if name != BACKBONE or backbone is None]
        again = backbone.again() if backbone is not None else None
        return CellSupernet(self.tasks, {owner: owner for owner in owners}, {}, backbone=again, **self.space)

    def derive(self) -> CellsArchitecture:
        return self._finalists[0][0] if self._finalists else self.net.derive()

    def network(self) -> nn.Module:
        return self._finalists[0][1].network() if self._finalists else super().network()

    def finalists(self) -> list[tuple[Architecture, nn.Module]]:
        if not self._finalists:
            return super().finalists()
        return [(architecture, module.network()) for architecture, module in self._finalists]


def _plan(
    tasks: Sequence[str],
    method: str,
    search_branches: bool,
    presearch: bool,
    search_backbone: bool,
    pretrain: bool,
) -> list[str]:
    """The stages' names in order."""
    end = (["pretrain"] if pretrain else []) + ["finetune"]
    if method == "proxy":
        return ["presearch", *end]
    stages = [f"branch_{name}" for name in tasks] if search_branches and method == "two_stage" else []
    stages += ["presearch"] if presearch else []
    return [*stages, *(["backbone"] if search_backbone else []), *end]


def _cap(steps: int | Mapping[str, int] | None, stage: str) -> int | None:
    """How many steps a stage may take."""
    if not isinstance(steps, Mapping):
        return steps
    return steps.get(stage, steps.get(stage.partition("_")[0]))


def _name(backbone: str | Backbone) -> str:
    name = backbone if isinstance(backbone, str) else backbone.spec["name"] if backbone.spec else "a module"
    return str(name)
