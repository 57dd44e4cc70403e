"""What the images of a run are scored with: the feature network, the judge and the reference images."""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varbench.base.hashing import path_hash
from varbench.data.given import image_set
from varbench.data.image_set import ImageSet
from varbench.errors import UserError
from varbench.plan import presets
from varbench.quality import (
    Extractor,
    Network,
    Reference,
    from_inception,
    from_network,
    load_network,
    reference_folder,
    reference_images,
    reference_npz,
)
from varbench.quality.images import Images
from varbench.quality.torchvision_shim import import_torchvision
from varbench.record import WeightFile
from varbench.record.options import Options


class ScoringNetworks:
    """Loads each of them when it is first used."""

    def __init__(self, options: Options, *, side: int, device: str) -> None:
        self._options, self._side, self._device = options, side, device
        preset = presets.preset(options.model)
        self._assets = preset.assets
        self.sees = self._assets or options.features is not None or options.inception is not None
        """Whether there is a network to look."""
        compared = preset.draws_images or options.reference is not None or options.data is not None
        self.scores = self.sees and compared
        self._read: dict[str, str] = {}
        """Hashes of what real images were read from, by option."""

    @cached_property
    def data(self) -> ImageSet:
        """What the images are to look like, class by class."""
        return image_set(self._options.data, model=self._options.model, side=self._side)

    @cached_property
    def judge(self) -> Network | None:
        """Who tells the classes. One that was trained on others would call everything wrong, and is not asked."""
        given = self._options.judge
        if given is None and (not self._assets or self._options.inception is not None):
            return None
        judge = self._shipped("judge") if given is None else load_network(given)
        if judge.config.classes == self.data.classes:
            return judge
        if given is None:
            return None
        raise UserError(
            f"--judge {given} knows the {len(judge.config.classes)} classes {_some(judge.config.classes)}, and "
            f"{self.data.name} has the {len(self.data.classes)} classes {_some(self.data.classes)}; train one with "
            "varbench train judge --data FOLDER, and give that FOLDER here too"
        )

    @cached_property
    def extractor(self) -> Extractor:
        options = self._options
        if options.inception is not None:
            weights = Path(options.inception)
            return from_inception(weights, device=self._device, torchscript_folder=weights.parent)
        if options.features is not None:
            return from_network(load_network(options.features), device=self._device)
        if self._assets:
            return from_network(self._shipped("features"), device=self._device)
        raise UserError(
            "scores need a network that looks at the images: give the path of the published Inception weights, which are "
            "not downloaded for you, by --inception FILE, or one of varbench train features by --features FILE"
        )

    @cached_property
    def reference(self) -> Reference:
        path, data = self._options.reference, self._options.data
        if path is None:
            held_out = self.data.test[: self._options.images]
            found = reference_images(self.data.images(held_out), source=f"{self.data.name}, held out")
            self._read |= {} if data is None else {"data": path_hash(data)}
        elif path.endswith(".npz"):
            found = reference_npz(path)
            self._read["reference"] = found.sha256
        else:
            found = reference_folder(path, side=self._side)
            self._read["reference"] = path_hash(path)
        return found

    @property
    def against(self) -> str:
        """What scores are against, and which part of it feeds which."""
        reference, images = self.reference, self.reference.images
        own = reference.statistics is not None and not self.extractor.suffix
        counted = "" if images is None else f"its {len(images):,} images"
        if not own:
            return f"{reference.source}: {counted}"
        others = f"; precision, recall, density, coverage and KID by {counted}" if counted else ""
        return f"{reference.source}: the distance by its mu and sigma{others}"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes by number; empty where nobody knows them."""
        if self._options.data is not None:
            return self.data.classes
        if self._assets:
            return self._shipped("features").config.classes
        known = presets.preset(self._options.model).spec.classes
        names = imagenet_classes()
        return names if len(names) == known else ()

    def further_images(self) -> tuple[Images, NDArray[np.int64]] | None:
        """Real images with their labels beside the reference's, as many as are scored; None where there are not so many."""
        count = self._options.images
        others = [*self.data.test[count : 2 * count], *self.data.validation[:count]][:count]
        if self._options.reference is not None or len(others) < count:
            return None
        return self.data.images(others), self.data.labels(others)

    def files(self) -> tuple[WeightFile, ...]:
        networks = [("features", self.extractor.sha256)] + ([("judge", self.judge.sha256)] if self.judge else [])
        return tuple(WeightFile(role=role, name=role, sha256=sha256) for role, sha256 in networks)

    def contents(self) -> dict[str, str]:
        """Hashes of what scores are made with, as they were when it was read: they are held against what was prepared."""
        network = "features" if self._options.inception is None else "inception"
        judge = {"judge": self.judge.sha256} if self.judge else {}
        return {**self._read, network: self.extractor.sha256, **judge}

    def _shipped(self, kind: str) -> Network:
        return load_network(presets.scoring_network(self._options.model, kind))


def imagenet_classes() -> tuple[str, ...]:
    """In the order of the official labels, as torchvision tells them with its weights; empty without torchvision."""
    try:
        import_torchvision()
        models = importlib.import_module("torchvision.models")
    except (ImportError, UserError):
        return ()
    return tuple(models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
