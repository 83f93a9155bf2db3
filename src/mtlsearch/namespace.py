"""Which of Lightning's two name spaces to live in: a Trainer of one refuses the modules of the other."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "pytorch_lightning" in sys.modules or "lightning.pytorch" not in sys.modules:
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
else:
    import lightning.pytorch as pl
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["check_trainer", "pl", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]


def check_trainer(trainer: object) -> None:
    """Raise a TypeError that says how to mend it where a Trainer is not of the name space that is in use."""
    if not isinstance(trainer, pl.Trainer):
        found = type(trainer).__module__.partition(".trainer")[0]
        raise TypeError(
            f"This Trainer is {found}'s, while mtlsearch follows {pl.__name__}: import Trainer from "
            f"{pl.__name__}, or import lightning.pytorch alone, and before mtlsearch."
        )
