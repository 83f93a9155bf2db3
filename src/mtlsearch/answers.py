"""What the command line answers to what goes wrong: one line that says what to mend."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

INTERRUPTED = 130
PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if (path / "run.yaml").exists())


def answer(work: Callable[[], Any]) -> int:
    """Do the work and return an exit code: one line for what a user can mend, and for Ctrl-C.

    With MTLSEARCH_TRACEBACK=1 in the environment the traceback is shown as well.
    """
    try:
        work()
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}".rstrip(": "), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not is_users(error):
            raise
        if os.environ.get("MTLSEARCH_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


def is_users(error: Exception) -> bool:
    """Whether an error is about what the user gave or has, rather than about this program."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return isinstance(error.__cause__, ValueError | TypeError | ImportError)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return error.errno == errno.ENOSPC
    return isinstance(error, HydraException | OmegaConfBaseException | ValueError)


def explain(error: Any) -> str:
    """An error in one line, with the nearest known names where one is unknown."""
    cause = error.__cause__
    text = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).partition("/")
        paths = (path.relative_to(CONF / group) for path in (CONF / group).rglob("*.yaml"))
        text = unknown(group, name, [*error.options, *(str(path.with_suffix("")) for path in paths)])
    elif isinstance(error, OverrideParseException):
        text = f"{error.override!r} cannot be read: a setting is KEY=VALUE."
    elif isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        known = [str(key) for key in cause.parent_node if key != "hydra" and not str(key).startswith("_")]
        above = str(cause.full_key).removesuffix(str(cause.key))
        text = unknown("setting", str(cause.full_key), [above + key for key in known])
    elif isinstance(error, InstantiationException) and isinstance(cause, ValueError):
        text = str(cause)
    return " ".join(text.split())


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """That a name is not known, and which come near."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.0)
    near = f" Near it: {', '.join(close)}." if close else ""
    return f"There is no {kind} {name!r}.{near}"
