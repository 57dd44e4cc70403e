"""Scores: equal to the libraries' and to independent formulas, growing with what is wrong, and clear about bad input."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from varbench import quality
from varbench.base import places
from varbench.data.shapes import TEST, Shapes
from varbench.errors import CheckpointError, UserError
from varbench.plan.presets import asset_folder
from varbench.quality import copies, extractors, frechet, halves, intervals, libraries, second_opinion
from varbench.quality import images as quality_images
from varbench.quality.extractors import extract
from varbench.quality.feature_cache import cached_arrays
from varbench.quality.folding import folded
from varbench.quality.images import FolderImages
from varbench.quality.judging import CLOSE, Judging
from varbench.quality.kernel_distance import kernel_distances
from varbench.quality.manifold import density_coverage, reaches
from varbench.quality.second_opinion import CleanFid
from varbench.quality.train_networks import gaussian_blur, train_classifier

ASSETS = asset_folder("tiny")
SHAPES = Shapes()

needs_libraries = pytest.mark.skipif(
    any(libraries.importlib.util.find_spec(name) is None for name in ("torch_fidelity", "cleanfid")),
    reason="torch-fidelity and clean-fid are not installed",
)


@pytest.fixture(scope="module")
def features():
    return quality.load_network(ASSETS / "features.safetensors")


@pytest.fixture(scope="module")
def judge():
    return quality.load_network(ASSETS / "judge.safetensors")


@pytest.fixture(scope="module")
def real():
    return SHAPES.images(TEST[:500])


@pytest.fixture(scope="module")
def samples():
    """Not the real thing: a little noise, and one class missing."""
    wanted = [index for index in TEST[1000:1500] if index % 10]
    grain = np.random.RandomState(0).standard_normal((len(wanted), 3, 32, 32)) * 8
    return rounded(SHAPES.images(wanted) + grain), SHAPES.labels(wanted)


def rounded(pixels):
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def gaussian_of(network, images):
    return frechet.gaussian(extract(quality.from_network(network), images).features_ND)


# What ships


def test_the_shipped_networks_know_the_data_they_say_they_were_trained_on(features, judge):
    images, labels = SHAPES.images(TEST[:500]), SHAPES.labels(TEST[:500])
    for network in (features, judge):
        assert network.record["data"] == SHAPES.fingerprint
        assert network.sha256.startswith(network.name.split("-")[1])
        assert (extract(quality.from_network(network), images).logits_NC.argmax(1) == labels).mean() > 0.99


@pytest.mark.slow
def test_training_makes_a_file_that_loads_as_the_same_network(tmp_path):
    trained = train_classifier("judge", data=SHAPES, steps=25, seed=3)
    path = tmp_path / "judge.safetensors"
    path.write_bytes(trained.file_bytes())
    loaded = quality.load_network(path)
    assert loaded.record["held_out_accuracy"] > 0.2, "chance is 0.1"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    images = torch.from_numpy(SHAPES.images(range(8))).float() / 255
    torch.testing.assert_close(loaded.module(images), trained.module(images), atol=0.05, rtol=0.01)


def test_what_is_no_network_or_another_one_is_refused(tmp_path):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((ASSETS / "judge.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"torn.safetensors is not a network"):
        quality.load_network(torn)
    with pytest.raises(CheckpointError, match=r"sha256 .* and 0000 was asked for"):
        quality.load_network(ASSETS / "judge.safetensors", sha256="0000")


# Agreement


def clean_fid(images, reference, extractor):
    asked = CleanFid(reference, extractor)
    asked.add(asked.seen_in(images))
    return asked.distance()


def test_images_in_pieces_score_as_all_at_once(features, real, samples):
    images, labels = samples
    reference = quality.reference_images(real, source="test")
    whole = quality.score(images, labels, reference=reference, network=features, second_opinion=False)
    pieces = quality.Scoring(reference, features, side=images.shape[-1], second_opinion=False)
    for first in range(0, len(images), 70):
        pieces.take(images[first : first + 70], labels[first : first + 70])
    found = pieces.scores(expected=len(images))
    assert found.distance.value == pytest.approx(whole.distance.value, rel=1e-4)
    assert found.recall == whole.recall
    with pytest.raises(UserError, match="asked for"):
        pieces.scores(expected=len(images) + 1)


@needs_libraries
def test_a_folder_of_references_scores_as_its_images_and_is_never_held_whole(
    features, real, samples, tmp_path, monkeypatch
):
    images, labels = samples
    quality.write_png(tmp_path, real)
    monkeypatch.setattr(quality_images, "PIECE", 64)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    held, read = [], FolderImages.__getitem__
    monkeypatch.setattr(FolderImages, "__getitem__", lambda *asked: held.append(found := read(*asked)) or found)
    found, wanted = (
        quality.score(images, labels, reference=reference, network=features)
        for reference in (
            quality.reference_folder(tmp_path, side=32),
            quality.reference_images(real, source=str(tmp_path)),
        )
    )
    alike = replace(wanted.distance, reference=found.distance.reference)
    assert found.distance == alike and found.second_opinion.value == wanted.second_opinion.value
    assert held and max(map(len, held)) <= 64
    assert (copies.thumbnails(quality.reference_folder(tmp_path, side=32).images) == copies.thumbnails(real)).all()


def test_a_reference_that_changes_while_it_is_read_is_refused(real, tmp_path):
    quality.write_png(tmp_path, real[:30])
    reference = quality.reference_folder(tmp_path, side=32)
    (tmp_path / "000007.png").write_bytes((tmp_path / "000008.png").read_bytes())
    with pytest.raises(UserError, match="000007.png was changed since the run began"):
        reference.images[0:30]
    assert quality.reference_folder(tmp_path, side=32).sha256 != reference.sha256


def registered(extractor):
    """Makes the network known to torch-fidelity; the name to give as `feature_extractor=`."""
    library = libraries.torch_fidelity()

    class Registered(library.feature_extractor_base.FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            seen, scored = extractor.forward(images)
            return tuple({"features": seen, "logits": scored}[layer] for layer in self.features_list)

    library.register_feature_extractor("ours", Registered)
    return "ours"


@needs_libraries
def test_scores_equal_torch_fidelity_on_the_same_images(features, real, samples):
    images, labels = samples
    found = quality.score(
        images,
        labels,
        reference=quality.reference_images(real, source="test"),
        network=features,
        seed=5,
        second_opinion=False,
    )
    library = libraries.torch_fidelity()

    class Bytes(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = torch.from_numpy(images)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, place):
            return self.images[place]

    name = registered(quality.from_network(features))
    theirs = library.calculate_metrics(
        input1=Bytes(images), input2=Bytes(real), feature_extractor=name, fid=True, kid=True, isc=True, prc=True,
        kid_subset_size=len(images), rng_seed=5, cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert found.distance.value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert found.kid.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert found.inception_score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert found.precision.value == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall.value == pytest.approx(theirs["recall"], abs=1e-6)
    assert found.distance.name == "FD-shapes", "never FID without the published Inception"
    for score in found.all():
        assert (score.value is None) == (score.reason is not None)
        if score.value is not None:
            assert score.low <= score.value <= score.high
            assert score.low < score.high


@needs_libraries
@pytest.mark.parametrize(("count", "size"), [(300, 100), (300, 20)])
def test_kid_over_subsets_equals_torch_fidelity_subset_by_subset(count, size):
    """Whether the kernel of all pairs is made at once, or, where it is larger than those of all subsets, of each subset."""
    rng = np.random.RandomState(0)
    some, others = rng.standard_normal((count, 16)), rng.standard_normal((count + 50, 16)) + 0.1
    assert (count * len(others) > 30 * size**2) == (size == 20)
    libraries.torch_fidelity()
    from torch_fidelity import metric_kid

    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(some),
        torch.from_numpy(others),
        kid_subsets=30,
        kid_subset_size=size,
        rng_seed=3,
        verbose=False,
    )
    found = kernel_distances(some, others, subsets=30, size=size, seed=3).mean()
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_a_folded_network_sees_what_the_plain_one_sees(features, judge, real, samples):
    """Within 1e-4 of the distance, relatively, which bfloat16 is not."""
    images, _ = samples

    def distance(look):
        return frechet.frechet_distance(frechet.gaussian(look(images)), frechet.gaussian(look(real)))

    def plain(of):
        with torch.inference_mode():
            return features.module.features(torch.from_numpy(of).float() / 255).numpy()

    def seen(dtype):
        return lambda of: extract(quality.from_network(features, dtype=dtype), of).features_ND

    assert distance(seen(torch.float32)) == pytest.approx(distance(plain), rel=1e-4)
    assert distance(seen(torch.bfloat16)) != pytest.approx(distance(plain), rel=1e-4)
    for network in (features, judge):
        norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded(network.module).modules())
        assert norms < sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.module.modules())


def test_the_judge_answers_in_bfloat16_what_it_answers_in_float32(judge, real):
    """Blurred until classes come close, so that some images are looked at again."""
    blurred = np.concatenate(
        [rounded(gaussian_blur(torch.from_numpy(real).float(), sigma).numpy()) for sigma in (1, 3, 5)]
    )
    exact = extract(quality.from_network(judge), blurred).logits_NC
    quick = extract(quality.from_network(judge, dtype=torch.bfloat16), blurred).logits_NC
    assert (exact.argmax(axis=1) != quick.argmax(axis=1)).any(), "images that rounding turns over"
    assert 2 * np.abs(exact - quick).max() < CLOSE
    answers = Judging(judge, device="cpu", quick=True).classes(blurred)
    assert (answers == exact.argmax(axis=1)).all()


@needs_libraries
@pytest.mark.filterwarnings("ignore:The `disp` argument")  # of our own call; `score` keeps it from its caller
def test_the_second_opinion_equals_clean_fid_on_folders(features, real, samples, tmp_path):
    images, labels = samples
    reference = quality.reference_images(real, source="test")
    found = quality.score(images, labels, reference=reference, network=features)
    for folder, of in (("samples", images), ("real", real)):
        quality.write_png(tmp_path / folder, of)
    theirs = libraries.clean_fid().fid.compute_fid(
        str(tmp_path / "samples"), str(tmp_path / "real"), num_workers=0, device=torch.device("cpu"), verbose=False,
        custom_feat_extractor=lambda batch: features.module.features(batch / 255), custom_fn_resize=lambda image: image,
    )  # fmt: skip
    assert found.second_opinion.value == pytest.approx(theirs, rel=1e-4)
    assert found.second_opinion.value == pytest.approx(found.distance.value, rel=1e-4)


def test_density_and_coverage_equal_their_definition():
    rng = np.random.RandomState(0)
    samples, real = rng.standard_normal((40, 3)) + 0.5, rng.standard_normal((60, 3))
    distances = np.linalg.norm(real[:, None] - real[None], axis=-1)
    radii = np.sort(distances, axis=1)[:, 5]
    inside = np.linalg.norm(real[:, None] - samples[None], axis=-1) < radii[:, None]
    found = density_coverage(samples, real)
    assert found.density_M.mean() == pytest.approx(inside.sum() / (5 * len(samples)))
    assert found.covered_N.mean() == pytest.approx(inside.any(axis=1).mean())


def test_halves_hold_half_of_every_class_and_are_the_same_for_the_same_labels():
    labels = np.arange(203) % 7
    splits = halves.splits_of(labels, dimensions=64, seed=0)
    for split in splits:
        assert abs(split.sum() - (~split).sum()) <= 1
        assert max(abs((labels[split] == one).sum() - (labels[~split] == one).sum()) for one in range(7)) <= 1
    assert len({split.tobytes() for split in splits}) == len(splits)
    np.testing.assert_array_equal(splits, halves.splits_of(labels, dimensions=64, seed=0))


def test_parts_hold_two_thirds_of_every_class():
    labels = np.arange(203) % 7
    for part in halves.thirds_left_out(labels, dimensions=64, seed=0):
        for one in range(7):
            assert abs((labels[part] == one).sum() - (labels == one).sum() * 2 / 3) < 1.01


@pytest.mark.parametrize("dimensions", [3, 29, 30, 31, 45, 70])
def test_figures_of_parts_are_those_of_the_parts_alone(dimensions):
    """Each is made for all parts at once, from fewer images than dimensions too; here one by one, by the formulas themselves."""
    rng = np.random.RandomState(0)
    samples, real = rng.standard_normal((60, dimensions)) + 0.2, rng.standard_normal((80, dimensions))
    splits = halves.splits_of(np.arange(60) % 3, dimensions=3, seed=0)[:4]

    def distance(part):
        return frechet.frechet_distance(frechet.gaussian(part), frechet.gaussian(real))

    def kernel(part):
        inner = (part @ part.T / dimensions + 1) ** 3
        return inner.mean() - 2 * ((part @ real.T / dimensions + 1) ** 3).mean()

    def covered(part):
        return density_coverage(part, real).covered_N.mean()

    def recall(part):
        reach = np.sort(np.linalg.norm(part[:, None] - part, axis=-1), axis=1)[:, 3]
        return (np.linalg.norm(real[:, None] - part, axis=-1) <= reach).any(axis=1).mean()

    for found, of in (
        (halves.of_distances(samples, frechet.gaussian(real), splits), distance),
        (halves.of_kernel_distances(samples, real, splits), kernel),
    ):
        np.testing.assert_allclose(found.first_S, [of(samples[split]) for split in splits])
        np.testing.assert_allclose(found.second_S, [of(samples[~split]) for split in splits])
        assert found.whole == pytest.approx(of(samples))
    parts = halves.thirds_left_out(np.arange(60) % 3, dimensions=3, seed=0)[:4]
    for shares, share_of in (
        (halves.of_coverages(samples, real, reaches(real), parts), covered),
        (halves.of_recalls(samples, real, parts, neighbours=3), recall),
    ):
        np.testing.assert_allclose(shares, [share_of(samples[part]) for part in parts])


@pytest.mark.parametrize(("far", "dimensions"), [(0.1, 3), (0.3, 3), (0.1, 30), (1.0, 30)])
def test_the_interval_of_a_squared_distance_holds_it_as_often_as_it_says(far, dimensions):
    """The squared length of a mean, which noise lengthens: chi-square, with all of its skew."""
    rng, count = np.random.RandomState(0), 200
    splits = halves.splits_of(np.arange(count) % 10, dimensions=dimensions, seed=0)
    truth = far**2 + dimensions / count

    def squares(means):
        return np.square(means).sum(axis=-1)

    held = []
    for _ in range(400):
        samples = rng.standard_normal((count, dimensions))
        samples[:, 0] += far
        first, second = (part @ samples / part.sum(axis=1, keepdims=True) for part in (splits, ~splits))
        whole = float(squares(samples.mean(axis=0)))
        found = intervals.of_distance(whole, halves.Halves(squares(first), squares(second), whole))
        held.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_scores_say_their_bias_and_keep_what_rows_are_compared_by(features, real, samples):
    images, labels = samples
    reference = quality.reference_images(real, source="test")
    found = quality.score(images, labels, reference=reference, network=features, second_opinion=False)
    fewer = quality.score(images[:200], labels[:200], reference=reference, network=features, second_opinion=False)
    assert 0 < found.distance.bias < fewer.distance.bias < fewer.distance.value
    assert len(found.distance.swings) == 40
    assert len(json.dumps(found.distance.swings)) < 1000, "records stay small"
    assert found.recall.bias is None


@pytest.fixture(scope="module")
def drawn():
    """The benchmark that draws sets whose truth is known."""
    path = Path(__file__).parents[1] / "benchmarks" / "quality_coverage.py"
    spec = importlib.util.spec_from_file_location("quality_coverage", path)
    sys.modules["quality_coverage"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say(drawn):
    """95 % of 120, to within three deviations of a count; and neither much wider nor narrower than repeats stray."""
    reference, shapes, gaussians, edges = drawn.populations(400, pool=3000)
    found, (distance, _) = drawn.coverage(shapes, reference, repeats=120, scores=drawn.SCORES)
    far, _ = drawn.coverage(gaussians, reference, repeats=120, scores=("distance",))
    for one in (*found, *far):
        assert 0.89 <= one.holds, one
        assert 0.8 < one.says / one.strays < 1.5, one
        if one.bias:
            assert one.bias[1] == pytest.approx(one.bias[0], rel=0.2), one
    for one in drawn.coverage(edges, reference, repeats=60, scores=drawn.SHARES)[0]:
        assert 0.9 <= one.holds, one
        assert 0.8 < one.says / one.strays, one  # wider near 0, where a few images decide
    assert distance.holds >= 0.89
    assert distance.width < 0.9, "rows that share noise are told apart by less"


# Sensitivity


@pytest.mark.slow
def test_the_distance_grows_steadily_with_what_is_wrong(features, judge):
    reference = gaussian_of(features, SHAPES.images(TEST[:1000]))
    images = SHAPES.images(TEST[1000:2000]).astype(np.float32)
    grain = np.random.RandomState(0).standard_normal(images.shape)

    def distances(variants):
        return [frechet.frechet_distance(gaussian_of(features, rounded(variant)), reference) for variant in variants]

    def blurred(pixels):
        return gaussian_blur(torch.from_numpy(images), pixels).numpy()

    more_classes = SHAPES.images(TEST[2000:4000])
    labels = SHAPES.labels(TEST[2000:4000])
    for worse in (
        distances([images, *(images + sigma * grain for sigma in (4, 8, 16, 32))]),
        distances([images, *(blurred(pixels) for pixels in (0.4, 0.6, 0.9, 1.4))]),
        distances([images, *(more_classes[labels >= dropped][:1000] for dropped in (1, 2, 4, 6))]),
    ):
        assert all(before * 1.3 < after for before, after in itertools.pairwise(worse)), worse


def test_swapped_labels_lower_the_class_accuracy_and_nothing_else(features, judge, real):
    images, labels = SHAPES.images(TEST[500:700]), SHAPES.labels(TEST[500:700])
    reference = quality.reference_images(real, source="test")
    accuracies, distances = [], []
    for swapped in (0, 20, 60, 120):
        given = labels.copy()
        given[:swapped] = (given[:swapped] + 1) % 10
        found = quality.score(images, given, reference=reference, network=features, judge=judge, second_opinion=False)
        accuracies.append(found.class_accuracy.value)
        distances.append(found.distance.value)
    assert accuracies == pytest.approx([1.0, 0.9, 0.7, 0.4], abs=0.03)
    assert len(set(distances)) == 1


def test_distance_to_the_full_models_images(features, real):
    extractor = quality.from_network(features)
    tokens = np.arange(60).reshape(20, 3)
    other = tokens.copy()
    other[:, 0] = -1
    near = quality.distance_to_full(
        rounded(real[:20] + 2.0), real[:20], extractor=extractor, tokens=other, full_tokens=tokens
    )
    far = quality.distance_to_full(rounded(real[:20] + 20.0), real[:20], extractor=extractor)
    assert near.psnr.value == pytest.approx(20 * np.log10(255 / 2), abs=0.5), "pixels at 255 moved less"
    assert far.psnr.value < near.psnr.value - 15
    assert near.feature_distance.value < far.feature_distance.value
    assert near.equal_tokens.value == pytest.approx(2 / 3)
    assert far.equal_tokens.value is None
    assert quality.distance_to_full(real[:20], real[:20]).psnr.reason == "every pixel is equal"


# Files


def test_floats_become_bytes_by_rounding_and_nan_is_refused():
    levels = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.2, -0.1]).view(1, 1, 1, 6).expand(2, 3, 1, 6)
    assert quality.to_uint8(levels)[0, 0, 0].tolist() == [0, 0, 1, 255, 255, 0]
    broken = levels.clone()
    broken[1, 2] = float("nan")
    with pytest.raises(UserError, match=r"1 of 2 images hold NaN"):
        quality.to_uint8(broken)


def test_samples_go_out_and_come_in_as_the_adm_suite_has_them(tmp_path, real):
    path = tmp_path / "samples.npz"
    quality.write_samples_npz(path, real)
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["arr_0"], real.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(quality.reference_npz(path).images, real)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"not a readable .npz"):
        quality.reference_npz(path)


def test_a_file_of_the_adm_suite_has_spatial_statistics_too(tmp_path, real):
    def spatial(**arrays):
        np.savez(tmp_path / "batch.npz", mu=np.zeros(8), sigma=np.eye(8), arr_0=real.transpose(0, 2, 3, 1), **arrays)
        return quality.reference_npz(tmp_path / "batch.npz").spatial

    square = np.zeros((2023, 2023), np.float32)
    assert spatial(mu_s=np.zeros(2023), sigma_s=square)
    assert not spatial()
    assert not spatial(mu_s=np.zeros(2023))
    assert not spatial(mu_s=np.zeros(8), sigma_s=np.eye(8))


def test_a_failed_export_leaves_nothing_behind(tmp_path, real, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"the disk is full"):
        quality.write_samples_npz(tmp_path / "samples.npz", real)
    assert list(tmp_path.glob("samples*")) == []


def test_reference_features_are_kept_by_content_and_never_by_name(features, real, samples, own_cache):
    images, labels = samples

    def distance(of):
        reference = quality.reference_images(of, source="the same name")
        return quality.score(images, labels, reference=reference, network=features, second_opinion=False).distance.value

    first = distance(real)
    kept = list((own_cache / "varbench" / "features").glob("*"))
    assert len(kept) == 2, "what the network saw in them, and how far their neighbourhoods reach"
    assert distance(real) == first
    assert distance(255 - real) != pytest.approx(first, rel=0.1)
    for file in kept:
        file.write_bytes(file.read_bytes()[:500])
    assert distance(real) == first, "a torn file is made again"


def test_features_that_were_forged_while_a_run_goes_on_are_computed_again(own_cache):
    """What this process has written itself counts, so that every row of a run has them of the first."""
    made = []

    def kept(*, before):
        def compute():
            made.append("features")
            return {"features": np.ones(3)}

        return cached_arrays("an input", compute=compute, before=before)["features"].sum()

    began = time.time_ns()
    assert [kept(before=began), kept(before=began)] == [3, 3]
    assert len(made) == 1
    (path,) = (own_cache / "varbench" / "features").glob("*.npz")
    np.savez(path, features=np.zeros(3))
    os.utime(path, (0, 0))
    assert kept(before=began) == 3
    np.savez(path, features=np.zeros(3))
    time.sleep(0.05)  # times of files are some milliseconds coarse
    assert kept(before=time.time_ns()) == 0, "what lay there when a run began is taken, as docs/results.md says"


def test_without_the_libraries_the_distance_is_ours_and_the_rest_has_a_reason(
    features, judge, real, samples, monkeypatch
):
    images, labels = samples
    reference = quality.reference_images(real, source="test")
    found_spec = libraries.importlib.util.find_spec
    monkeypatch.setattr(
        libraries.importlib.util,
        "find_spec",
        lambda name: None if name in ("torch_fidelity", "cleanfid") else found_spec(name),
    )
    found = quality.score(images, labels, reference=reference, network=features, judge=judge)
    expected = frechet.frechet_distance(gaussian_of(features, images), gaussian_of(features, real))
    assert found.distance.value == pytest.approx(expected)
    assert found.distance.implementation == "varbench, float64"
    assert found.coverage.value is not None
    assert found.class_accuracy.value is not None
    assert found.kid.value is not None
    for score in (found.precision, found.recall, found.inception_score, found.second_opinion):
        assert score.value is None
        assert "is not installed: pip install" in score.reason


# Inception


class MeanColours(torch.nn.Module):
    """Stands for clean-fid's TorchScript Inception: the mean of each channel, and 2,045 zeros."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, images: torch.Tensor, return_features: bool = True):
        assert return_features
        return self.layers((images - 128) / 128)


class Layers(torch.nn.Module):
    def forward(self, images):
        return torch.nn.functional.pad(images.mean(dim=(2, 3)), (0, 2045))


@needs_libraries
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("stored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_second_opinion_reads_inception_from_a_folder(stored, real, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(  # clean-fid's own takes half a minute at 2,048
        libraries.clean_fid().fid,
        "frechet_distance",
        lambda *four: frechet.frechet_distance(frechet.Gaussian(*four[:2]), frechet.Gaussian(*four[2:])),
    )
    script = tmp_path / second_opinion.TORCHSCRIPT_FILE
    torch.jit.script(MeanColours()).save(script)
    inception = extractors.Extractor(
        name="stand-in",
        sha256="",
        suffix="",
        dimensions=2048,
        forward=None,
        device="cpu",
        torchscript_folder=tmp_path,
    )

    def colours(images):
        return frechet.gaussian((images.mean(axis=(2, 3)) - 128) / 128)

    reference = quality.reference_images(real[:100], source="test")
    if stored:
        mu, sigma = np.zeros(2048), np.zeros((2048, 2048))
        mu[:3], sigma[:3, :3] = colours(real[:100]).mu, colours(real[:100]).sigma
        np.savez(tmp_path / "reference.npz", mu=mu, sigma=sigma)
        reference = quality.reference_npz(tmp_path / "reference.npz")
    with pytest.raises(libraries.UnavailableError, match=r"the published file's starts with f58cb9b6"):
        clean_fid(255 - samples[0][:100], reference, inception)
    found_hash = hashlib.sha256(script.read_bytes()).hexdigest()
    monkeypatch.setattr(second_opinion, "TORCHSCRIPT_SHA256_START", found_hash[:8])
    found = clean_fid(255 - samples[0][:100], reference, inception)
    expected = frechet.frechet_distance(colours(255 - samples[0][:100]), colours(real[:100]))
    assert found == pytest.approx(expected, rel=0.02)


def test_statistics_of_inception_do_not_fit_another_network(features, samples, tmp_path):
    np.savez(tmp_path / "reference.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    reference = quality.reference_npz(tmp_path / "reference.npz")
    with pytest.raises(UserError, match=r"only mu and sigma of the published Inception.*features-"):
        quality.score(*samples, reference=reference, network=features)


# Bad input


def test_wrong_counts_and_sizes_are_named_with_both_numbers(features, judge, real, samples, tmp_path):
    images, labels = samples
    reference = quality.reference_images(real, source="test")

    def score(images=images, labels=labels, reference=reference, **more):
        return quality.score(images, labels, reference=reference, network=features, **more)

    with pytest.raises(UserError, match=rf"{len(images)} images, and 1000 were asked for"):
        score(expected=1000)
    with pytest.raises(UserError, match=rf"{len(images)} samples and 10 labels"):
        score(labels=labels[:10])
    with pytest.raises(UserError, match=r"3 samples are too few"):
        score(images[:3], labels[:3])
    with pytest.raises(UserError, match=r"32 x 32 pixels, and the reference .* has 64 x 64"):
        score(reference=quality.reference_images(Shapes(side=64).images(range(30)), source="large"))
    with pytest.raises(UserError, match=r"reference few has 7 images, and at least 20"):
        score(reference=quality.reference_images(real[:7], source="few"))
    with pytest.raises(UserError, match=r"to 12, and judge-.* knows 10 classes"):
        score(labels=labels + 3, judge=judge)
    with pytest.raises(UserError, match=r"uint8 .* float32 of shape"):
        score(images.astype(np.float32) / 255)
    with pytest.raises(UserError, match=r"no file at"):
        quality.reference_npz(tmp_path / "missing.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(UserError, match=r"mu of shape \(3,\) and sigma of shape \(4, 4\)"):
        quality.reference_npz(tmp_path / "odd.npz")
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"not a readable .npz"):
        quality.reference_npz(tmp_path / "pickled.npz")


# torchvision beside any torch


def run_python(code, *, path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(path), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fake_torchvision(folder, library):
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if library is None:
        (package / f"_C{suffix}").write_bytes(b"no library")
    else:
        shutil.copy(library, package / f"_C{suffix}")
    (package / "_meta_registrations.py").write_text(
        '@register_meta("roi_align")\n@torch.library.register_fake("torchvision::nms")\n'
    )


IMPORT = """
    import json, torch
    from varbench.quality.torchvision_shim import import_torchvision
    module = import_torchvision()
    print(json.dumps([hasattr(torch.ops.torchvision, name) for name in ("nms", "roi_align", "other")]))
"""


def test_a_matching_torchvision_is_left_alone(tmp_path):
    import _ctypes

    fake_torchvision(tmp_path, _ctypes.__file__)  # any library that loads
    root = Path(quality.__file__).parent.parent.parent
    assert run_python(IMPORT, path=f"{tmp_path}:{root}") == [False, False, False]


def test_a_torchvision_whose_library_does_not_load_gets_its_operators_declared(tmp_path):
    fake_torchvision(tmp_path, None)
    root = Path(quality.__file__).parent.parent.parent
    assert run_python(IMPORT, path=f"{tmp_path}:{root}") == [True, True, False]


@needs_libraries
def test_the_installed_torchvision_imports_with_both_libraries_and_says_so_where_it_lacks_operators():
    code = """
        import json, torch
        from varbench.quality import libraries
        from varbench.quality.torchvision_shim import import_torchvision
        libraries.torch_fidelity(), libraries.clean_fid()
        vision = import_torchvision()
        try:
            kept = vision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist()
        except RuntimeError as error:
            kept = "custom C++ ops" in str(error) and not vision.extension._has_ops()
        print(json.dumps(kept))
    """
    assert run_python(code, path=Path(quality.__file__).parent.parent.parent) in ([0], True)


def test_files_for_a_moment_lie_in_memory_where_there_is_room(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(places, "IN_MEMORY", tmp_path)
    assert places.folder_for_a_moment(places.FEW + 1) is None
    monkeypatch.setattr(places, "FEW", free)
    assert places.folder_for_a_moment(free // 5) == tmp_path
    assert places.folder_for_a_moment(free) is None
    monkeypatch.setattr(places, "IN_MEMORY", tmp_path / "nowhere")
    assert places.folder_for_a_moment(1) is None
