"""How labels lie in files: a class for each kind of label finds them, reads one and makes its task.

| class | what lies in the files | what can be said about it |
|---|---|---|
| `Segmentation` | class ids | ids that are ignored, a map from ids to classes |
| `Depth` | distances | their unit, values that mark holes |
| `Normals` | vectors or their 8-bit codes | order and signs of the axes, codes of unknown pixels |
| `Edges`, `Keypoints` | values | their scale |
| `BoundariesOf` | class ids, whose borders they are | |
| `Coco`, `Bdd100k`, `Kitti`, `Voc` | boxes | names of classes, those that are left out |
| `BoxesOf` | class ids, whose regions have the boxes | which classes are objects, the smallest region |
| `Classification` | a CSV file: the class of each image, or probabilities | its columns |

Files are images that Pillow reads, `.npy`, or `.npz` (with `key` where it holds several arrays). An encoding
of your own derives from `Encoding`, or from `Files` where each image has a file.
"""

from mtlsearch.data.encodings.boxes import Bdd100k, BoxFiles, Coco, Kitti, Voc
from mtlsearch.data.encodings.class_ids import BoundariesOf, BoxesOf, Segmentation
from mtlsearch.data.encodings.encoding import Encoding, Files
from mtlsearch.data.encodings.table import Classification
from mtlsearch.data.encodings.values import Depth, Edges, Keypoints, Normals

__all__ = [
    "Bdd100k",
    "BoundariesOf",
    "BoxFiles",
    "BoxesOf",
    "Classification",
    "Coco",
    "Depth",
    "Edges",
    "Encoding",
    "Files",
    "Keypoints",
    "Kitti",
    "Normals",
    "Segmentation",
    "Voc",
]
