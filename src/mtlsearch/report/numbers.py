"""How a comparison writes numbers: means with their deviations, which are None for one run."""

from __future__ import annotations

from mtlsearch.report.tables import count, duration


def measured(mean: float, deviation: float | None) -> str:
    """Four digits of the mean, and as many decimals of its deviation."""
    digits = 4 if abs(mean) < 1 else 2 if abs(mean) < 100 else 1 if abs(mean) < 1000 else 0
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def gained(mean: float, deviation: float | None) -> str:
    """Percent, with their sign; 0 for the reference."""
    if not mean and not deviation:
        return "0"
    return f"{mean:+.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def counted(mean: float, deviation: float | None) -> str:
    """A large number in thousands, millions and so on, with a deviation only where there is any."""
    digits, _, prefix = count(mean).partition(" ")
    if not deviation:
        return f"{digits} {prefix}".strip()
    decimals = len(digits.partition(".")[2])
    return f"{digits} ± {deviation * float(digits) / mean:.{decimals}f} {prefix}".strip()


def whole(mean: float, deviation: float | None) -> str:
    """A number of things."""
    return f"{mean:,.0f}" + (f" ± {deviation:,.0f}" if deviation else "")


def timed(mean: float, deviation: float | None) -> str:
    """A time, whose spread says more of the machine than of the system."""
    return duration(mean) if mean else "0 s"
