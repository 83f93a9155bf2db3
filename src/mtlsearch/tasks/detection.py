"""Detection: boxes round objects, by SSD (Liu et al., ECCV 2016)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from mtlsearch.nn import heads
from mtlsearch.nn.detection import centred, decode, encode, split
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task
from mtlsearch.tasks.boxes import Boxes
from mtlsearch.tasks.metrics import PartScore

Found = Mapping[str, Tensor]
NEGATIVES = 3
"""Priors that teach background, for each one that teaches an object."""
CANDIDATES = 400
"""Boxes of a class in an image that take part in the suppression."""
LIMIT = 100
"""The most boxes of an image, as in COCO's evaluation."""
FOUND, TRUE = ("boxes", "scores", "labels"), ("boxes", "labels")


def detection(
    name: str = "detection",
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    head: HeadChoice = "ssd",
    score: float = 0.01,
    nms: float = 0.45,
    weight: float = 1.0,
) -> Task:
    """Boxes with classes, by SSD's loss.

    Metrics, as fractions, from the precision at 101 recalls as in COCO: `map`, the mean average precision over
    classes and over intersections over union of 0.5 to 0.95; `map_50`, that at 0.5; and with more than one
    class `map_50_CLASS` of each, which delta_m leaves out. A class without a box in the data has none. They need
    pip install "mtlsearch[detection]".

    Args:
        num_classes: at least 1, without background.
        class_names: one for each class; their numbers by default.
        head: one for boxes, as `mtlsearch.nn.heads` describes.
        score: the least probability of a class for which a box is found.
        nms: of boxes of one class whose intersection over union is above this, the surest is kept.
    """
    target = Detections(num_classes, class_names, score, nms)
    measure = partial(AveragePrecision, target)
    arguments = {
        "num_classes": num_classes,
        "class_names": target.class_names,
        "head": head,
        "score": score,
        "nms": nms,
        "weight": weight,
    }
    return Task(
        name=name,
        target=target,
        head=heads.boxes(head, num_classes),
        loss=ssd_loss,
        metrics={
            metric: partial(PartScore, measure, metric, breaks_down=metric in target.metrics)
            for metric in ("map", "map_50", *target.metrics)
        },
        weight=weight,
        spec=None if callable(head) else {"kind": "detection", "arguments": arguments},
    )


class Detections(Boxes):
    """Boxes, and how a prediction of `mtlsearch.nn.detection` is read as boxes.

    Args:
        score, nms: as for `detection`.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        score: float = 0.01,
        nms: float = 0.45,
    ) -> None:
        super().__init__(num_classes, class_names)
        for name, value in {"score": score, "nms": nms}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a fraction from 0 to 1, not {value!r}.")
        self.score = score
        self.nms = nms

    @property
    def metrics(self) -> list[str]:
        """The names of the classes' metrics, in the classes' order; none where there is one class."""
        names: list[str] = []
        for number, name in enumerate(self.class_names if self.num_classes > 1 else ()):
            word = re.sub(r"\W+", "_", name).strip("_")
            word = word if word and not word[0].isdigit() else f"class_{word or number}"
            metric = f"map_50_{word}"
            names.append(f"{metric}_{number}" if metric in names else metric)
        return names

    def decode(self, prediction: Tensor) -> list[dict[str, Tensor]]:
        """The boxes found in each image of a prediction (B, P, 9 + classes), the surest first.

        Returns:
            For each image {"boxes": (n, 4) within the image, "scores": (n,), "labels": (n,)}, n at most 100.
        """
        offsets, priors, logits = split(prediction.float())
        # The first and the last place are as far from the borders, so their sum is the image's size.
        places = centred(priors)[0]
        width, height = (places.amin(dim=0) + places.amax(dim=0)).round().int().tolist()
        boxes = clip_boxes_to_image(decode(offsets, priors), (height, width))
        probabilities = logits.softmax(dim=2)[..., 1:]
        best, rows = probabilities.topk(min(CANDIDATES, len(priors)), dim=1)  # (B, candidates, classes)
        found = []
        for own, scores, row in zip(boxes, best, rows):
            place, label = (scores > self.score).nonzero(as_tuple=True)
            likely, candidates = scores[place, label], own[row[place, label]]
            kept = batched_nms(candidates, likely, label, self.nms)[:LIMIT]
            found.append({"boxes": candidates[kept], "scores": likely[kept], "labels": label[kept]})
        return found

    def resize(self, prediction: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        """A prediction for an image of size `old` (H, W) as one for the same image in size `new`."""
        (height, width), (new_height, new_width) = old, new
        factors = prediction.new_ones(prediction.shape[2])
        factors[4:8] = factors.new_tensor([new_width / width, new_height / height] * 2)
        return prediction * factors


def ssd_loss(prediction: Tensor, target: Sequence[Found | None]) -> tuple[Tensor, Tensor]:
    """SSD's loss of predictions (B, P, 9 + classes), and the number of priors that have a box.

    The priors with a box give the smooth L1 distance of the offsets and the cross entropy of the class; of the
    others of an image, three times as many do as have a box, those that are the least taken for background.
    A labelled image counts as one prior at least: one without boxes teaches background.

    Args:
        target: B labels, None for an unlabelled image.
    """
    offsets, priors, logits = split(prediction.float())
    if len(target) != len(prediction):
        raise ValueError(f"{len(prediction)} images have as many labels of boxes: found {len(target)}.")
    with torch.no_grad():
        assigned = [assign(label, priors) for label in target]
        codes = torch.stack([code for code, _ in assigned])
        classes = torch.stack([own for _, own in assigned])
        known = torch.tensor([label is not None for label in target], device=prediction.device)[:, None]
    entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    matched = classes > 0
    number = matched.sum(dim=1, keepdim=True).clamp(min=1) * known
    order = entropy.detach().masked_fill(matched, -1.0).argsort(dim=1, descending=True)
    first = torch.arange(len(priors), device=prediction.device) < NEGATIVES * number
    taken = matched | torch.zeros_like(matched).scatter(1, order, first)
    distance = F.smooth_l1_loss(offsets, codes, reduction="none").sum(dim=2)
    total = torch.where(taken, entropy, 0.0).sum() + torch.where(matched, distance, 0.0).sum()
    return total, number.sum()


def assign(label: Found | None, priors: Tensor) -> tuple[Tensor, Tensor]:
    """What the priors (P, 4) should predict for an image: offsets (P, 4) and classes (P,), 0 for background."""
    if label is None or not len(label["boxes"]):
        return torch.zeros_like(priors), torch.zeros(len(priors), dtype=torch.long, device=priors.device)
    boxes = label["boxes"].to(priors.dtype)
    owner = match(boxes, priors)
    codes = encode(boxes[owner], priors)
    return codes, torch.where(owner >= 0, label["labels"][owner] + 1, 0)


def match(boxes: Tensor, priors: Tensor, threshold: float = 0.5) -> Tensor:
    """For each prior (P,) the number of its box, of n >= 1; -1 for none.

    Every box takes the prior that it overlaps most, and a prior that is left takes the box that it overlaps
    most if their intersection over union is at least `threshold`. Where two boxes want one prior, the one
    that overlaps it more has it.
    """
    overlap = box_iou(boxes, priors)
    best = overlap.argmax(dim=1, keepdim=True)
    overlap = overlap + torch.zeros_like(overlap).scatter(1, best, 1.0)
    quality, owner = overlap.max(dim=0)
    return torch.where(quality >= threshold, owner, -1)


class AveragePrecision(Metric):
    """Mean average precision of detection: {"map", "map_50", "map_50_CLASS", ...}, NaN where there is no box.

    Args:
        target: how predictions are read, and the names of the classes.
    """

    full_state_update = False
    higher_is_better = True
    images: list[Tensor]

    def __init__(self, target: Detections) -> None:
        super().__init__()
        if importlib.util.find_spec("pycocotools") is None:
            raise ValueError('The metrics of detection need pycocotools: pip install "mtlsearch[detection]".')
        self.target = target
        # One row of numbers, an image after the other: processes may have different numbers of images.
        self.add_state("images", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Sequence[Found | None]) -> None:
        known = [i for i, label in enumerate(target) if label is not None]
        for found, i in zip(self.target.decode(prediction[known]) if known else (), known):
            true = target[i]
            assert true is not None
            numbers = prediction.new_tensor([len(found["boxes"]), len(true["boxes"])])
            parts = [numbers, *(found[key] for key in FOUND), *(true[key] for key in TRUE)]
            self.images.append(torch.cat([part.float().flatten() for part in parts]))

    def compute(self) -> dict[str, Tensor]:
        # Not over processes again: the images are those of all.
        measure = MeanAveragePrecision(extended_summary=True, sync_on_compute=False)
        images = dim_zero_cat(self.images).cpu() if len(self.images) else torch.zeros(0)
        while len(images):
            count, true_count = images[:2].long().tolist()
            sizes = [2, 4 * count, count, count, 4 * true_count, true_count]
            _, *parts, images = images.split([*sizes, len(images) - sum(sizes)])
            boxes, scores, labels, true_boxes, true_labels = parts
            measure.update(
                [{"boxes": boxes.view(-1, 4), "scores": scores, "labels": labels.long()}],
                [{"boxes": true_boxes.view(-1, 4), "labels": true_labels.long()}],
            )
        return self._values(measure.compute() if measure.update_called else {})

    def _values(self, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values, of all classes and of each, where COCO's evaluation gives -1 for one without boxes."""
        nan = torch.tensor(torch.nan)
        values = dict.fromkeys(("map", "map_50", *self.target.metrics), nan)
        classes = result.get("classes", torch.zeros(0)).flatten().tolist()
        if not classes:
            return values
        # By IoU, recall, class, area of the boxes (of any at first) and number of boxes (100 at last).
        precision = result["precision"][..., 0, -1].float()
        precision = torch.where(precision < 0, torch.nan, precision)
        values |= {"map": precision.nanmean(), "map_50": precision[0].nanmean()}
        for index, number in enumerate(classes):
            if self.target.metrics:
                values[self.target.metrics[number]] = precision[0, :, index].nanmean()
        return values
