"""Figure of a selection of channels: which part of each block a task runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsearch.report.style import INK, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def channel_map(architecture: Mapping[str, Any]) -> Figure:
    """Blocks by tasks, the darker the more of a block's hidden channels the task runs, with their number.

    Args:
        architecture: the content of an `architecture.json` of kind "elastic".
    """
    from matplotlib.figure import Figure

    tasks, blocks = list(architecture["tasks"]), architecture["blocks"]
    kept = np.array([architecture["kept"][task] for task in tasks])
    parts = kept / np.array(architecture["channels"])
    cell = min(0.5, max(0.15, 7.4 / len(blocks)))  # inches
    figure = Figure(figsize=(cell * len(blocks) + 2.2, 0.4 * len(tasks) + 1.3))
    axes = figure.add_subplot()
    image = axes.imshow(parts, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(blocks)), blocks, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if cell >= 0.3:
        for (row, column), number in np.ndenumerate(kept):
            ink = "white" if parts[row, column] > 0.5 else INK
            axes.text(column, row, str(number), color=ink, fontsize=6.5, ha="center", va="center_baseline")
    figure.colorbar(image, ax=axes, label="part of the channels", shrink=0.9)
    return figure
