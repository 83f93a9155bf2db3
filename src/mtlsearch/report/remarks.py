"""What a reader of a comparison has to know of its systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlsearch.report.systems import Run, System
from mtlsearch.report.tables import words


def unequal(systems: Sequence[System]) -> list[str]:
    """Backbones and heads that not all systems share."""
    notes = []
    for what in ("backbone", "head"):
        users: dict[str, list[str]] = {}
        for system in systems:
            users.setdefault(_called(system.runs[0], what), []).append(words(system.name))
        if len(users) > 1:
            listed = "; ".join(f"{name}: {', '.join(who)}" for name, who in users.items())
            notes.append(f"Not all have the same {what}. {listed}.")
    return notes


def chosen(systems: Sequence[System]) -> list[str]:
    """Which systems are the best of several networks."""
    counts = {
        words(system.name): max(len(metrics.get("retrained") or ()) for metrics in system.finished.values())
        for system in systems
        if system.finished
    }
    listed = [f"{name} of {number}" for name, number in counts.items() if number > 1]
    return [f"The best on validation data of several networks: {', '.join(listed)}."] if listed else []


def _called(run: Run, what: str) -> str:
    entry = run.settings.get(what)
    if isinstance(entry, Mapping):
        return str(entry.get("name") or "one of its own")
    return str(entry)
