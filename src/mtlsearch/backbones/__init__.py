"""Backbones: `load` takes any timm model by name, `vdcnn` reads text, `from_module` takes a module of yours."""

from mtlsearch.backbones.backbone import Backbone, Node, from_module, load
from mtlsearch.backbones.vdcnn import vdcnn

__all__ = ["Backbone", "Node", "from_module", "load", "vdcnn"]
