"""The searchers, one file each."""

from mtlsearch.searchers.adashare import AdaShare
from mtlsearch.searchers.cells import CellsArchitecture
from mtlsearch.searchers.fusion import FusionArchitecture
from mtlsearch.searchers.genotypes import published
from mtlsearch.searchers.mtlnas import MTLNAS
from mtlsearch.searchers.mtnas import MTNAS
from mtlsearch.searchers.policy import PolicyArchitecture

__all__ = [
    "MTLNAS",
    "MTNAS",
    "AdaShare",
    "CellsArchitecture",
    "FusionArchitecture",
    "PolicyArchitecture",
    "published",
]
