"""What the images of a run are scored with: the feature network, the judge and the reference images."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from varbench.data.shapes import Shapes
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
from varbench.record import WeightFile
from varbench.record.options import Options


class ScoringNetworks:
    """Loads each of them when it is first used."""

    def __init__(self, options: Options, *, side: int, device: str) -> None:
        self._options, self._side, self._device = options, side, device
        ships_data = presets.preset(options.model).assets
        self.own = ships_data and options.inception is None
        """Whether the networks are those that ship with the preset."""
        self.scores = ships_data or options.reference is not None

    @cached_property
    def judge(self) -> Network | None:
        return self._network("judge") if self.own else None

    @cached_property
    def extractor(self) -> Extractor:
        if self.own:
            return from_network(self._network("features"), device=self._device)
        if self._options.inception is None:
            raise UserError(
                "scores against a reference need the published Inception weights, which are not downloaded for you: "
                "give their path, --inception FILE"
            )
        weights = Path(self._options.inception)
        return from_inception(weights, device=self._device, torchscript_folder=weights.parent)

    @cached_property
    def reference(self) -> Reference:
        path = self._options.reference
        if path is None:
            data = Shapes(side=self._side)
            return reference_images(data.images(data.test[: self._options.images]), source=f"{data.name}, held out")
        if path.endswith(".npz"):
            return reference_npz(path)
        return reference_folder(path, side=self._side)

    def files(self) -> tuple[WeightFile, ...]:
        networks = [("features", self.extractor.sha256)] + ([("judge", self.judge.sha256)] if self.judge else [])
        return tuple(WeightFile(role=role, name=role, sha256=sha256) for role, sha256 in networks)

    def _network(self, kind: str) -> Network:
        return load_network(presets.asset_folder(self._options.model) / f"{kind}.safetensors")
