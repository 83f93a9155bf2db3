"""Data sets as Lightning datamodules, and what they are made of."""

from mtlsearch.data.augment import Augment
from mtlsearch.data.bilevel import Bilevel
from mtlsearch.data.collate import Collate
from mtlsearch.data.module import Samples, TaskData

__all__ = ["Augment", "Bilevel", "Collate", "Samples", "TaskData"]
