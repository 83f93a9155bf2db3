"""The sheet of a network's predictions beside the ground truth."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlsearch.report.boxes import draw_boxes
from mtlsearch.report.labels import draw, has_places, shape_ratio
from mtlsearch.report.style import styled
from mtlsearch.task import Task
from mtlsearch.tasks.boxes import Boxes
from mtlsearch.tasks.classification import ImageLabel, true_class
from mtlsearch.tasks.segmentation import ClassMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch


def tiles(network: nn.Module, tasks: Sequence[Task], batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The sheet's pictures as arrays (N, H, W, 3) uint8: "image", and "TASK/truth" and "TASK/prediction" of each
    task whose predictions have a place. Nothing for texts.

    Args:
        network, tasks, batch: as for `predictions`.
    """
    images = batch["image"]
    if not images.is_floating_point():
        return {}
    with torch.no_grad():
        outputs = {name: output.float().cpu() for name, output in network(images).items()}
    shown = _shown(images)
    found = {"image": np.stack(shown)}
    for task in tasks:
        if has_places(task):
            pairs = list(_pairs(task, batch, outputs[task.name], shown))
            found |= {
                f"{task.name}/{side}": np.stack(s) for side, s in zip(("truth", "prediction"), zip(*pairs))
            }
    return found


def _shown(images: Tensor) -> list[np.ndarray]:
    """Images (3, H, W) in [0, 1] as (H, W, 3) bytes, texts as they are."""
    if not images.is_floating_point():
        return [text.cpu().numpy() for text in images]
    return [(i.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy() for i in images]


def _pairs(
    task: Task, batch: Mapping[str, Any], output: Tensor, shown: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of every image the pictures of label and prediction."""
    for row, guess in enumerate(task.target.decode(output)):
        label = _label(task, batch, row)
        if isinstance(task.target, Boxes):
            yield _box_pictures(task.target, shown[row], label, guess)
        else:
            yield _pictures(task, label, guess.numpy())


@styled
def predictions(network: nn.Module, tasks: Sequence[Task], batch: Mapping[str, Any]) -> Figure:
    """Images, and for each task ground truth and prediction: what has a place as pictures, the rest as text.

    Args:
        network: in eval mode; `network(image)` gives {task: prediction}.
        tasks: those to show.
        batch: as `mtlsearch.data.collate` makes it; every image of it becomes a row. A task that it lacks is
            shown as unlabelled.
    """
    from matplotlib.figure import Figure

    images = batch["image"]
    with torch.no_grad():
        outputs = {name: output.float().cpu() for name, output in network(images).items()}
    placed = [task for task in tasks if has_places(task)]
    whole = [task for task in tasks if not has_places(task)]
    rows, columns = len(images), 1 + 2 * len(placed) + bool(whole)
    is_text = not images.is_floating_point()
    height = max(1.75 * shape_ratio(images.shape[1:] if is_text else images.shape[-2:]), 0.5 * len(whole))
    figure = Figure(figsize=(1.75 * columns, rows * height + 1.0), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    grid[0, 0].set_title("image")
    shown = _shown(images)
    for axes, image in zip(grid[:, 0], shown):
        draw(axes, image)
    for index, task in enumerate(placed):
        grid[0, 1 + 2 * index].set_title(f"{task.name}\nground truth")
        grid[0, 2 + 2 * index].set_title(f"{task.name}\nprediction")
        for row, pictures in enumerate(_pairs(task, batch, outputs[task.name], shown)):
            for axes, picture in zip(grid[row, 1 + 2 * index :], pictures):
                axes.imshow(picture)
    for row, axes in enumerate(grid[:, -1] if whole else ()):
        lines = [_describe(task, _label(task, batch, row), outputs[task.name][row]) for task in whole]
        axes.text(0, 1, "\n\n".join(lines), fontsize=7.5, va="top", linespacing=1.3)
    if key := _class_key(placed, batch, outputs):
        figure.legend(handles=key, loc="outside lower center", ncols=max(1, columns))
    return figure


def _class_key(tasks: Sequence[Task], batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> list[Patch]:
    """The colours of the classes that labels or predictions hold."""
    from matplotlib.patches import Patch

    key = []
    for task in tasks:
        if isinstance(task.target, ClassMap):
            found = task.target.decode(outputs[task.name]).unique()
            if task.name in batch:
                target = batch[task.name].cpu()
                found = torch.cat([found, target[task.target.labelled(target)]]).unique()
            colours = task.target.picture(found.numpy()[None])[0] / 255
            names = [task.target.class_names[index] for index in found]
            key += [
                Patch(facecolor=tuple(colour), edgecolor="#999999", linewidth=0.5, label=name)
                for colour, name in zip(colours, names)
            ]
    return key


def _label(task: Task, batch: Mapping[str, Any], row: int) -> Any:
    """The label of one image of a batch, without the batch axis: a tensor, or boxes, None if unlabelled."""
    height, width = batch["image"].shape[-2:]
    found = batch[task.name][row] if task.name in batch else task.target.unlabelled((height, width))
    if isinstance(task.target, Boxes):
        return found and {key: value.cpu() for key, value in found.items()}
    return torch.as_tensor(found).cpu()


def _pictures(task: Task, label: Tensor, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label and prediction as RGB, one colour meaning one value in both; unlabelled pixels are chequered."""
    both = task.target.picture(np.concatenate([label.numpy(), guess], axis=-1))
    height, width = guess.shape[-2:]
    known = task.target.labelled(label[None])[0].reshape(-1, height, width).any(dim=0).numpy()
    board = _board(height, width)
    return np.where(known[..., None], both[:, :width], board), both[:, width:]


def _box_pictures(
    target: Boxes, image: np.ndarray, label: Mapping[str, Tensor] | None, guess: Mapping[str, Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Label and prediction as boxes over the image; an unlabelled image is chequered."""
    truth = _board(*image.shape[:2]) if label is None else draw_boxes(target, image, label)
    return truth, draw_boxes(target, image, guess)


def _board(height: int, width: int) -> np.ndarray:
    """A chequered picture (H, W, 3)."""
    rows, columns = np.indices((height, width)) // max(1, min(height, width) // 16)
    board = np.where((rows + columns) % 2 == 0, 235, 195).astype(np.uint8)
    return board[..., None].repeat(3, axis=2)


def _describe(task: Task, label: Tensor, output: Tensor) -> str:
    """What is predicted for a whole image, and whether it is so."""
    target = task.target
    if not isinstance(target, ImageLabel):
        return f"{task.name}: {target.decode(output[None])[0].numpy().round(3)}"
    probability, guess = output.softmax(0).max(0)
    truth = true_class(label[None])[0]
    known = truth >= 0
    mark = "" if not known else " ✓" if guess == truth else " ✗"
    lines = [f"{task.name}{mark}", f"predicted: {target.class_names[guess]}, {probability:.0%}"]
    lines.append(f"truth: {target.class_names[truth]}" if known else "unlabelled")
    return "\n".join(textwrap.fill(line, 26, subsequent_indent="   ") for line in lines)
