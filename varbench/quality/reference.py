"""What samples are compared with: images, or a file of the ADM evaluation suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from varbench.base.hashing import file_hash
from varbench.data.folder import EXTENSIONS
from varbench.errors import UserError
from varbench.quality.extractors import Extractor, Features, extract_cached
from varbench.quality.feature_cache import content_hash
from varbench.quality.frechet import Gaussian, gaussian
from varbench.quality.images import FolderImages, Images, SomeImages, channels_first, check_images, read_npz
from varbench.quality.intervals import FEWEST

SPATIAL = 2_023
"""Spatial features of the published Inception: seven channels of its 17 x 17 map, by the ADM suite's evaluator."""


@dataclass(frozen=True)
class Reference:
    """Images, or the statistics of images, or both. `sha256` names it by content, wherever it came from."""

    source: str
    sha256: str
    images: SomeImages | None = None
    statistics: Gaussian | None = None
    """Of the published Inception's 2,048 features, as the ADM suite's files hold them."""
    spatial: bool = False
    """Whether it has statistics of Inception's spatial features too, which nobody needs here and each of those files holds."""
    kept_before: int | None = None
    """When what is kept of it has to have lain there to be taken over, in nanoseconds since 1970; None takes all."""


def reference_images(images: Images, *, source: str) -> Reference:
    """Reference images of any origin, as held-out ones of a data set."""
    checked = check_images(images, what=f"reference {source}")
    return Reference(source=source, sha256=content_hash(checked), images=checked)


def reference_folder(folder: str | Path, *, side: int) -> Reference:
    """All images below a folder, cropped to the middle square and resized to `side`, known by their files."""
    images = FolderImages(image_paths(folder), side=side)
    return Reference(source=str(folder), sha256=images.sha256, images=images)


def image_paths(folder: str | Path) -> list[Path]:
    """All images below a folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}. A reference is a folder of images, or an .npz of the ADM suite.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise UserError(f"{folder} holds no image ({', '.join(sorted(EXTENSIONS))}).")
    return paths


def reference_npz(path: str | Path) -> Reference:
    """An ADM file: `mu` and `sigma` of Inception features, `arr_0` images (N, S, S, 3), or both."""
    arrays = read_npz(path)
    images = statistics = None
    if "arr_0" in arrays:
        images = channels_first(arrays["arr_0"], path)
    if "mu" in arrays and "sigma" in arrays:
        mu, sigma = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise UserError(f"{path}: mu of shape {mu.shape} and sigma of shape {sigma.shape} do not belong together.")
        statistics = Gaussian(mu=mu, sigma=sigma)
    if images is None and statistics is None:
        raise UserError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; a reference needs mu and sigma, or arr_0."
        )
    spatial = [arrays[name].shape if name in arrays else None for name in ("mu_s", "sigma_s")]
    return Reference(
        source=str(path),
        sha256=file_hash(path),
        images=images,
        statistics=statistics,
        spatial=spatial == [(SPATIAL,), (SPATIAL, SPATIAL)],
    )


def check_reference(reference: Reference, extractor: Extractor, *, side: int) -> None:
    """Whether samples of `side` pixels can be scored against it by this network; both numbers where they cannot."""
    images, statistics = reference.images, reference.statistics
    if images is None and extractor.suffix:
        raise UserError(
            f"{reference.source} holds only mu and sigma of the published Inception, and scores are asked for from "
            f"{extractor.name}. Give Inception's weights, or a reference with images."
        )
    if statistics is not None and not extractor.suffix and len(statistics.mu) != extractor.dimensions:
        raise UserError(
            f"{reference.source} holds statistics of {len(statistics.mu)} features, and {extractor.name} has "
            f"{extractor.dimensions}. Give the reference that belongs to this network."
        )
    if images is None:
        return
    if images.shape[2:] != (side, side):
        raise UserError(
            f"samples have {side} x {side} pixels, and the reference {reference.source} has "
            f"{images.shape[3]} x {images.shape[2]}. Give a reference of the samples' size."
        )
    if len(images) < FEWEST:
        raise UserError(f"the reference {reference.source} has {len(images)} images, and at least {FEWEST} are needed.")


def reference_statistics(reference: Reference, extractor: Extractor, seen: Features | None) -> Gaussian:
    """Mean and covariance for the distance: the file's own where it has them, as the published numbers use them."""
    if reference.statistics is not None and not extractor.suffix:
        return reference.statistics
    assert seen is not None, "a checked reference without images is Inception's"
    return gaussian(seen.features_ND)


def reference_features(reference: Reference, extractor: Extractor) -> Features | None:
    """Features of the reference images, from the cache where this content was seen before; None without images."""
    if reference.images is None:
        return None
    return extract_cached(extractor, reference.images, content=reference.sha256, before=reference.kept_before)
