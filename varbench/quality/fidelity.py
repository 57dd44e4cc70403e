"""The scores of one set of samples against one reference.

Values are those that others print: of torch-fidelity's own functions, or equal to them, on features that are extracted
once. Their 95 % intervals are ours (`varbench.quality.halves`): where other images of the same generator would lead, as
many, for the same labels, against the same reference. The libraries' known faults do not reach the caller: KID is seeded
(clean-fid's is not); Inception Score, which depends on the order of images, is taken after a fixed shuffle; nothing is
cached by name (`varbench.quality.feature_cache`); means are summed in float64 (`varbench.quality.frechet`); `np.int`, gone
from numpy, stands only in torch-fidelity's path for generative models, which is never taken; a distance that is not of the
published Inception is not called FID.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.base.stats import Interval
from varbench.errors import UserError
from varbench.quality import halves, intervals, libraries
from varbench.quality.extractors import Extractor, Features, extract, from_network
from varbench.quality.feature_cache import cached_arrays
from varbench.quality.frechet import Gaussian, frechet_distance, gaussian
from varbench.quality.halves import Halves, Parts, splits_of, thirds_left_out
from varbench.quality.image_features import ImageFeatures
from varbench.quality.images import Images, check_images
from varbench.quality.judging import Judging
from varbench.quality.kernel_distance import kernel_distances
from varbench.quality.manifold import density_coverage, reaches
from varbench.quality.networks import Network
from varbench.quality.reference import Reference, check_reference, reference_features, reference_statistics
from varbench.quality.second_opinion import CleanFid
from varbench.record import Score

Better = Literal["lower", "higher"]

_OWN = "varbench, float64"
_FIDELITY = "torch-fidelity"
_CLEAN = "clean-fid"
_NEIGHBOURS = 3
_KID_SUBSETS = 100
_KID_SUBSET = 1000
TOGETHER = 256
"""Images that wait until the networks look at them: a batch of generation may be a few."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Every score of a set of samples, the headline first. A missing one has no value, and a reason."""

    distance: Score
    class_accuracy: Score
    coverage: Score
    density: Score
    precision: Score
    recall: Score
    kid: Score
    inception_score: Score
    second_opinion: Score

    def all(self) -> tuple[Score, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


class Scoring:
    """Scores of images that come in pieces and are not kept: of each piece only what the networks see in it stays.

    `network` is our feature network, or `extractors.from_inception(...)`. `second_opinion` looks at every image by clean-fid
    too, which reads them from PNG files.
    """

    def __init__(
        self,
        reference: Reference,
        network: Extractor | Network,
        *,
        side: int,
        judge: Network | None = None,
        second_opinion: bool = True,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.extractor = from_network(network, device=device) if isinstance(network, Network) else network
        check_reference(reference, self.extractor, side=side)
        self.reference, self.judge, self.side, self.seed = reference, judge, side, seed
        self._judge = None if judge is None else Judging(judge, device=device)
        self._clean = CleanFid(reference, self.extractor) if second_opinion else None
        self._waiting: list[tuple[Images, NDArray[np.int64]]] = []
        self._looked: list[ImageFeatures] = []

    def take(self, images: Images, labels: NDArray[np.int64]) -> None:
        """Looks at some images (n, 3, S, S) and the labels that they were made for."""
        check_images(images, what="samples")
        if images.shape[2:] != (self.side, self.side):
            raise UserError(
                f"samples have {images.shape[3]} x {images.shape[2]} pixels, and {self.side} x {self.side} were expected; "
                f"the reference {self.reference.source} is of that size."
            )
        if len(labels) != len(images):
            raise UserError(
                f"{len(images)} samples and {len(labels)} labels: each sample needs the label it was made for."
            )
        self._waiting.append((images, np.asarray(labels, dtype=np.int64)))
        if sum(len(some) for some, _ in self._waiting) >= TOGETHER:
            self._see_waiting()

    def _see_waiting(self) -> None:
        if self._waiting:
            images, labels = zip(*self._waiting, strict=True)
            self._waiting.clear()
            self.add(self.seen_in(np.concatenate(images), np.concatenate(labels)))

    def seen_in(self, images: Images, labels_N: NDArray[np.int64]) -> ImageFeatures:
        """What the networks see in these images; it counts once it is added."""
        return ImageFeatures(
            labels_N=labels_N,
            seen=extract(self.extractor, images),
            judged_N=None if self._judge is None else self._judge.classes(images),
            clean_ND=None if self._clean is None else self._clean.seen_in(images),
        )

    def add(self, looked: ImageFeatures) -> None:
        self._looked.append(looked)
        if self._clean is not None:
            self._clean.add(looked.clean_ND)

    def distance(self, *, expected: int | None = None) -> Score:
        """The headline alone, where the others are not wanted."""
        return _distance(self._all_seen(expected))

    def scores(self, *, expected: int | None = None) -> Scores:
        """Of all images so far; `expected` is how many there must be."""
        scoring = self._all_seen(expected)
        precision, recall = _precision_recall(scoring)
        density, coverage = _density_coverage(scoring)
        distance = _distance(scoring)
        return Scores(
            distance=distance,
            class_accuracy=_class_accuracy(scoring, self.judge, [one.judged_N for one in self._looked]),
            coverage=coverage,
            density=density,
            precision=precision,
            recall=recall,
            kid=_kid(scoring),
            inception_score=_inception_score(scoring),
            second_opinion=_second_opinion(scoring, distance, self._clean),
        )

    def _all_seen(self, expected: int | None) -> _Seen:
        self._see_waiting()
        labels = np.concatenate([one.labels_N for one in self._looked]) if self._looked else np.empty(0, np.int64)
        if expected is not None and len(labels) != expected:
            raise UserError(
                f"samples: {len(labels)} images, and {expected} were asked for. Generate them all, then score."
            )
        if len(labels) < intervals.FEWEST:
            raise UserError(f"{len(labels)} samples are too few to score; generate at least {intervals.FEWEST}.")
        real = reference_features(self.reference, self.extractor)
        return _Seen(
            extractor=self.extractor,
            reference=self.reference,
            labels=labels,
            splits=splits_of(labels, dimensions=self.extractor.dimensions, seed=self.seed),
            parts=thirds_left_out(labels, dimensions=self.extractor.dimensions, seed=self.seed),
            seen=Features(
                features_ND=np.concatenate([one.seen.features_ND for one in self._looked]),
                logits_NC=np.concatenate([one.seen.logits_NC for one in self._looked]),
            ),
            real=real,
            real_statistics=reference_statistics(self.reference, self.extractor, real),
            seed=self.seed,
        )


def score(
    samples: Images,
    labels: NDArray[np.int64],
    *,
    reference: Reference,
    network: Extractor | Network,
    judge: Network | None = None,
    expected: int | None = None,
    second_opinion: bool = True,
    device: str = "cpu",
    seed: int = 0,
) -> Scores:
    """Scores of uint8 samples (N, 3, S, S) that are all there, and the labels they were generated for."""
    check_images(samples, what="samples", expected=expected)
    scoring = Scoring(
        reference, network, side=samples.shape[-1], judge=judge, second_opinion=second_opinion, device=device, seed=seed
    )
    scoring.take(samples, labels)
    return scoring.scores(expected=expected)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What every score needs of all images."""

    extractor: Extractor
    reference: Reference
    labels: NDArray[np.int64]
    splits: Parts
    parts: Parts
    seen: Features
    real: Features | None
    real_statistics: Gaussian
    seed: int

    def score(
        self,
        name: str,
        figure: Interval,
        implementation: str,
        *,
        of_halves: Halves | None = None,
        better: Better = "higher",
        bias: float | None = None,
    ) -> Score:
        return self._score(
            name, implementation, better, value=figure.value, low=figure.low, high=figure.high, bias=bias,
            swings=None if of_halves is None else tuple(float(f"{swing:.5g}") for swing in of_halves.swings_S),
        )  # fmt: skip

    def missing(self, name: str, reason: str, implementation: str, *, better: Better = "higher") -> Score:
        return self._score(name, implementation, better, reason=reason)

    def _score(self, name: str, implementation: str, better: Better, **figure: Any) -> Score:
        return Score(
            name=name,
            n=len(self.labels),
            better=better,
            implementation=implementation,
            features=self.extractor.name,
            weights_sha256=self.extractor.sha256,
            reference=self.reference.sha256,
            **figure,
        )


def _distance(scoring: _Seen) -> Score:
    """By torch-fidelity; where it is not installed, by our formula, which equals it.

    It is too high on average, the more the fewer images, and printed as it is, since others print it so; by how much
    stands beside it.
    """
    features, real = scoring.seen.features_ND, scoring.real_statistics
    found = gaussian(features)
    try:
        library, implementation = libraries.torch_fidelity(), libraries.version(_FIDELITY)
    except libraries.UnavailableError:
        value, implementation = frechet_distance(found, real), _OWN
    else:
        (value,) = library.metric_fid.fid_statistics_to_metric(
            {"mu": found.mu, "sigma": found.sigma}, {"mu": real.mu, "sigma": real.sigma}, False
        ).values()
    found_halves = halves.of_distances(features, real, scoring.splits)
    return scoring.score(
        scoring.extractor.distance_name,
        intervals.of_distance(value, found_halves),
        implementation,
        of_halves=found_halves,
        better="lower",
        bias=found_halves.bias,
    )


def _kid(scoring: _Seen) -> Score:
    """Mean over 100 seeded subsets, whose drawing adds a little to what other images would change."""
    name = scoring.extractor.named("KID")
    if scoring.real is None:
        return scoring.missing(name, _no_images(scoring), _OWN, better="lower")
    seen, real = scoring.seen.features_ND, scoring.real.features_ND
    size = min(_KID_SUBSET, len(seen), len(real))
    values = kernel_distances(seen, real, subsets=_KID_SUBSETS, size=size, seed=scoring.seed)
    of_halves = halves.of_kernel_distances(seen, real, scoring.splits)
    drawing = float(values.std()) / math.sqrt(_KID_SUBSETS)
    figure = intervals.of_halves(float(values.mean()), of_halves, besides=drawing)
    return scoring.score(name, figure, _OWN, of_halves=of_halves, better="lower")


def _inception_score(scoring: _Seen) -> Score:
    """Mean of ten blocks after a fixed shuffle; the interval is that of ten blocks."""
    name = scoring.extractor.named("IS")
    try:
        library = libraries.torch_fidelity()
    except libraries.UnavailableError as error:
        return scoring.missing(name, str(error), _FIDELITY)
    found = library.metric_isc.isc_features_to_metric(
        torch.from_numpy(scoring.seen.logits_NC), splits=intervals.BLOCKS, shuffle=True, rng_seed=scoring.seed
    )
    figure = intervals.of_blocks(found["inception_score_mean"], found["inception_score_std"])
    return scoring.score(name, figure, libraries.version(_FIDELITY))


def _precision_recall(scoring: _Seen) -> tuple[Score, Score]:
    """Shares of samples among the reference images, and of reference images among the samples."""
    if scoring.real is None:
        return _both_missing(scoring, ("precision", "recall"), _no_images(scoring), _FIDELITY)
    try:
        library = libraries.torch_fidelity()
    except libraries.UnavailableError as error:
        return _both_missing(scoring, ("precision", "recall"), str(error), _FIDELITY)
    seen, real = scoring.seen.features_ND, scoring.real.features_ND
    found = library.metric_prc.prc_features_to_metric(
        torch.from_numpy(seen),
        torch.from_numpy(real),
        prc_neighborhood=_NEIGHBOURS,
        save_cpu_ram=True,
        verbose=False,
    )
    of_halves = halves.of_recalls(seen, real, halves.both(scoring.splits), neighbours=_NEIGHBOURS)
    precision = intervals.share(found["precision"], len(seen))
    recall = intervals.share_around(found["recall"], halves.variance(of_halves, kept=halves.HALF), len(real))
    version = libraries.version(_FIDELITY)
    return scoring.score("precision", precision, version), scoring.score("recall", recall, version)


def _density_coverage(scoring: _Seen) -> tuple[Score, Score]:
    if scoring.real is None:
        return _both_missing(scoring, ("density", "coverage"), _no_images(scoring), _OWN)
    seen, real = scoring.seen.features_ND, scoring.real.features_ND
    reaching = cached_arrays(
        "reaches 1",
        scoring.extractor.sha256,
        scoring.reference.sha256,
        compute=lambda: {"reaches": reaches(real)},
        before=scoring.reference.kept_before,
    )["reaches"]
    found = density_coverage(seen, real, reaches_N=reaching)
    of_parts = halves.of_coverages(seen, real, reaching, scoring.parts)
    covered = intervals.share_around(
        float(found.covered_N.mean()), halves.variance(of_parts, kept=halves.TWO_THIRDS), len(real)
    )
    density = intervals.mean(found.density_M)
    return scoring.score("density", density, _OWN), scoring.score("coverage", covered, _OWN)


def _class_accuracy(scoring: _Seen, judge: Network | None, judged: list[NDArray[np.int64] | None]) -> Score:
    """Share of samples that the judge takes for the class they were generated for."""
    n = len(scoring.labels)
    if judge is None:
        return Score(
            name="class accuracy", n=n, better="higher", implementation=_OWN, reason="no judge for these classes"
        )
    classes = len(judge.config.classes)
    if scoring.labels.max() >= classes or scoring.labels.min() < 0:
        raise UserError(
            f"labels go from {scoring.labels.min()} to {scoring.labels.max()}, and {judge.name} knows {classes} classes. "
            "Give the judge that was trained on this data."
        )
    right = np.concatenate([some for some in judged if some is not None]) == scoring.labels
    figure = intervals.share(float(right.mean()), n)
    return Score(
        name="class accuracy",
        value=figure.value,
        low=figure.low,
        high=figure.high,
        n=n,
        better="higher",
        implementation=_OWN,
        features=judge.name,
        weights_sha256=judge.sha256,
    )


def _second_opinion(scoring: _Seen, distance: Score, clean: CleanFid | None) -> Score:
    """The same distance by clean-fid, from files, with an interval as wide as the first's."""
    name = f"{scoring.extractor.distance_name} (clean-fid)"
    if clean is None:
        return scoring.missing(name, "not asked for", _CLEAN, better="lower")
    try:
        value = clean.distance()
    except libraries.UnavailableError as error:
        return scoring.missing(name, str(error), _CLEAN, better="lower")
    half = (distance.high or 0.0) - (distance.value or 0.0)
    figure = Interval(value=value, low=min(value, max(0.0, value - half)), high=value + half)
    return scoring.score(name, figure, libraries.version(_CLEAN), better="lower")


def _both_missing(scoring: _Seen, names: tuple[str, str], reason: str, implementation: str) -> tuple[Score, Score]:
    return scoring.missing(names[0], reason, implementation), scoring.missing(names[1], reason, implementation)


def _no_images(scoring: _Seen) -> str:
    return f"the reference {scoring.reference.source} holds only mu and sigma, and this needs images"
