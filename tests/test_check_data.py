import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mtlsearch import check_data
from mtlsearch.check_data import check, main, show
from mtlsearch.data.encodings import Classification, Depth, Normals, Segmentation
from mtlsearch.data.folder import Folder

SAMPLES = Path(os.environ.get("MTLSEARCH_SAMPLES", "../shared/data"))
SIZE = (12, 16)
LABELS = {
    "semantic": Segmentation("semantic/{name}.png", classes=["wall", "floor", "lamp"]),
    "depth": Depth("depth/{name}.npy"),
    "normals": Normals("normals/{name}.npy"),
    "room": Classification(path="rooms.csv", classes=["bath", "hall"]),
}


@pytest.fixture
def root(tmp_path):
    """Ten images: half wall, half floor, two metres away and facing the camera; three have no depth."""
    rng = np.random.default_rng(0)
    for folder in ("images", "semantic", "depth", "normals"):
        (tmp_path / folder).mkdir()
    ids = np.repeat(np.uint8([0, 1]), SIZE[0] // 2)[:, None].repeat(SIZE[1], axis=1)
    for i in range(10):
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"images/{i}.png")
        Image.fromarray(ids).save(tmp_path / f"semantic/{i}.png")
        np.save(tmp_path / f"normals/{i}.npy", np.full((*SIZE, 3), (0.0, 0.0, -1.0)))
        if i >= 3:
            np.save(tmp_path / f"depth/{i}.npy", np.full(SIZE, 2.0))
    (tmp_path / "rooms.csv").write_text("name,label\n" + "".join(f"{i},hall\n" for i in range(10)))
    return tmp_path


def printed(report):
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=120)
        show(report, console)
        return console.export_text()


def test_counts_and_values(root):
    report = check(Folder(root, labels=LABELS), root / "out")
    assert report.images == {"train": 6, "val": 2, "test": 2}
    assert report.sizes == {SIZE: 10}
    assert not report.problems
    assert {name: tally.images.total() for name, tally in report.tallies.items()} == {
        "semantic": 10,
        "depth": 7,
        "normals": 10,
        "room": 10,
    }
    half = SIZE[0] * SIZE[1] // 2
    assert report.tallies["semantic"].classes["train"].tolist() == [6 * half, 6 * half, 0]
    assert report.tallies["room"].classes["val"].tolist() == [0, 2]
    assert (report.tallies["depth"].low, report.tallies["depth"].median) == (2.0, 2.0)
    assert not [doubt for tally in report.tallies.values() for doubt in tally.doubts()]
    text = printed(report)
    assert "50.00 %" in text and "wall" in text and "median 2" in text and "100.0% of them towards" in text
    with Image.open(report.sheet) as sheet:
        colours = np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 100


def test_every_problem_is_listed_with_its_file(root):
    (root / "images/1.png").write_bytes(b"no image")
    Image.fromarray(np.full(SIZE, 7, dtype=np.uint8)).save(root / "semantic/4.png")
    np.save(root / "depth/4.npy", np.full(SIZE, -1.0))
    np.save(root / "normals/5.npy", np.zeros((3, 3, 3)))
    report = check(Folder(root, labels=LABELS), root / "out")
    files = ["images/1.png", "semantic/4.png", "depth/4.npy", "normals/5.npy"]
    assert len(report.problems) == len(files)
    for file in files:
        assert any(str(root / file) in problem for problem in report.problems)
        assert file in printed(report)
    assert report.images.total() == 7


def test_every_label_without_an_image_is_listed(root):
    for i in range(10, 40):
        np.save(root / f"depth/{i}.npy", np.ones(SIZE))
    report = check(Folder(root, labels=LABELS), root / "out")
    assert len(report.problems) == 30 and report.sheet is None
    assert all(f"depth/{i}.npy" in printed(report) for i in range(10, 40))


def test_what_is_possible_but_doubtful(root):
    for path in root.glob("normals/*"):
        np.save(path, np.full((*SIZE, 3), (0.0, 0.0, 1.0)))
    for path in root.glob("depth/*"):
        np.save(path, np.full(SIZE, 2000.0))
    folder = Folder(root, labels=LABELS)
    name = folder.items["test"][0].name
    Image.fromarray(np.full(SIZE, 2, dtype=np.uint8)).save(root / f"semantic/{name}.png")
    report = check(folder, root / "out")
    text = printed(report)
    assert not report.problems
    assert "point away from the camera" in text
    assert "Is the scale right?" in text
    assert "test has classes that train has not: lamp" in text


def test_scenes_too(tmp_path):
    from mtlsearch.data.scenes import Scenes

    names = ["semantic", "normals", "depth", "edges", "keypoints", "object", "scene_soft"]
    scenes = Scenes(names, size=32, train=3, val=2, test=2, cache_dir=tmp_path)
    report = check(scenes, tmp_path / "out")
    assert report.images == {"train": 3, "val": 2, "test": 2} and not report.problems
    assert report.tallies["normals"].facing / report.tallies["normals"].labelled > 0.6
    assert all(tally.images.total() == 7 for tally in report.tallies.values())


def test_the_exit_code_tells_of_problems(root, monkeypatch, capsys):
    import mtlsearch.run

    monkeypatch.setattr(
        mtlsearch.run, "compose_dataset", lambda _: (Folder(root, labels=LABELS), root / "out")
    )
    assert main([]) == 0
    Image.fromarray(np.full(SIZE, 7, dtype=np.uint8)).save(root / "semantic/4.png")
    assert main([]) == 1
    assert "semantic/4.png" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.strip() == check_data.__doc__.strip()


@pytest.mark.skipif(not (SAMPLES / "nyuv2_samples").is_dir(), reason="MTLSEARCH_SAMPLES has no nyuv2_samples")
def test_command_line_on_nyuv2(tmp_path):
    root = SAMPLES.resolve() / "nyuv2_samples"
    command = [
        sys.executable,
        "-m",
        "mtlsearch.check_data",
        "experiment=nyuv2_samples",
        f"dataset.root={root}",
    ]
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path}/out"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "98.8% of them towards the camera" in done.stdout
    assert (tmp_path / "out/labels.png").exists()
