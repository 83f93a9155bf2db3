"""Samples to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mtlsearch.task import Target

Sample = Mapping[str, Any]


class Collate:
    """Samples of one image size to a batch; where a sample lacks a label it is an unlabelled one.

    The image of a text is the ids (T,) of its tokens.

    Args:
        targets: the kind of label by task name.
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self.targets = targets

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """{"image": (B, 3, H, W) float in [0, 1] or ids (B, T) long, task: target, ...}."""
        sizes = {sample["image"].shape[:2] for sample in samples}
        if len(sizes) > 1:
            raise ValueError(
                f"The images of a batch differ in size: {sorted(sizes)}. Give the data set a size for all, or "
                "take batches of one."
            )
        size = sizes.pop()
        image = torch.from_numpy(np.stack([sample["image"] for sample in samples]))
        is_text = image.ndim == 2
        batch: dict[str, Any] = {
            "image": image.long() if is_text else image.permute(0, 3, 1, 2).contiguous().float() / 255
        }
        for name, target in self.targets.items():
            known = [sample.get(name) for sample in samples]
            labels = [target.unlabelled(size) if label is None else label for label in known]
            batch[name] = target.collate(labels)
        return batch
