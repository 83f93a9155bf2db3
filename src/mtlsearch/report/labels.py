"""The sheet of a data set's labels, laid over its images, and what an image looks like."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtlsearch.data.text import decode
from mtlsearch.report.boxes import draw_boxes
from mtlsearch.report.style import styled
from mtlsearch.task import Task
from mtlsearch.tasks import Boxes, ClassMap, ImageLabel
from mtlsearch.tasks.classification import true_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 160
"""Characters of a text."""


@styled
def overlays(tasks: Sequence[Task], samples: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """Images in rows, in columns the labels of each task laid over them; what is unlabelled is darkened.

    Args:
        tasks: those to show.
        samples: each with the name of its split.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    placed = [task for task in tasks if has_places(task)]
    whole = [task for task in tasks if not has_places(task)]
    ratio = shape_ratio(samples[0][1]["image"].shape[:2])
    columns = 1 + len(placed) + bool(whole)
    figure = Figure(figsize=(2.4 * columns, 2.4 * ratio * len(samples) + 0.9), layout="compressed")
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], ["image", *(task.name for task in placed)]):
        axes.set_title(title)
    colours: dict[tuple[int, str], Any] = {}
    for (split, sample), row in zip(samples, grid):
        draw(row[0], sample["image"])
        row[0].set_ylabel(split)
        row[0].set_xlabel(str(sample.get("name", ""))[-30:], fontsize=7)
        for axes, task in zip(row[1:], placed):
            label = sample.get(task.name)
            axes.imshow(_overlay(task, sample["image"], label))
            if label is None:
                axes.text(0.5, 0.5, "unlabelled", color="white", ha="center", transform=axes.transAxes)
            elif isinstance(task.target, ClassMap):
                ids = np.unique(label[label != 255])
                names = [(int(i), task.target.class_names[i]) for i in ids]
                colours |= zip(names, task.target.picture(ids[None])[0] / 255)
        lines = [f"{task.name}: {_name(task, sample.get(task.name))}" for task in whole]
        if whole:
            row[-1].text(0.05, 0.95, "\n".join(lines), va="top", transform=row[-1].transAxes)
    if colours:
        key = [
            Patch(facecolor=tuple(colour), edgecolor="#999999", linewidth=0.5, label=name)
            for (_, name), colour in sorted(colours.items(), key=lambda item: item[0])
        ]
        figure.legend(handles=key, loc="outside lower center", ncols=2 * columns)
    return figure


def has_places(task: Task) -> bool:
    """Whether what a task predicts lies somewhere in the image, so that it is drawn and not told."""
    return task.target.dense or isinstance(task.target, Boxes)


def draw(axes: Axes, image: np.ndarray) -> None:
    """Show an image (H, W, 3), or the text that has these ids (T,)."""
    if image.ndim > 1:
        axes.imshow(image)
        return
    text = decode(image)
    text = textwrap.fill(text if len(text) <= SHOWN else f"{text[:SHOWN]} …", 28)
    axes.text(0.02, 0.98, text, fontsize=6.5, va="top", transform=axes.transAxes, parse_math=False)


def shape_ratio(size: Sequence[int]) -> float:
    """Height by width of an image of this size; a text takes half a square."""
    return size[0] / size[1] if len(size) > 1 else 0.5


def _overlay(task: Task, image: np.ndarray, label: Any) -> np.ndarray:
    """A label's picture over the image, as RGB."""
    if label is None:
        return image // 3
    if isinstance(task.target, Boxes):
        return draw_boxes(task.target, image, label)
    labelled = task.target.labelled(torch.as_tensor(label)[None])[0]
    known = labelled.reshape(-1, *image.shape[:2]).any(dim=0).numpy()[..., None]
    mixed = 0.7 * task.target.picture(label) + 0.3 * image
    return np.where(known, mixed, image / 3).astype(np.uint8)


def _name(task: Task, label: np.ndarray | None) -> str:
    """An image's label in words."""
    if label is None:
        return "unlabelled"
    if not isinstance(task.target, ImageLabel):
        return str(label)
    number = int(true_class(torch.as_tensor(label)[None])[0])
    return task.target.class_names[number] if number >= 0 else "unlabelled"
