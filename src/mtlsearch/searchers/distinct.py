"""Several different architectures from random draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mtlsearch.architecture import Architecture
from mtlsearch.namespace import rank_zero_info

A = TypeVar("A", bound=Architecture)


def distinct(draw: Callable[[], A], count: int) -> list[A]:
    """So many different architectures, in the order of their drawing; fewer, which is said, where draws repeat."""
    found: dict[str, A] = {}
    for _ in range(20 * count):
        sample = draw()
        found.setdefault(sample.to_json(), sample)
        if len(found) == count:
            break
    if len(found) < count:
        rank_zero_info(f"{20 * count} draws gave {len(found)} different architectures, not {count}.")
    return list(found.values())
