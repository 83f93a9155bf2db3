"""Finding the files of a data set by path templates, and reading images and arrays from them."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".npy", ".npz"}


def find(root: Path, template: str, split: str = "") -> dict[str, Path]:
    """The files that a template such as `{split}annot/{name}.png` matches, sorted, by their `{name}`.

    Args:
        root: the folder that the template is relative to.
        template: holds `{name}` once, which may span folders. `*` is any part of a file's or folder's name,
            and an extension `.*` any of `SUFFIXES`.
        split: what `{split}` stands for.

    Raises:
        ValueError: the template has no `{name}`, or two files have one name.
    """
    if template.count("{name}") != 1:
        raise ValueError(f"A path template holds {{name}} once: found {template!r}.")
    filled = template.replace("{split}", split)
    fixed = Path(re.split(r"\*|{name}", filled)[0] + "_").parent
    wild = {"{name}": "(?P<name>.+)", "*": "[^/]*"}
    pattern = re.compile(
        "".join(wild.get(part) or re.escape(part) for part in re.split(r"({name}|\*)", filled))
    )
    found: dict[str, Path] = {}
    for path in sorted((root / fixed).rglob("*")):
        match = pattern.fullmatch(path.relative_to(root).as_posix())
        if not match or path.name.startswith(".") or not path.is_file():
            continue
        if template.endswith(".*") and path.suffix.lower() not in SUFFIXES:
            continue
        other = found.setdefault(match["name"], path)
        if other != path:
            raise ValueError(f"{other} and {path} both match {template!r}: keep one, or narrow the template.")
    return found


def read_image(path: Path) -> np.ndarray:
    """An image as a viewer shows it, (H, W, 3) uint8 RGB. A ValueError names the file and the fault."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
                raise ValueError(f"the mode is {image.mode}, expected 8 bits a channel; convert it to RGB")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise ValueError(f"{path}: cannot be read as an image: {error}") from error


def read_array(path: Path, key: str | None = None) -> np.ndarray:
    """The values of an image, `.npy` or `.npz` file as they lie: (H, W) or (H, W, C).

    Args:
        key: the name of the array in an `.npz` that holds several.
    """
    try:
        array = _load(path, key)
    except (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if array.ndim == 3 and array.shape[2] == 1:
        return array[..., 0]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] > 4:
        return array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    return array


def _load(path: Path, key: str | None) -> np.ndarray:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            key = key or (arrays.files[0] if len(arrays.files) == 1 else "")
            if key not in arrays.files:
                raise ValueError(f"it holds the arrays {arrays.files}; name one of them by `key`")
            return np.asarray(arrays[key])
    with Image.open(path) as image:
        return np.asarray(image)
