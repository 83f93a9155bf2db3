"""Backbones: `load` takes any timm model by name, `from_module` a module of yours."""

from mtlsearch.backbones.backbone import Backbone, Node, from_module, load

__all__ = ["Backbone", "Node", "from_module", "load"]
