"""Whether the looks at what a model has made of its data see what they are for: `pytest benchmarks/test_base_model_data.py`."""

from __future__ import annotations

import numpy as np
from base_model_data import compare_spread, measure_figures, nearest_training

from varbench.data.shapes import TEST, Shapes
from varbench.plan.presets import asset_folder
from varbench.quality import from_network, load_network
from varbench.quality.extractors import extract

SHAPES = Shapes()


def test_spread_tells_a_missing_half_of_place_size_and_hue() -> None:
    wanted = np.array(TEST[:2000])
    latents = SHAPES.describe(wanted)
    images, real = SHAPES.images(wanted), measure_figures(SHAPES.images(TEST[2000:3000]))
    alike = compare_spread(measure_figures(images), real)
    assert max(alike.x, alike.y, alike.size) < alike.noise
    assert alike.hue < alike.hue_noise
    for property_, kept in (
        ("x", latents.x < 0.5),
        ("hue", latents.hue < 0.5),
        ("size", latents.radius < 0.3),
    ):
        found = compare_spread(measure_figures(images[kept]), real)
        assert getattr(found, property_) > 3 * found.noise, property_


def test_copies_of_training_images_are_told_from_new_ones() -> None:
    extractor = from_network(load_network(asset_folder("tiny") / "features.safetensors"))
    training = extract(extractor, SHAPES.images(range(1000))).features_ND
    held_out, new = (extract(extractor, SHAPES.images(part)).features_ND for part in (TEST[:400], TEST[400:800]))
    copies = extract(extractor, np.minimum(SHAPES.images(range(200)), 254) + np.uint8(1)).features_ND
    assert nearest_training(new, training, held_out).closer_than_real < 0.05
    assert nearest_training(copies, training, held_out).closer_than_real > 0.5
