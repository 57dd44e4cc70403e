"""How far a method's images are from the full model's own, made with the same noise: cheap, sensitive, no reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varbench.base.stats import Interval
from varbench.errors import UserError
from varbench.quality import intervals
from varbench.quality.extractors import Extractor, extract
from varbench.quality.images import Images, check_images
from varbench.record import Score

_OWN = "varbench, float64"
_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class SameNoise:
    psnr: Score
    feature_distance: Score
    equal_tokens: Score


def distance_to_full(
    samples: Images,
    full: Images,
    *,
    extractor: Extractor | None = None,
    features: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    tokens: NDArray[np.integer] | None = None,
    full_tokens: NDArray[np.integer] | None = None,
    seed: int = 0,
) -> SameNoise:
    """Image by image: PSNR, distance of features, and the share of equal tokens (N, L). `features` are what the extractor sees in
    the samples and in the others, where that is known."""
    check_images(samples, what="samples", expected=len(full))
    check_images(full, what="the full model's images")
    if samples.shape != full.shape:
        raise UserError(f"samples have the shape {samples.shape}, and the full model's images {full.shape}.")
    return SameNoise(
        psnr=_psnr(samples, full, seed),
        feature_distance=_feature_distance(samples, full, extractor, features),
        equal_tokens=_equal_tokens(len(samples), tokens, full_tokens),
    )


def _psnr(samples: Images, full: Images, seed: int) -> Score:
    """PSNR of the mean square error over all images: the mean of single PSNRs is infinite when one image is equal."""
    errors = np.array(
        [np.square(one.astype(np.int32) - other).mean() for one, other in zip(samples, full, strict=True)]
    )
    if not errors.any():
        return _missing("PSNR", len(samples), "every pixel is equal")
    rng = np.random.RandomState(seed)
    drawn = np.array([errors[rng.randint(len(errors), size=len(errors))].mean() for _ in range(_DRAWS)])
    low, high = np.quantile(_decibel(np.maximum(drawn, np.finfo(float).tiny)), (0.025, 0.975))
    value = float(_decibel(errors.mean()))
    figure = Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))
    return _score("PSNR", figure, len(samples), better="higher")


def _feature_distance(
    samples: Images,
    full: Images,
    extractor: Extractor | None,
    features: tuple[NDArray[np.floating], NDArray[np.floating]] | None,
) -> Score:
    name = "feature distance"
    if extractor is None:
        return _missing(name, len(samples), "no feature network", better="lower")
    first, second = features or (extract(extractor, images).features_ND for images in (samples, full))
    figure = intervals.mean(np.linalg.norm(first.astype(np.float64) - second, axis=1))
    return _score(name, figure, len(samples), better="lower", extractor=extractor)


def _equal_tokens(n: int, tokens: NDArray[np.integer] | None, full_tokens: NDArray[np.integer] | None) -> Score:
    name = "equal tokens"
    if tokens is None or full_tokens is None:
        return _missing(name, n, "no tokens to compare")
    if tokens.shape != full_tokens.shape:
        return _missing(name, n, f"tokens of shape {tokens.shape} beside {full_tokens.shape} of the full model")
    figure = intervals.mean((tokens == full_tokens).reshape(len(tokens), -1).mean(axis=1))
    return _score(name, figure, n, better="higher")


def _decibel(square_error: NDArray[np.float64]) -> NDArray[np.float64]:
    decibel: NDArray[np.float64] = 10 * np.log10(255**2 / square_error)
    return decibel


def _score(name: str, figure: Interval, n: int, *, better: str, extractor: Extractor | None = None) -> Score:
    return Score(
        name=name,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        n=n,
        better=better,
        implementation=_OWN,
        features=extractor.name if extractor else None,
        weights_sha256=extractor.sha256 if extractor else None,
    )


def _missing(name: str, n: int, reason: str, *, better: str = "higher") -> Score:
    return Score(name=name, n=n, better=better, implementation=_OWN, reason=reason)
