"""What tests share; `tiny` has the parts."""

import os
from pathlib import Path

import pytest
import torch

from tiny import TinyData, make_tasks, make_trainer

torch.set_num_threads(1)


@pytest.fixture
def tasks():
    """Semantic segmentation and depth."""
    return make_tasks()


@pytest.fixture
def datamodule():
    """8 training images of 32x32 in batches of 4, 5 to validate, 3 to test, with some pixels unlabelled."""
    return TinyData()


@pytest.fixture
def trainer():
    """`trainer(max_epochs=1, **others)`: a Trainer on the CPU that writes and prints nothing."""
    return make_trainer


@pytest.fixture(scope="session")
def samples():
    """The folder of real data sets."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MTLSEARCH_SAMPLES", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; MTLSEARCH_SAMPLES names another folder")
    return folder
