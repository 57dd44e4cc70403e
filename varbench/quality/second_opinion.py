"""The Fréchet distance once more by clean-fid, which reads the samples from PNG files and does its own arithmetic.

Of clean-fid only functions that neither download, nor write into its installed folder, nor draw unseeded random numbers
are called. It calls `scipy.linalg.sqrtm(disp=False)`, gone in SciPy 1.18; a newer SciPy is a missing score with a reason.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from varbench.base.hashing import file_hash
from varbench.base.places import folder_for_a_moment
from varbench.quality import libraries
from varbench.quality.extractors import Extractor, full_precision
from varbench.quality.feature_cache import cached_arrays
from varbench.quality.images import Images, pieces, write_png
from varbench.quality.reference import Reference

TORCHSCRIPT_FILE = "inception-2015-12-05.pt"
TORCHSCRIPT_SHA256_START = "f58cb9b6"

CleanNetwork = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Images], Images] | None]
"""Of floats in [0, 255], and how images are resized for it (None: as clean-fid does)."""


class CleanFid:
    """clean-fid's distance with our network, or with Inception where `extractor.torchscript_folder` holds its form.

    What lacks for it (the library, that form) is raised by `distance`, when all else is scored.
    """

    def __init__(self, reference: Reference, extractor: Extractor) -> None:
        self._reference, self._extractor = reference, extractor
        self._seen: list[NDArray[np.float32]] = []
        self._lacks: libraries.UnavailableError | None = None

    def seen_in(self, images: Images) -> NDArray[np.float32] | None:
        """Features, which count once they are added; None where something lacks."""
        if self._lacks is None:
            try:
                with _quiet():
                    return self._features(images)
            except libraries.UnavailableError as error:
                self._lacks = error
        return None

    def add(self, features_ND: NDArray[np.float32] | None) -> None:
        if features_ND is not None:
            self._seen.append(features_ND)

    def distance(self) -> float:
        if self._lacks is not None:
            raise self._lacks
        try:
            with _quiet():
                if not self._seen:  # an earlier process looked, where something lacked
                    _ = self._network
                return self._distance(np.concatenate(self._seen))
        except TypeError as error:
            if "disp" not in str(error):
                raise
            raise libraries.UnavailableError(
                f"{libraries.version('clean-fid')} needs an older SciPy than {libraries.version('scipy')}: "
                "pip install 'scipy<1.18'"
            ) from error

    @cached_property
    def _network(self) -> CleanNetwork:
        return _network(libraries.clean_fid(), self._extractor, legacy=self._legacy)

    @property
    def _legacy(self) -> bool:
        """Stored Inception statistics were made with TensorFlow's resize, so samples must be resized in the same way."""
        return self._reference.statistics is not None and not self._extractor.suffix

    def _features(self, images: Images) -> NDArray[np.float32]:
        with tempfile.TemporaryDirectory(dir=folder_for_a_moment(images.nbytes)) as folder, full_precision():
            model, resize = self._network
            write_png(folder, images)
            found: NDArray[np.float32] = libraries.clean_fid().fid.get_folder_features(
                folder,
                model,
                num_workers=0,
                batch_size=64,
                device=torch.device(self._extractor.device),
                mode="legacy_tensorflow" if self._legacy else "clean",
                custom_fn_resize=resize,
                verbose=False,
            )
        return found

    def _distance(self, found: NDArray[np.float32]) -> float:
        library, reference = libraries.clean_fid(), self._reference
        if self._legacy:
            assert reference.statistics is not None
            mu, sigma = found.mean(axis=0, dtype=np.float64), np.cov(found, rowvar=False)
            statistics = reference.statistics
            return float(library.fid.frechet_distance(mu, sigma, statistics.mu, statistics.sigma))
        images = reference.images
        assert images is not None
        real = cached_arrays(
            libraries.version("clean-fid"),
            self._extractor.sha256,
            reference.sha256,
            compute=lambda: {"features": np.concatenate([self._features(piece) for piece in pieces(images)])},
            before=reference.kept_before,
        )["features"]
        return float(library.fid.fid_from_feats(found, real))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `disp` argument", category=DeprecationWarning)
        yield


def _network(library: ModuleType, extractor: Extractor, *, legacy: bool) -> CleanNetwork:
    if extractor.suffix:
        return lambda batch: extractor.forward(batch.round().to(torch.uint8))[0], lambda image: image
    folder = extractor.torchscript_folder
    if folder is None or not (folder / TORCHSCRIPT_FILE).is_file():
        raise libraries.UnavailableError(
            f"no {TORCHSCRIPT_FILE}, the form of Inception that clean-fid reads, beside the weights of {extractor.name}"
        )
    found = file_hash(folder / TORCHSCRIPT_FILE)
    if not found.startswith(TORCHSCRIPT_SHA256_START):  # opened, it could run code; and its distance would be no FID
        raise libraries.UnavailableError(
            f"{folder / TORCHSCRIPT_FILE} has a sha256 that starts with {found[:8]}, and the published file's starts with "
            f"{TORCHSCRIPT_SHA256_START}"
        )
    inception = library.inception_torchscript.InceptionV3W(str(folder), download=False, resize_inside=legacy)
    return inception.to(extractor.device).eval(), None
