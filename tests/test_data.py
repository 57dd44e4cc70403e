"""The procedural set: deterministic, balanced, its latents are what the pixels show. Folders: split, read, refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from varbench.data import folder as folders
from varbench.data.folder import open_folder
from varbench.data.shapes import CLASSES, TEST, TRAINING, VALIDATION, Shapes
from varbench.errors import UserError


def test_an_image_depends_on_seed_and_index_alone():
    shapes = Shapes()
    together = shapes.images(range(300))
    assert together.dtype == np.uint8
    assert together.shape == (300, 3, 32, 32)
    np.testing.assert_array_equal(together[[7, 299]], shapes.images([7, 299]))
    np.testing.assert_array_equal(together[:10], pickle.loads(pickle.dumps(shapes)).images(np.arange(10)))
    assert (Shapes(seed=1).images(range(10)) != together[:10]).any(axis=(1, 2, 3)).all()


def test_classes_are_balanced_and_every_figure_is_drawn():
    shapes = Shapes()
    assert np.bincount(shapes.labels(range(1000))).tolist() == [100] * len(CLASSES)
    small, large = shapes.images(range(10)), Shapes(side=64).images(range(10))
    means = large.reshape(10, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(means - small).mean() < 4, "a larger side is the same picture, drawn finer"


def test_ranges_never_overlap_and_outside_is_refused():
    assert TRAINING.stop <= VALIDATION.start < VALIDATION.stop <= TEST.start
    with pytest.raises(UserError, match=r"11999999.*12000000"):
        Shapes().images([12_000_000])


def test_the_recipe_has_not_changed_without_a_new_version():
    """Statistics within a tolerance, since sine may differ in its last bit between machines."""
    images = Shapes().images(range(100)).astype(np.float64)
    assert Shapes().fingerprint.startswith("26d6626e")
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [115.642, 119.006, 117.335], atol=0.05)
    np.testing.assert_allclose(images[3, :, 16, 16], [148, 4, 0], atol=1)


def test_latents_say_where_the_figure_is():
    shapes = Shapes()
    wanted = [index for index in range(200) if index % 10 in (0, 1, 2)]  # disc, ring, square: centred on their place
    images, latents = shapes.images(wanted).astype(np.float64) / 255, shapes.describe(wanted)
    pixel = (np.arange(32) + 0.5) / 32
    for image, x, y, figure in zip(images, latents.x, latents.y, latents.figure_rgb_N3, strict=True):
        near = np.abs(image - figure[:, None, None]).sum(axis=0) < 0.25
        assert abs((near.any(axis=0) * pixel).sum() / near.any(axis=0).sum() - x) < 0.06
        assert abs((near.any(axis=1) * pixel).sum() / near.any(axis=1).sum() - y) < 0.06


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 images, of odd sizes and kinds."""
    rng = np.random.RandomState(0)
    for name, level in (("dark", 20), ("light", 220)):
        (tmp_path / name).mkdir()
        for place in range(20):
            size = (int(rng.randint(5, 90)), int(rng.randint(5, 90)))
            mode = ("RGB", "L", "RGBA", "P")[place % 4]
            fill = (level,) * 3 if mode == "RGB" else (level,) * 3 + (255,) if mode == "RGBA" else level
            image = Image.new("RGB", size, (level,) * 3).convert("P") if mode == "P" else Image.new(mode, size, fill)
            image.save(tmp_path / name / f"{place}.png")
    return tmp_path


def test_a_folder_is_split_by_class_and_read_at_one_size(folder):
    images = open_folder(folder, side=16)
    assert images.classes == ("dark", "light")
    assert (images.training, images.validation, images.test) == (range(32), range(32, 36), range(36, 40))
    for part in (images.training, images.validation, images.test):
        assert np.bincount(images.labels(part)).tolist() == [len(part) // 2] * 2
        pixels = images.images(part)
        assert pixels.shape == (len(part), 3, 16, 16)
        assert (np.abs(pixels.mean(axis=(1, 2, 3)) - np.array([20, 220])[images.labels(part)]) < 2).all()


def test_of_many_images_few_are_held_out(folder, monkeypatch):
    monkeypatch.setattr(folders, "_MOST_HELD_OUT", 2)
    images = open_folder(folder, side=16)
    assert (images.training, images.validation, images.test) == (range(36), range(36, 38), range(38, 40))
    for part in (images.validation, images.test):
        assert sorted(images.labels(part)) == [0, 1], "of every class"


def test_the_middle_square_is_kept_upright(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for place in range(10):
            wide = np.zeros((10, 30, 3), np.uint8)
            wide[:, 10:20] = (255, 0, 0)
            wide[:5, 10:20] = (0, 255, 0)
            turned = Image.Exif()
            turned[0x0112] = 3  # upside down
            image = Image.fromarray(wide[::-1, ::-1])
            image.save(tmp_path / name / f"{place}.jpg", exif=turned, quality=100, subsampling=0)
    image = open_folder(tmp_path, side=10).images([0])[0].astype(int)
    assert image[1, :4].min() > 200 > 60 > image[0, :4].max(), "green above"
    assert image[0, 6:].min() > 200 > 60 > image[1, 6:].max(), "red below"


def test_a_folder_is_named_by_its_content(folder):
    first = open_folder(folder, side=16).fingerprint
    assert open_folder(folder, side=16).fingerprint == first
    assert open_folder(folder, side=32).fingerprint != first
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "dark" / "0.png")
    assert open_folder(folder, side=16).fingerprint != first


def test_bad_folders_are_refused_with_what_and_where(folder, tmp_path):
    with pytest.raises(UserError, match=r"no folder at .*missing"):
        open_folder(folder / "missing", side=16)
    with pytest.raises(UserError, match=r"dark has no sub-folders \(20 images lie in it directly\)"):
        open_folder(folder / "dark", side=16)
    with pytest.raises(UserError, match=r"class 'dark' .* has 20 images, and at least 50 are needed"):
        open_folder(folder, side=16, minimum=50)
    (folder / "dark" / "3.png").write_bytes((folder / "dark" / "3.png").read_bytes()[:40])
    images = open_folder(folder, side=16)
    with pytest.raises(UserError, match=r"dark/3\.png is not a readable image"):
        images.images(range(40))
    with pytest.raises(UserError, match=r"the images 0 to 39, and 40 to 40 was asked for"):
        images.images([40])
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"class 'empty' .* has 0 images"):
        open_folder(folder, side=16)
