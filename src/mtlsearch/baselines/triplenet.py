"""TripleNet: detection and segmentation on every level of one decoder, which help each other.

Cao, Pang and Li, "Triply Supervised Decoder Networks for Joint Detection and Segmentation", CVPR 2019. A decoder
goes back up the encoder's levels; at each of them boxes are found, and while the network trains two segmentations
are supervised: the classes of pixels, and whether there is an object of whatever class. Taken from the paper: these
three supervisions, the inner-connected module that gives a level's features for segmentation to its detection,
attention skip-layer fusion, segmentation from all levels together, and that the levels' segmentations are not
computed once the network is trained.

As MTNAS compares with it, the encoder is any timm backbone, and the boxes and classes come from the tasks' own
heads, SSD's on the refined levels. Adapted: our data sets have no background class, so the objects are those
classes of segmentation that detection has too, or that you name; the auxiliary losses are means over the levels;
widths.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.architecture import Architecture, backbone_of, check_spec, specs_of, tasks_of
from mtlsearch.backbones import Backbone, load
from mtlsearch.baselines.baseline import Baseline
from mtlsearch.cost import backbone_params
from mtlsearch.nn.triple import (
    InnerConnection,
    MultiscaleFusion,
    SkipFusion,
    Supervised,
    Supervision,
    conv,
    upsampled,
)
from mtlsearch.searchers.ranges import check_ranges
from mtlsearch.task import Loss, Task
from mtlsearch.tasks import Boxes, ClassMap
from mtlsearch.tasks.segmentation import UNLABELLED

FINEST = 4
"""The smallest stride of the decoder."""


@dataclass(frozen=True)
class TripleArchitecture(Architecture):
    """An encoder and a decoder for detection and segmentation.

    Args:
        backbone: {"name", "arguments"} of `mtlsearch.backbones.load`; None for a module of yours.
        channels: of the levels of its pyramid, finest first.
        width: channels of the decoder.
        extra: levels that the encoder has beyond the backbone's, each of twice the stride of the one before.
    """

    backbone: dict[str, Any] | None
    channels: list[int]
    width: int
    extra: int

    kind = "triplenet"

    def check(self) -> None:
        check_spec(self.backbone)
        numbers = self.channels if isinstance(self.channels, list) else []
        if not numbers or any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"channels must be whole numbers from 1 up, not {self.channels!r}.")
        for name, value, low in (("width", self.width, 4), ("extra", self.extra, 0)):
            if type(value) is not int or value < low:
                raise ValueError(f"{name} must be a whole number from {low} up, not {value!r}.")

    def build(self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None) -> TripleNetwork:
        tasks = tasks_of(self, tasks)
        backbone = backbone_of(self.backbone, backbone)
        if backbone.channels != self.channels:
            raise ValueError(
                f"The backbone's levels have {backbone.channels} channels, and not {self.channels} as in the "
                "architecture: another model, or another version of timm."
            )
        return TripleNetwork(tasks, backbone, width=self.width, extra=self.extra)


def roles(tasks: Sequence[Task]) -> tuple[Task, Task]:
    """The task of detection and that of segmentation; a ValueError where the tasks are not one of each."""
    boxes = [task for task in tasks if isinstance(task.target, Boxes)]
    classes = [task for task in tasks if isinstance(task.target, ClassMap)]
    if len(tasks) != 2 or not boxes or not classes:
        found = ", ".join(f"{task.name} ({type(task.target).__name__})" for task in tasks)
        raise ValueError(
            f"triplenet is for one task of detection and one of segmentation, as tasks=[detection,semantic]: "
            f"found {found}."
        )
    return boxes[0], classes[0]


class TripleNetwork(nn.Module):
    """The encoder, the decoder and the tasks' heads.

    Args:
        tasks: one of detection and one of segmentation.
        backbone: copied.
        width, extra: as for `TripleArchitecture`.
        supervised: has the layers that supervise the levels; while training, the prediction of segmentation
            then is a `Supervised`.
    """

    def __init__(
        self, tasks: Sequence[Task], backbone: Backbone, *, width: int, extra: int, supervised: bool = False
    ) -> None:
        super().__init__()
        detection, segmentation = roles(tasks)
        self.detection, self.segmentation = detection.name, segmentation.name
        self.backbone = copy.deepcopy(backbone)
        strides = backbone.strides
        self.first = next((i for i, stride in enumerate(strides) if stride >= FINEST), len(strides) - 1)
        channels, strides = backbone.channels[self.first :], strides[self.first :]
        self.extra = nn.ModuleList(conv(channels[-1], channels[-1], 3, stride=2) for _ in range(extra))
        channels = channels + channels[-1:] * extra
        strides = strides + [strides[-1] * 2 ** (i + 1) for i in range(extra)]
        self.coarsest = conv(channels[-1], width, 1)
        self.decoder = nn.ModuleList(SkipFusion(c, width) for c in channels[:-1])  # finest first
        self.inner = nn.ModuleList(InnerConnection(width) for _ in channels)
        self.fusion = MultiscaleFusion(len(channels), width)
        target: Any = segmentation.target
        self.supervision = (
            nn.ModuleList(Supervision(width // 2, target.num_classes) for _ in channels)
            if supervised
            else None
        )
        heads = {
            self.detection: detection.head([width] * len(channels), strides),
            self.segmentation: segmentation.head([width], strides[:1]),
        }
        self.heads = nn.ModuleDict({task.name: heads[task.name] for task in tasks})

    def forward(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Predictions by task, computing only what these need.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: both.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        size = image.shape[-2:]
        levels = self.levels(image)
        supervised = self.training and self.supervision is not None and self.segmentation in wanted
        pairs = (
            [inner(x) for inner, x in zip(self.inner, levels)]
            if supervised or self.detection in wanted
            else []
        )
        predictions: dict[str, Any] = {}
        for name in wanted:
            if name == self.detection:
                predictions[name] = self.heads[name]([refined for refined, _ in pairs], size)
            else:
                predictions[name] = self.heads[name]([self.fusion(levels)], size)
        if supervised and self.supervision is not None:
            logits = [layer(own) for layer, (_, own) in zip(self.supervision, pairs)]
            aware, agnostic = ([pair[i] for pair in logits] for i in (0, 1))
            predictions[self.segmentation] = Supervised(predictions[self.segmentation], aware, agnostic)
        return predictions

    def levels(self, image: Tensor) -> list[Tensor]:
        """The decoder's levels (B, width, h, w), finest first."""
        skips: list[Tensor] = self.backbone(image)[self.first :]
        for halve in self.extra:
            skips.append(halve(skips[-1]))
        levels = [self.coarsest(skips[-1])]
        for fuse, skip in zip(reversed(self.decoder), reversed(skips[:-1])):
            levels.insert(0, fuse(levels[0], skip))
        return levels

    def finished(self) -> TripleNetwork:
        """A copy without what supervises the levels."""
        network = copy.deepcopy(self)
        network.supervision = None
        return network


class TripleNet(Baseline):
    """An encoder and decoder for detection and segmentation; see `mtlsearch.baselines.triplenet`.

    The levels' losses belong to the loss of segmentation: they are logged with it, and its weight is on them.

    Args:
        tasks: one of detection and one of segmentation.
        backbone: name of a timm model, or a `Backbone`.
        pretrained: start from timm's weights.
        width: channels of the decoder, at least 4.
        extra: levels beyond the backbone's; the paper has three.
        objects: names of the classes of segmentation that are objects; None: those that detection has too.
        aware_weight, agnostic_weight: on the levels' mean loss of classes and of objectness, at least 0.
        seed: of the initial weights and of the training.
        training: as for `MultiTask`.

    Raises:
        ValueError: other tasks, no class that is an object, a value out of range.
    """

    net: TripleNetwork

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet18",
        *,
        pretrained: bool = False,
        width: int = 64,
        extra: int = 0,
        objects: Sequence[str] | None = None,
        aware_weight: float = 1.0,
        agnostic_weight: float = 1.0,
        seed: int = 0,
        **training: Any,
    ) -> None:
        detection, segmentation = roles(tasks)
        check_ranges({"aware_weight": aware_weight, "agnostic_weight": agnostic_weight}, low=0)
        loss = partial(
            triple_loss,
            loss=segmentation.loss,
            objects=object_classes(detection, segmentation, objects),
            weights=(aware_weight, agnostic_weight),
        )
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        architecture = TripleArchitecture(
            specs_of(tasks),
            backbone=backbone.spec,
            channels=list(backbone.channels),
            width=width,
            extra=extra,
        )
        architecture.check()
        network = TripleNetwork(tasks, backbone, width=width, extra=extra, supervised=True)
        own = [replace(task, loss=loss) if task is segmentation else task for task in tasks]
        super().__init__(architecture, network, own, seed=seed, **{"stage": "train", **training})
        self.single_task_backbone_params = 2 * backbone_params(backbone)

    def network(self) -> TripleNetwork:
        return self.net.finished()


def object_classes(detection: Task, segmentation: Task, names: Sequence[str] | None) -> list[int]:
    """The numbers of the classes of segmentation that are objects: those of these names, or of detection's."""
    boxes: Any = detection.target
    pixels: Any = segmentation.target
    known = list(pixels.class_names)
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"objects: there is no class {unknown[0]!r} of {segmentation.name!r}, only {known}.")
    wanted = boxes.class_names if names is None else names
    found = [number for number, name in enumerate(known) if name in wanted]
    if not found:
        raise ValueError(
            f"No class of {segmentation.name!r}, {known}, is one of {detection.name!r}, {boxes.class_names}: name "
            "those that are objects, objects=[...]."
        )
    return found


def triple_loss(
    prediction: Tensor | Supervised,
    target: Tensor,
    *,
    loss: Loss,
    objects: Sequence[int],
    weights: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """The loss of segmentation with those of the levels while the network trains: its sum, and the labelled pixels.

    Args:
        target: class ids (B, H, W), 255 where unlabelled.
        loss: of logits of the target's size.
        objects: ids of the classes that are objects.
        weights: of the losses of classes and of objectness, each the mean over the levels.
    """
    if isinstance(prediction, Tensor):
        return loss(prediction, target)
    total, count = loss(prediction.final, target)
    levels = len(prediction.aware)
    known = target != UNLABELLED
    is_object = torch.stack([target == number for number in objects]).any(0).float()
    for aware, agnostic in zip(prediction.aware, prediction.agnostic):
        classes, _ = loss(upsampled(aware.float(), target[:, None]), target)
        logits = upsampled(agnostic.float(), target[:, None])[:, 0]
        objectness = F.binary_cross_entropy_with_logits(logits, is_object, reduction="none")
        objectness = torch.where(known, objectness, 0.0).sum()
        total = total + (weights[0] * classes + weights[1] * objectness) / levels
    return total, count
