"""The procedural set: deterministic, balanced, and its latents are what the pixels show."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

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
    with pytest.raises(UserError, match="11999999.*12000000"):
        Shapes().images([12_000_000])


def test_the_recipe_has_not_changed_without_a_new_version():
    """Statistics within a tolerance, since sine may differ in its last bit between machines."""
    images = Shapes().images(range(100)).astype(np.float64)
    assert Shapes().fingerprint.startswith("26d6626e")
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [115.642, 119.006, 117.335], atol=0.05)
    np.testing.assert_allclose(images[3, :, 16, 16], [148, 4, 0], atol=1)


def test_latents_say_where_the_figure_is():
    shapes = Shapes()
    wanted = [
        index for index in range(200) if index % 10 in (0, 1, 2)
    ]  # disc, ring, square: centred on their place
    images, latents = shapes.images(wanted).astype(np.float64) / 255, shapes.describe(wanted)
    pixel = (np.arange(32) + 0.5) / 32
    for image, x, y, figure in zip(images, latents.x, latents.y, latents.figure_rgb_N3, strict=True):
        near = np.abs(image - figure[:, None, None]).sum(axis=0) < 0.25
        assert abs((near.any(axis=0) * pixel).sum() / near.any(axis=0).sum() - x) < 0.06
        assert abs((near.any(axis=1) * pixel).sum() / near.any(axis=1).sum() - y) < 0.06
