"""Augmentation of an image together with its labels, by albumentations, with the geometry that each needs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from mtlsearch.task import Target

Sample = dict[str, Any]

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean in 0..255, close to zero once the network has normalised it."""


class Augment:
    """Random colour, zoom, rotation, crop and flip of one sample.

    Class maps, like all dense labels, move by nearest neighbour: no class is invented and no hole spreads.
    What a label's *values* do under the map is its target's to say (`Target.warp`), and so is where boxes go
    (`Target.move`). Where there is no image left it has the mean colour, and the labels there are unlabelled.
    Image labels stay as they are.

    Args:
        resize: (H, W) to which the whole image is brought first. It keeps the field of view, so metric depth
            does not change.
        crop: (H, W) of the result; smaller images are padded. By default the size of the (resized) image.
        scale: range of the zoom; zooming by s divides metric depth by s.
        rotate: the largest rotation either way, in degrees.
        flip: probability of a horizontal flip.
        colour: strength of the colour jitter in [0, 1]: brightness, contrast and saturation change by up to
            this fraction, the hue by up to an eighth of it (of a full turn).
    """

    def __init__(
        self,
        *,
        resize: Sequence[int] | None = None,
        crop: Sequence[int] | None = None,
        scale: Sequence[float] = (1.0, 1.0),
        rotate: float = 0.0,
        flip: float = 0.5,
        colour: float = 0.0,
    ) -> None:
        self.resize = None if resize is None else check_size("resize", resize)
        self.crop = None if crop is None else check_size("crop", crop)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range [low, high] with 0 < low <= high, not {scale}.")
        if not 0 <= rotate <= 180:
            raise ValueError(f"rotate must be an angle in [0, 180] degrees, not {rotate}.")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability in [0, 1], not {flip}.")
        if not 0 <= colour <= 1:
            raise ValueError(f"colour must be in [0, 1], not {colour}.")
        self.scale = (float(scale[0]), float(scale[1]))
        self.rotate = float(rotate)
        self.flip = float(flip)
        self.colour = float(colour)

    def __call__(self, sample: Sample, targets: Mapping[str, Target], seed: int) -> Sample:
        """The augmented sample; the same seed gives the same one.

        Args:
            sample: an image (H, W, 3) uint8, labels by task name (absent or None where unlabelled), and
                anything else, which is handed through.
            targets: the kind of label of each task.
            seed: at least 0.
        """
        if self.resize is not None:
            sample = resize(sample, targets, self.resize)
        height, width = sample["image"].shape[:2]
        size = self.crop or (height, width)
        least = 1 / min(height, width)  # of an image so small a pixel stays
        scale = (max(self.scale[0], least), max(self.scale[1], least))
        pipeline = _pipeline(size, scale, self.rotate, self.flip, self.colour)
        # set_random_seed would start every transform from the same seed: flip and zoom would go together.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        # The labels do not go through the pipeline: a map of where each pixel comes from does, once for all.
        origin = np.arange(height * width, dtype=np.int32).reshape(height, width)
        moved = pipeline(image=sample["image"], mask=origin)
        origin = moved["mask"]
        matrix = _matrix(moved["applied_transforms"])

        result = {**sample, "image": moved["image"]}
        for name, target, label in _labels(sample, targets):
            if target.dense:
                label = target.warp(label.reshape(*label.shape[:-2], -1)[..., origin], matrix[:2, :2])
                result[name] = np.where(origin >= 0, label, target.unlabelled(size))
            else:
                result[name] = target.move(label, matrix[:2], size)
        return result


def resize(sample: Sample, targets: Mapping[str, Target], size: Sequence[int]) -> Sample:
    """The sample at `size` (H, W), the field of view kept: labels by nearest neighbour, values unchanged."""
    height, width = size
    image = Image.fromarray(sample["image"]).resize((width, height), Image.Resampling.BILINEAR)
    result = {**sample, "image": np.array(image)}
    for name, target, label in _labels(sample, targets):
        result[name] = resize_label(target, label, sample["image"].shape[:2], size)
    return result


def resize_label(target: Target, label: Any, old: Sequence[int], size: Sequence[int]) -> Any:
    """The label of an image that was brought from one size (H, W) to another."""
    if target.dense:
        return nearest(label, size)
    (height, width), (new_height, new_width) = old, size
    matrix = np.array([[new_width / width, 0, 0], [0, new_height / height, 0]])
    return target.move(label, matrix, (new_height, new_width))


def nearest(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A label (..., H, W) at another size, each pixel the one under its centre."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, label.shape[-2:], strict=True)
    )
    return label[..., rows[:, None], columns]


def check_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    """A size (H, W) as a tuple; a ValueError that names the argument where it is none."""
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"{name} must be two positive whole numbers [height, width], not {size}.")
    return size[0], size[1]


def _labels(sample: Sample, targets: Mapping[str, Target]) -> Iterator[tuple[str, Target, Any]]:
    """The labels that the sample has."""
    height, width = sample["image"].shape[:2]
    for name, target in targets.items():
        label = sample.get(name)
        if label is None:
            continue
        if target.dense and label.shape[-2:] != (height, width):
            raise ValueError(
                f"{sample.get('name', 'A sample')}: its {name} label is of shape {label.shape}, its image of "
                f"{height}x{width}. Both need the same height and width."
            )
        yield name, target, label


@lru_cache
def _pipeline(
    size: tuple[int, int], scale: tuple[float, float], rotate: float, flip: float, colour: float
) -> Any:
    """The albumentations pipeline that moves an image and, as `mask`, the map of where its pixels are."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its version upon import
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # its threads neither pay at these sizes nor survive a data loader's fork
    fill = {"fill": MEAN_COLOUR, "fill_mask": -1}
    transforms: list[Any] = []
    if colour > 0:  # before anything that pads: the padding keeps the mean colour
        transforms.append(albumentations.ColorJitter(colour, colour, colour, hue=colour / 8, p=1))
    if scale != (1.0, 1.0):
        transforms.append(
            albumentations.RandomScale(
                (scale[0] - 1, scale[1] - 1),
                area_for_downscale="image",
                mask_interpolation=cv2.INTER_NEAREST_EXACT,
                p=1,
            )
        )
    if rotate > 0:
        transforms.append(albumentations.Affine(rotate=(-rotate, rotate), p=1, **fill))
    transforms.append(albumentations.RandomCrop(*size, pad_if_needed=True, pad_position="random", **fill))
    transforms.append(albumentations.HorizontalFlip(p=flip))
    return albumentations.Compose(transforms, save_applied_params=True)


def _matrix(applied: Sequence[tuple[str, Mapping[str, Any]]]) -> np.ndarray:
    """(3, 3), the map of places (x, y, 1) that the applied transforms make together.

    Places are in pixels from the left upper corner, where the first pixel's centre is (0.5, 0.5).
    """
    matrix = np.eye(3)
    for number, (name, parameters) in enumerate(applied):
        step = np.eye(3)
        if name == "RandomScale":  # to whole pixels: what it scaled by is in the size that the next one met
            old, new = (np.array(each[1]["shape"][1::-1]) for each in applied[number : number + 2])
            step[:2, :2] = np.diag(new / old)
        elif name == "Affine":  # of the pixels' numbers, whose origin is the first one's centre
            step[:2, :2] = parameters["matrix"][:2, :2]
            step[:2, 2] = parameters["matrix"][:2, 2] + 0.5 - step[:2, :2] @ (0.5, 0.5)
        elif name == "RandomCrop":
            padding = parameters["pad_params"] or {"pad_left": 0, "pad_top": 0}
            left, top = parameters["crop_coords"][:2]
            step[:2, 2] = padding["pad_left"] - left, padding["pad_top"] - top
        elif name == "HorizontalFlip":
            step[0] = -1, 0, parameters["shape"][1]
        matrix = step @ matrix
    return matrix
