"""MTAN: one shared backbone, of which every task selects features by attention.

Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019. At every stage a task's module
looks at the shared features inside the stage and at what the task selected before, and gives a mask in [0, 1] that
it multiplies with the features at the stage's end. The paper attends on SegNet's encoder and decoder; AdaShare
compares with it on a ResNet with DeepLab's heads, and so do we: the masks are on a backbone's feature pyramid, and
each task's head reads the features that the task selected. As in the authors' network on a ResNet, u of Eq. 2 is
the output of a stage's last block but one, p the stage's own, g is narrower than p by `reduction`, and f is a
bottleneck. Ours alone are f's norms, one set a task.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.architecture import Architecture, backbone_of, check_spec, specs_of, tasks_of
from mtlsearch.backbones import Backbone, load
from mtlsearch.baselines.baseline import Baseline
from mtlsearch.cost import backbone_params
from mtlsearch.nn.attention import Handover, Mask, watched
from mtlsearch.nn.fusion import resize
from mtlsearch.searchers.ranges import check_ranges
from mtlsearch.task import Task


@dataclass(frozen=True)
class AttentionArchitecture(Architecture):
    """A shared backbone with the tasks' attention over its feature pyramid.

    Args:
        backbone: {"name", "arguments"} of `mtlsearch.backbones.load`; None for a module of yours.
        layers: for each level of the pyramid the module path of the block whose output masks are made from; None
            where it is the level itself.
        first: number of the first level with masks, counted from 0.
        reduction: by which a mask's hidden layer is narrower than its level.
    """

    backbone: dict[str, Any] | None
    layers: list[str | None]
    first: int
    reduction: int

    kind = "mtan"

    def check(self) -> None:
        check_spec(self.backbone)
        if not isinstance(self.layers, list) or not self.layers:
            raise ValueError(f"layers must be a list with an entry for each level, not {self.layers!r}.")
        if any(path is not None and not isinstance(path, str) for path in self.layers):
            raise ValueError(f"layers must be module paths or null, not {self.layers!r}.")
        if type(self.first) is not int or not 0 <= self.first < len(self.layers):
            raise ValueError(
                f"first must be the number of one of {len(self.layers)} levels, not {self.first!r}."
            )
        if type(self.reduction) is not int or self.reduction < 1:
            raise ValueError(f"reduction must be a whole number from 1 up, not {self.reduction!r}.")

    def build(
        self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None
    ) -> AttentionNetwork:
        tasks = tasks_of(self, tasks)
        backbone = backbone_of(self.backbone, backbone)
        found = looked_at(backbone)
        if found != self.layers:
            raise ValueError(
                f"Masks of this backbone would be made from {found}, and not from those of the architecture, "
                f"{self.layers}: another model, or another version of timm."
            )
        return AttentionNetwork(tasks, backbone, first=self.first, reduction=self.reduction)


def looked_at(backbone: Backbone) -> list[str | None]:
    """For each level of the pyramid the path of the last node but one of its stage; None where there is none of the
    level's channels and size, so that masks are made from the level itself.

    Raises:
        ValueError: nodes whose outputs are no feature maps, as a ViT's (B, N, C).
    """
    training = backbone.training
    backbone.eval()
    example = backbone.example().to(backbone.mean)
    with torch.no_grad(), watched(backbone.model, [node.path for node in backbone.nodes]) as seen:
        levels = backbone.pyramid(backbone.model(example))
    backbone.train(training)
    flat = next((path for path, output in seen.items() if output.ndim != 4), None)
    if flat is not None:
        raise ValueError(
            f"mtan needs a backbone with stages of feature maps (B, C, H, W): {flat!r} gives "
            f"{tuple(seen[flat].shape)}. Take a convolutional one, or Swin."
        )
    found: list[str | None] = []
    for number, level in enumerate(levels):
        inside = [
            node.path
            for node in backbone.nodes
            if node.stage == number and _channels_first(seen[node.path], node.axis).shape == level.shape
        ]
        found.append(inside[-2] if len(inside) > 1 else None)
    return found


class AttentionNetwork(nn.Module):
    """A shared backbone, a mask for each task and level of its pyramid, and the tasks' heads.

    Args:
        tasks: any number.
        backbone: copied.
        first, reduction: as for `AttentionArchitecture`.
    """

    def __init__(self, tasks: Sequence[Task], backbone: Backbone, *, first: int, reduction: int) -> None:
        super().__init__()
        self.layers = looked_at(backbone)
        self.axes = {node.path: node.axis for node in backbone.nodes}
        self.first = first
        self.backbone = copy.deepcopy(backbone)
        names = [task.name for task in tasks]
        channels = backbone.channels[first:]
        widths = [max(c // reduction, 1) for c in channels]
        inputs = [channels[0], *(2 * c for c in channels[1:])]
        self.masks = nn.ModuleDict(
            {name: nn.ModuleList(Mask(*shape) for shape in zip(inputs, widths, channels)) for name in names}
        )
        self.handovers = nn.ModuleList(
            Handover(names, before, width, after)
            for before, width, after in zip(channels, widths[1:], channels[1:])
        )
        self.heads = nn.ModuleDict(
            {task.name: task.head(backbone.channels, backbone.strides) for task in tasks}
        )

    def forward(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Predictions by task, with the attention of these tasks only.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: all.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        levels, inner = self.shared(image)
        size = image.shape[-2:]
        predictions = {}
        for name in wanted:
            selected, _ = self.attend(name, levels, inner)
            predictions[name] = self.heads[name](selected, size)
        return predictions

    def shared(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The levels of the pyramid, and for each the features that masks are made from, of its size."""
        paths = [path for path in self.layers[self.first :] if path is not None]
        with watched(self.backbone.model, paths) as seen:
            levels: list[Tensor] = self.backbone(image)
        inner = [
            level if path not in seen else resize(_channels_first(seen[path], self.axes[path]), level, 1)
            for path, level in zip(self.layers, levels)
        ]
        return levels, inner

    def attend(
        self, task: str, levels: Sequence[Tensor], inner: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The levels as a task selects from them, and its masks, in [0, 1], of those from `first` on."""
        selected, masks = list(levels[: self.first]), []
        modules: Any = self.masks[task]
        before: Tensor | None = None
        for number, (mask, level, look) in enumerate(zip(modules, levels[self.first :], inner[self.first :])):
            if before is not None:
                look = torch.cat([look, self.handovers[number - 1](before, task, look.shape[-2:])], dim=1)
            masks.append(mask(look))
            before = masks[-1] * level
            selected.append(before)
        return selected, masks


class MTAN(Baseline):
    """A shared backbone with an attention module for each task and stage; see `mtlsearch.baselines.mtan`.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model, or a `Backbone`, whose blocks give feature maps: any convolutional one,
            and Swin.
        pretrained: start from timm's weights.
        finest: the smallest stride of a level with masks; heads see finer ones as they are.
        reduction: by which a mask's hidden layer is narrower than its level.
        seed: of the initial weights and of the training.
        training: as for `MultiTask`.

    Raises:
        ValueError: a backbone whose blocks give something else, as a ViT's; a value out of range.
    """

    net: AttentionNetwork

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet34",
        *,
        pretrained: bool = False,
        finest: int = 4,
        reduction: int = 4,
        seed: int = 0,
        **training: Any,
    ) -> None:
        check_ranges({"finest": finest, "reduction": reduction}, low=1)
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        strides = backbone.strides
        architecture = AttentionArchitecture(
            tasks=specs_of(tasks),
            backbone=backbone.spec,
            layers=looked_at(backbone),
            first=next((i for i, stride in enumerate(strides) if stride >= finest), len(strides) - 1),
            reduction=reduction,
        )
        network = architecture.build(tasks, backbone)
        super().__init__(architecture, network, tasks, seed=seed, **{"stage": "train", **training})
        self.single_task_backbone_params = len(self.tasks) * backbone_params(backbone)


def _channels_first(features: Tensor, axis: int) -> Tensor:
    return features if axis == 1 else features.movedim(-1, 1)
