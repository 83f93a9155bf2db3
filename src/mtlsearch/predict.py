"""Predictions for images: `python -m mtlsearch.predict RUN IMAGE... [--out DIR] [--tasks a,b]`.

For an image x.jpg the folder OUT/x gets, at the image's own size, upright as its EXIF data say:

- `TASK.png`: class ids, for a task whose labels are classes of pixels;
- `TASK.npy`: float32 (H, W), or (H, W, C) where a pixel has several values: depth in metres, unit normals in
  the camera's frame (x right, y down, z forward), edge strengths and so on;
- `TASK_colour.png` and `TASK_overlay.png`: either of them in colours, alone and over the image;
- `TASK.json`: classes of the whole image and their probabilities, the most probable first; or boxes, x1, y1, x2,
  y2 in pixels from the left upper corner, with class and score, the surest first. Then `TASK_overlay.png` has
  those with a score of 0.3 and more, enlarged where the image is small.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from mtlsearch import files
from mtlsearch.data.augment import check_size, resize
from mtlsearch.report.boxes import draw_boxes
from mtlsearch.search import load, read_architecture
from mtlsearch.task import Task
from mtlsearch.tasks import Boxes, ImageLabel, from_spec


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 is returned, after one line on stderr, where something given is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m mtlsearch.predict",
        description="Write the predictions of a finished run's network for images, at their own size.",
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="image file")
    parser.add_argument("--out", type=Path, help="folder for the predictions (default: RUN/predictions)")
    parser.add_argument("--tasks", help="names of the tasks to predict, with commas between (default: all)")
    given = parser.parse_args(arguments)
    names = given.tasks.split(",") if given.tasks is not None else None
    try:
        predict(given.run, given.images, out=given.out, tasks=names)
    except (ValueError, OSError) as error:
        print(f"mtlsearch.predict: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def predict(
    run: Path, images: Sequence[Path], *, out: Path | None = None, tasks: Sequence[str] | None = None
) -> list[Path]:
    """Write the predictions of a run's network for images and return each image's folder.

    Args:
        run: the run's folder; it holds built-in tasks only.
        images: files; where two have a stem in common the later one's folder gets a number.
        out: where the folders go; `run`/predictions by default.
        tasks: names of those to predict; all by default.

    Raises:
        ValueError: what is wrong with the run, a task's name or an image.
    """
    out = out or run / "predictions"
    images = list({path.resolve(): path for path in images}.values())
    chosen = _choose(read_architecture(run).tasks, tasks)
    size = working_size(run)
    for path in images:
        with _opened(path):
            pass
    folders = [out / name for name in _folder_names(images)]
    for path in images:
        if path.parent.resolve() in {folder.resolve() for folder in folders}:
            raise ValueError(
                f"{path} lies where predictions go, and may be overwritten: name another folder by --out."
            )
    network = load(run)
    steps = list(zip(images, folders))
    for path, folder in track(steps, "predicting", console=Console(stderr=True)):
        image = read_image(path)
        outputs = infer(network, image, chosen, size)
        for task in chosen:
            for name, content in render(task, outputs[task.name], image):
                files.write(folder / name, content)
    return folders


def infer(
    network: nn.Module, image: np.ndarray, tasks: Sequence[Task], size: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """The raw predictions (1, ...) of tasks for an image (H, W, 3) uint8, those that have places at its own size.

    Args:
        size: (H, W) to which the image is brought for the network; None: its own.
    """
    small = resize({"image": image}, {}, size)["image"] if size is not None else image
    batch = torch.from_numpy(small).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        outputs: Mapping[str, Tensor] = network(batch, [task.name for task in tasks])
    old, new = small.shape[:2], image.shape[:2]
    return {task.name: task.target.resize(outputs[task.name].float(), old, new) for task in tasks}


def render(task: Task, output: Tensor, image: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The files, by name, that show a raw prediction (1, ...) for an image (H, W, 3)."""
    target = task.target
    label = target.decode(output)[0]
    if isinstance(target, Boxes):
        rows = zip(label["labels"].tolist(), label["scores"].tolist(), label["boxes"].tolist())
        found = [
            {"class": target.class_names[number], "score": round(score, 4), "box": [round(x, 2) for x in box]}
            for number, score, box in rows
        ]
        yield f"{task.name}.json", (json.dumps({"boxes": found}, indent=1) + "\n").encode()
        yield f"{task.name}_overlay.png", _png(draw_boxes(target, image, label))
        return
    label = label.numpy()
    if isinstance(target, ImageLabel):
        probabilities = output[0].softmax(0).tolist()
        ranked = sorted(zip(target.class_names, probabilities), key=lambda pair: -pair[1])
        content = {"class": ranked[0][0], "probabilities": dict(ranked)}
        yield f"{task.name}.json", (json.dumps(content, indent=1) + "\n").encode()
    elif not target.dense:
        yield f"{task.name}.json", (json.dumps({"value": label.tolist()}, indent=1) + "\n").encode()
    else:
        if np.issubdtype(label.dtype, np.integer):
            yield f"{task.name}.png", _png(label.astype(np.uint8 if label.max() < 256 else np.uint16))
        else:
            values = label[0] if len(label) == 1 else label.transpose(1, 2, 0)
            buffer = io.BytesIO()
            np.save(buffer, values.astype(np.float32))
            yield f"{task.name}.npy", buffer.getvalue()
        picture = target.picture(label)
        yield f"{task.name}_colour.png", _png(picture)
        yield f"{task.name}_overlay.png", _png((image * 0.5 + picture * 0.5).round().astype(np.uint8))


def read_image(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8, upright; transparency goes over white, 16 bits become 8.

    Raises:
        ValueError: not an image, or a damaged one.
    """
    with _opened(path) as opened:
        try:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                image = Image.fromarray(_eight_bits(np.asarray(image)))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} cannot be decoded: {error}.") from error


def working_size(run: Path) -> tuple[int, int] | None:
    """(H, W) to which the run's data set brings its images; None where its `config.yaml` names none."""
    path = run / "config.yaml"
    if not path.exists():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}.") from error
    dataset = config.get("dataset") if isinstance(config, dict) else None
    if not isinstance(dataset, dict):
        return None
    size = dataset.get("resize") or dataset.get("size")
    if isinstance(size, int):
        return size, size
    return None if size is None else check_size(f"The size of dataset in {path}", size)


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its values do not fit into 16 bits")
    return (grey / 257).round().astype(np.uint8)


def _choose(specs: Mapping[str, Any], names: Sequence[str] | None) -> list[Task]:
    for name in names or ():
        if name not in specs:
            near = get_close_matches(name, specs) or list(specs)
            raise ValueError(
                f"Unknown task {name!r}: did you mean {' or '.join(near)}? There are {', '.join(specs)}."
            )
    return [from_spec(name, specs[name]) for name in (specs if names is None else dict.fromkeys(names))]


def _opened(path: Path) -> Image.Image:
    """The image in a file, its header read and its pixels not."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file: name an image.")
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image, or of a format that Pillow does not read.") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    if image.mode == "F":
        image.close()
        raise ValueError(f"{path} holds 32-bit floats, whose range is unknown: save it with 8 or 16 bits.")
    return image


def _folder_names(images: Sequence[Path]) -> list[str]:
    """The images' stems, with a number from the second image on that would share one."""
    names: list[str] = []
    for path in images:
        name, number = path.stem, 1
        while name.casefold() in map(str.casefold, names):  # one folder on file systems that ignore case
            number += 1
            name = f"{path.stem}_{number}"
        names.append(name)
    return names


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
