"""The predictions of several systems for the same images, side by side."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from mtlsearch.report.markup import section, tile

FILE = Path("figures") / "predictions.npz"
"""In a run's folder: "image" and of each task "TASK/truth" and "TASK/prediction", (N, H, W, 3) uint8 each."""
SHOWN = 2
"""Images on the page."""
Tiles = dict[str, np.ndarray]


def encode(tiles: Tiles) -> bytes:
    """The content of the file."""
    content = io.BytesIO()
    np.savez_compressed(content, **tiles)  # type: ignore[arg-type]
    return content.getvalue()


def read(folder: Path) -> Tiles:
    """The tiles of a run; none where it holds no such file, or a broken one."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as found:
            tiles = {name: found[name] for name in found.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    right = [a.dtype == np.uint8 and a.ndim == 4 and a.shape[-1] == 3 and a.size for a in tiles.values()]
    return tiles if all(right) and "image" in tiles else {}


def side_by_side(folders: Mapping[str, Path]) -> str:
    """A section with a row for each image and task: image, ground truth, and what each system predicts.

    Systems whose images are not those of the first one are left out.

    Args:
        folders: of a run of each system, by its name.
    """
    found = {name: tiles for name, folder in folders.items() if (tiles := read(folder))}
    if not found:
        return ""
    first = next(iter(found.values()))
    same = {
        name: t for name, t in found.items() if np.array_equal(t["image"][:SHOWN], first["image"][:SHOWN])
    }
    tasks = [name.removesuffix("/truth") for name in first if name.endswith("/truth")]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", "image", "ground truth", *same))
    rows = ""
    for i in range(min(SHOWN, len(first["image"]))):
        for task in tasks:
            cells = [_cell(first, "image", i), _cell(first, f"{task}/truth", i)]
            cells += [_cell(tiles, f"{task}/prediction", i) for tiles in same.values()]
            rows += f"<tr><td>{escape(task)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    content = f'<div class="scroll"><table class="tiles"><thead><tr>{head}</tr></thead>{rows}</table></div>'
    note = "Validation images; of each system the network of its first seed. Chequered pixels are unlabelled."
    return section("Predictions side by side", content, note)


def _cell(tiles: Tiles, name: str, index: int) -> str:
    if name not in tiles or index >= len(tiles[name]):
        return "–"
    content = io.BytesIO()
    Image.fromarray(tiles[name][index]).save(content, "PNG")
    return tile(name, content.getvalue())
