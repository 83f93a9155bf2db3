"""How all figures of a run look."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart under every common colour blindness; purple is for chosen edges."""
CHOSEN, CANDIDATE, INK, SOFT = "#7B2CBF", "#A8A8A8", "#222222", "#555555"
STYLE = {
    "figure.dpi": 160,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.04,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a class name is a dollar
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style, whatever the caller's is, and leave the caller's as it was."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        from matplotlib import style

        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return drawn
