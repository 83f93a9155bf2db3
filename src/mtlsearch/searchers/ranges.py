"""What settings of searchers may be, checked where they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def check_ranges(values: Mapping[str, float], *, low: float, high: float = float("inf")) -> None:
    """Raise a ValueError that names the first of these settings outside [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            limits = f"in [{low}, {high}]" if high < float("inf") else f"at least {low}"
            raise ValueError(f"{name} must be {limits}, not {value}.")


def check_temperatures(start: float, end: float) -> None:
    """Raise a ValueError unless a temperature falls from the one to the other and stays positive."""
    if not 0 < end <= start:
        raise ValueError(f"temperatures must fall and stay above 0, not from {start} to {end}.")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise a ValueError unless this setting is one of the known values."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}.")


def check_init_w_ti(value: float | str) -> None:
    """Raise a ValueError unless this is a w_TI of MTL-NAS Eq. 3, or "random"."""
    if value != "random" and not (isinstance(value, int | float) and 0 <= value <= 1):
        raise ValueError(f"init_w_ti must be a number in [0, 1] or 'random', not {value!r}.")
