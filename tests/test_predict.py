import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mtlsearch as ms
from mtlsearch import backbones, predict
from mtlsearch.searchers.fusion import fusion_architecture

TASKS = [
    ms.tasks.segmentation("semantic", num_classes=5),
    ms.tasks.normals("normals"),
    ms.tasks.depth("depth"),
    ms.tasks.classification("scene", num_classes=3, class_names=["hall", "kitchen", "attic"]),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that has not learnt anything."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    backbone = backbones.load("test_resnet")
    architecture = fusion_architecture(TASKS, backbone.spec, backbone.nodes)
    save_file(architecture.build().state_dict(), folder / "model.safetensors")
    (folder / "architecture.json").write_text(architecture.to_json())
    (folder / "config.yaml").write_text("dataset: {size: 32}\n")
    return folder


@pytest.fixture
def photo(tmp_path):
    """An image of 53 by 37 pixels (width by height)."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def one_line_of_error(capsys, *arguments):
    assert predict.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_all_tasks_are_predicted_at_the_images_own_size(run, photo, tmp_path):
    assert predict.main([str(run), str(photo), "--out", str(tmp_path / "out")]) == 0

    folder = tmp_path / "out" / "photo"
    network, image = ms.load(run), np.array(Image.open(photo))
    small = np.array(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    with torch.no_grad():
        raw = network(torch.from_numpy(small).permute(2, 0, 1)[None] / 255)
    large = torch.nn.functional.interpolate(raw["semantic"], (37, 53), mode="bilinear")
    mask = np.array(Image.open(folder / "semantic.png"))
    np.testing.assert_array_equal(mask, large.argmax(1)[0])
    normals = np.load(folder / "normals.npy")
    assert normals.shape == (37, 53, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert np.load(folder / "depth.npy").shape == (37, 53)
    for name in ("semantic", "normals", "depth"):
        colour = np.array(Image.open(folder / f"{name}_colour.png")).astype(float)
        overlay = np.array(Image.open(folder / f"{name}_overlay.png"))
        np.testing.assert_allclose(overlay, (colour + image) / 2, atol=0.5)
    scene = json.loads((folder / "scene.json").read_text())
    expected = dict(zip(["hall", "kitchen", "attic"], raw["scene"].softmax(1)[0].tolist()))
    assert scene["probabilities"] == pytest.approx(expected)
    assert scene["class"] == max(expected, key=expected.get) == next(iter(scene["probabilities"]))


def test_only_the_chosen_tasks_are_predicted(run, photo, tmp_path):
    predict.predict(run, [photo], out=tmp_path / "out", tasks=["depth"])
    assert {path.name for path in (tmp_path / "out" / "photo").iterdir()} == {
        "depth.npy",
        "depth_colour.png",
        "depth_overlay.png",
    }


def test_images_with_one_stem_get_folders_of_their_own(run, photo, tmp_path):
    other = tmp_path / "photo.jpg"
    Image.new("RGB", (20, 10)).save(other)
    numbered = tmp_path / "PHOTO_2.png"
    Image.new("RGB", (8, 9)).save(numbered)
    folders = predict.predict(run, [photo, other, photo, numbered], out=tmp_path / "out", tasks=["semantic"])
    shapes = [np.array(Image.open(folder / "semantic.png")).shape for folder in folders]
    assert shapes == [(37, 53), (10, 20), (9, 8)]
    assert len({folder.name.lower() for folder in folders}) == 3


def test_an_input_is_never_overwritten(run, tmp_path, capsys):
    path = tmp_path / "semantic" / "semantic.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(path)
    before = path.read_bytes()
    assert "--out" in one_line_of_error(capsys, run, path, "--out", tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (7, 255), (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 51400, (200, 200, 200)),
    ],
)
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode, colour, expected):
    path = tmp_path / "image.png"
    Image.new(mode, (4, 3), colour).save(path)
    pixels = predict.read_image(path)
    assert pixels.dtype == np.uint8
    assert (pixels == np.broadcast_to(expected, (3, 4, 3))).all()


def test_an_image_is_turned_upright(tmp_path):
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = predict.read_image(tmp_path / "turned.png")
    assert pixels.shape == (4, 2, 3)
    assert pixels[0, 1, 0] == 255


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ("dataset: {size: 64}", (64, 64)),
        ("dataset: {resize: [48, 64]}", (48, 64)),
        ("dataset: {resize: null}", None),
        ("seed: 0", None),
        (None, None),
    ],
)
def test_the_working_size_is_that_of_the_data_set(tmp_path, config, size):
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    assert predict.working_size(tmp_path) == size


def test_wrong_input_is_answered_in_one_line(run, photo, tmp_path, capsys):
    text, cut, floats = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "floats.tif"
    text.write_text("no image")
    cut.write_bytes(photo.read_bytes()[:2000])
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(floats)

    out = ("--out", tmp_path / "out")
    assert "not the folder of a finished run" in one_line_of_error(capsys, tmp_path / "no_run", photo, *out)
    assert "text.png is not an image" in one_line_of_error(capsys, run, photo, text, *out)
    assert "gone.png is not a file" in one_line_of_error(capsys, run, photo, tmp_path / "gone.png", *out)
    assert "32-bit floats" in one_line_of_error(capsys, run, floats, *out)
    error = one_line_of_error(capsys, run, photo, "--tasks", "depth,semantics", *out)
    assert "'semantics'" in error
    assert "did you mean semantic?" in error
    assert not (tmp_path / "out").exists(), "what is wrong is found before anything is written"

    assert predict.main([str(run), str(cut), *map(str, out)]) == 2
    error = capsys.readouterr().err
    assert "cut.png cannot be decoded" in error
    assert "Traceback" not in error
