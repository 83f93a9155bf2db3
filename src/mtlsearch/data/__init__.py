"""Data sets as Lightning datamodules, and what they are made of."""

from mtlsearch.data.augment import Augment
from mtlsearch.data.bilevel import Bilevel
from mtlsearch.data.collate import Collate
from mtlsearch.data.domains import domains
from mtlsearch.data.imagefolder import ImageFolder
from mtlsearch.data.mixed import Mixed
from mtlsearch.data.module import Samples, TaskData
from mtlsearch.data.per_task import PerTask
from mtlsearch.data.shapes import Shapes
from mtlsearch.data.text import Text, texts

__all__ = [
    "Augment",
    "Bilevel",
    "Collate",
    "ImageFolder",
    "Mixed",
    "PerTask",
    "Samples",
    "Shapes",
    "TaskData",
    "Text",
    "domains",
    "texts",
]
