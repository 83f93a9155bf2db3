"""The searchers, one file each."""

from mtlsearch.searchers.fusion import FusionArchitecture
from mtlsearch.searchers.mtlnas import MTLNAS

__all__ = ["MTLNAS", "FusionArchitecture"]
