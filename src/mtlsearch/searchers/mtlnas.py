"""MTL-NAS: which layers of one task's network should read from which layers of another's.

Gao, Bai, Jie, Ma, Jia and Liu, "MTL-NAS: Task-Agnostic Neural Architecture Search towards General-Purpose
Multi-Task Learning", CVPR 2020. One backbone a task; a gate on every edge by which one backbone's layer may be
fused with features of another's; a minimum-entropy term that drives the gates' probabilities to 0 or 1, so
that the derived network is used as the search leaves it, without retraining.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone, load
from mtlsearch.data.bilevel import Bilevel
from mtlsearch.namespace import pl
from mtlsearch.nn.gates import Gates, Relaxation, deterministic, relaxation_of
from mtlsearch.searcher import Searcher
from mtlsearch.searchers.calibration import Calibrated
from mtlsearch.searchers.fusion import (
    FusionArchitecture,
    FusionNetwork,
    candidate_edges,
    fusion_architecture,
    resolved,
)
from mtlsearch.searchers.joined import JoinedNetwork
from mtlsearch.searchers.ranges import check_choice, check_init_w_ti, check_ranges
from mtlsearch.supernet import Supernet
from mtlsearch.task import Task, check_tasks


class FusionSupernet(Supernet):
    """All candidate edges, each with a gate.

    Args:
        tasks: K >= 1; with one there is no candidate.
        backbone: one for each task is made from it.
        relaxation: of the gates, see `mtlsearch.nn.gates`.
        discretization: "deterministic" (Eq. 9) or "stochastic" (Eq. 6 at temperature 0), for `derive`.
        seed: of stochastic discretisation.
        others: as for `candidate_edges`, `FusionNetwork` and `Gates`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Backbone,
        *,
        within_stage: bool = True,
        max_distance: int | None = 2,
        init_w_ti: float | str = 1.0,
        activation: str | None = "auto",
        momentum: float = 0.05,
        lr_factor: float = 1.0,
        relaxation: Relaxation = deterministic,
        discretization: str = "deterministic",
        init_std: float = 0.01,
        init_probability: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks)
        self.nodes, self.backbone_spec = backbone.nodes, backbone.spec
        self.discretization = discretization
        self.seed = seed
        self.activation = resolved(activation, self.nodes)
        names = [task.name for task in self.tasks]
        self.edges = candidate_edges(names, self.nodes, within_stage=within_stage, max_distance=max_distance)
        self.network = FusionNetwork(
            self.tasks,
            backbone,
            self.edges,
            self.edges,
            activation=self.activation,
            init_w_ti=init_w_ti,
            momentum=momentum,
            lr_factor=lr_factor,
        )
        self.gates = Gates(
            len(self.edges), relaxation=relaxation, init_std=init_std, init_probability=init_probability
        )

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Architecture | None = None
    ) -> dict[str, Tensor]:
        if gates is not None:
            chosen = FusionArchitecture.of(gates).chosen()
            values: Any = torch.tensor([edge in chosen for edge in self.edges], device=image.device).float()
        else:
            values = self.gates()
        predictions: dict[str, Tensor] = self.network(image, tasks, values)
        return predictions

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.gates.logits] if len(self.gates.logits) else []

    def derive(self) -> FusionArchitecture:
        if self.discretization == "stochastic":
            return self.sample(torch.Generator().manual_seed(self.seed))
        return self.architecture(self.gates.hard())

    def sample(self, generator: torch.Generator) -> FusionArchitecture:
        return self.architecture(self.gates.sample(generator))

    def architecture(self, on: Tensor) -> FusionArchitecture:
        """The architecture in which these candidates (booleans) are on."""
        return fusion_architecture(
            self.tasks,
            self.backbone_spec,
            self.nodes,
            self.edges,
            [edge for edge, chosen in zip(self.edges, on.tolist()) if chosen],
            activation=self.activation,
            probabilities=self.gates.probabilities().tolist(),
        )

    def extract(self, architecture: Architecture) -> FusionNetwork:
        return self.network.reduced(self.edges, FusionArchitecture.of(architecture).chosen())

    def single_task(self) -> JoinedNetwork:
        """A copy of the backbones and heads alone."""
        return self.network.single_task()


class MTLNAS(Calibrated, Searcher):
    """Searches fusion edges between single-task networks.

    In a run, stage "single_task" trains the single-task networks in lockstep, unless `init` gives them, and
    stage "search" trains weights and gates on disjoint batches, drawn anew every epoch from all of the
    training data, since no retraining follows.

    Args:
        tasks: K >= 1; the paper's two are a special case.
        backbone: name of a timm model, or a `Backbone`.
        pretrained: start from timm's weights.
        init: trained single-task networks: the module, or the folder of a run of them.
        single_task: whether a run starts with the stage of that name where `init` is not given.
        within_stage, max_distance: the search space, see `candidate_edges`.
        init_w_ti: w_TI of Eq. 3 in [0, 1], or "random".
        activation: what ends a fusion layer: "relu", None, or "auto", None where the backbone's layers have
            negative outputs, which a ReLU would destroy.
        fusion_lr_factor: on the learning rate of the fusion layers (Table S2).
        fusion_bn_momentum: of their BatchNorm, from the authors' files.
        fusion_bn_init: how it starts: "identity", see `Calibrated`, or "standard", the paper's.
        relaxation: "deterministic" (Eq. 4, 5), "concrete" (Eq. 6 to 8), or a function of (logits,
            temperature).
        discretization: "deterministic" (Eq. 9) or "stochastic".
        entropy_weight: γ >= 0 of Eq. 12, on the mean entropy of a gate in nats.
        entropy_warmup: the part of the search in [0, 1] over which γ rises from 0.
        l1_weight: on the mean probability of a gate.
        temperature: at the start, of the concrete relaxation.
        temperature_power: it falls to 0 with (1 - progress) to this power, from the authors' files.
        logits_std: width of the normal distribution from which logits start. At exactly 0 the entropy has no
            gradient.
        init_probability: in (0, 1), round which the probabilities of the edges start.
        samples: how many stochastic discretisations a run evaluates to report their spread.
        training: as for `Searcher` and `MultiTask`.

    Raises:
        ValueError: a value out of range, an unknown name.
    """

    net: FusionSupernet

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet50",
        *,
        pretrained: bool = False,
        init: nn.Module | str | Path | None = None,
        single_task: bool = True,
        within_stage: bool = True,
        max_distance: int | None = 2,
        init_w_ti: float | str = 1.0,
        activation: str | None = "auto",
        fusion_lr_factor: float = 1.0,
        fusion_bn_momentum: float = 0.05,
        fusion_bn_init: str = "identity",
        relaxation: str | Relaxation = "deterministic",
        discretization: str = "deterministic",
        entropy_weight: float = 10.0,
        entropy_warmup: float = 0.0,
        l1_weight: float = 0.0,
        temperature: float = 1.0,
        temperature_power: float = 2.0,
        logits_std: float = 0.01,
        init_probability: float = 0.5,
        samples: int = 10,
        seed: int = 0,
        **training: Any,
    ) -> None:
        check_ranges({"entropy_weight": entropy_weight, "l1_weight": l1_weight}, low=0)
        check_ranges({"entropy_warmup": entropy_warmup, "init_probability": init_probability}, low=0, high=1)
        if init_probability in (0, 1):
            raise ValueError("init_probability must be neither 0 nor 1: such a gate has no gradient.")
        check_init_w_ti(init_w_ti)
        check_choice("discretization", discretization, ("deterministic", "stochastic"))
        torch.manual_seed(seed)
        supernet = FusionSupernet(
            tasks,
            load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone,
            within_stage=within_stage,
            max_distance=max_distance,
            init_w_ti=init_w_ti,
            activation=activation,
            momentum=fusion_bn_momentum,
            lr_factor=fusion_lr_factor,
            relaxation=relaxation_of(relaxation),
            discretization=discretization,
            init_std=logits_std,
            init_probability=init_probability,
            seed=seed,
        )
        super().__init__(supernet, tasks, seed=seed, **{"stage": "search", **training})
        self.entropy_weight = entropy_weight
        self.entropy_warmup = entropy_warmup
        self.l1_weight = l1_weight
        self.temperature = temperature
        self.temperature_power = temperature_power
        self.samples = samples
        self.begin_norms(fusion_bn_init)
        self.start_from(
            init, single_task, {name: value for name, value in training.items() if name != "arch_optimizer"}
        )

    def joined(self) -> JoinedNetwork:
        return self.net.network

    def expected_gates(self) -> Tensor:
        return self.net.gates.probabilities()

    def train_data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        return Bilevel(datamodule, redraw=True, seed=self.seed)

    def anneal(self, progress: float) -> None:
        self.net.gates.temperature.fill_(self.temperature * (1 - progress) ** self.temperature_power)

    def regularization(self, progress: float) -> dict[str, Tensor]:
        entropy = self.net.gates.entropy()
        self.log("train/entropy", entropy.detach(), on_step=False, on_epoch=True, batch_size=1)
        ramp = min(1.0, progress / self.entropy_warmup) if self.entropy_warmup else 1.0
        terms = {}
        if self.entropy_weight:
            terms["entropy"] = self.entropy_weight * ramp * entropy
        if self.l1_weight:
            terms["l1"] = self.l1_weight * self.net.gates.probabilities().mean()
        return terms
