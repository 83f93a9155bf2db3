"""The searchers, one file each."""

from mtlsearch.searchers.adashare import AdaShare
from mtlsearch.searchers.fusion import FusionArchitecture
from mtlsearch.searchers.mtlnas import MTLNAS
from mtlsearch.searchers.policy import PolicyArchitecture

__all__ = ["MTLNAS", "AdaShare", "FusionArchitecture", "PolicyArchitecture"]
