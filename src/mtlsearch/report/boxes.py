"""Boxes over their image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mtlsearch.tasks import Boxes
from mtlsearch.tasks.segmentation import PALETTE

SURE = 0.3
"""The least score of a box that is shown."""
SIDE = 256
"""The least pixels of a picture's shorter side, so that names can be read."""


def draw_boxes(target: Boxes, image: np.ndarray, label: Mapping[str, Any]) -> np.ndarray:
    """An image (H, W, 3) uint8 under its boxes, each in its class's colour and with its name.

    A small image is enlarged by a whole factor.

    Args:
        label: {"boxes", "labels"}; with "scores" these are shown, and only boxes whose score is at least `SURE`.
    """
    from matplotlib.font_manager import findfont
    from torchvision.utils import draw_bounding_boxes

    boxes, labels = torch.as_tensor(label["boxes"]), torch.as_tensor(label["labels"])
    names = [target.class_names[number] for number in labels]
    if "scores" in label:
        scores = torch.as_tensor(label["scores"])
        names = [f"{name} {score:.0%}" for name, score in zip(names, scores.tolist())]
        sure = scores >= SURE
        boxes, labels = boxes[sure], labels[sure]
        names = [name for name, shown in zip(names, sure.tolist()) if shown]
    factor = max(1, round(SIDE / min(image.shape[:2])))
    picture = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    if not names:
        return picture
    unit = max(1, min(picture.shape[:2]) // SIDE)
    colours = PALETTE[labels.numpy()]
    light = colours @ [0.299, 0.587, 0.114] > 110
    corners = (boxes * factor).round().long()
    corners[:, 2:] = torch.maximum(corners[:, 2:] - 1, corners[:, :2])  # a box's last pixels, not its end
    drawn = draw_bounding_boxes(
        torch.from_numpy(picture).permute(2, 0, 1),
        corners,
        labels=names,
        colors=[tuple(colour) for colour in colours.tolist()],
        width=2 * unit,
        font=findfont("DejaVu Sans"),
        font_size=11 * unit,
        label_colors=["black" if bright else "white" for bright in light],
        fill_labels=True,
    )
    return np.asarray(drawn.permute(1, 2, 0))
