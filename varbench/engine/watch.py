"""Notes what a generation does, from the tensors that it is shown. It is not told the plan.

Shapes are free, and memory is asked at the storages, so every generation is watched.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from varbench.engine.cache import State
from varbench.model.transformer import Layer, Transformer
from varbench.plan.steps import CachePlace
from varbench.plan.trace import CacheSeen, CallSeen, StepSeen, Trace
from varbench.policies import SubLayerName


class Watch:
    def __init__(self, backbones: Mapping[str, Transformer], state: State) -> None:
        self._state = state
        self._layers = {
            id(backbone.block(layer)): (name, layer)
            for name, backbone in backbones.items()
            for layer in range(len(backbone.blocks))
        }
        self._hidden = {name: backbone.spec.hidden for name, backbone in backbones.items()}
        self._steps: list[StepSeen] = []
        self._between = 0
        self._taken: tuple[int, ...] = ()

    def follow(self, state: State) -> None:
        """From here on these caches are filled: those of some of the images."""
        self._state = state

    def begin(self, labels_B: Tensor) -> None:
        self._calls: list[CallSeen] = []
        self._embedded, self._images = 0, len(labels_B)
        self._peak, self._between = max(self._between, self._state.nbytes), 0

    def splits(self) -> None:
        """While caches are copied for parts of the images: the next step's peak may lie here."""
        self._between = max(self._between, self._state.nbytes)

    def previewed(self, map_BDhw: Tensor) -> None:
        """What is decoded to decide by, after a step."""
        last = self._steps[-1]
        self._steps[-1] = last._replace(previewed=(*last.previewed, (len(map_BDhw), map_BDhw.shape[-1])))

    def decided(self, ways_B: Tensor, count: int) -> None:
        """The way of each image, of so many ways."""
        self._taken = tuple(torch.bincount(ways_B, minlength=count).tolist())

    def embedded(self, features_BlD: Tensor) -> None:
        self._embedded += features_BlD.shape[1]

    def layer(self, block: Layer) -> None:
        """A layer begins; what nothing enters stays nothing."""
        backbone, layer = self._layers[id(block)]
        self._call = CallSeen(
            backbone=backbone, layer=layer, attending=0, attention=0, ffn=0, hidden=0, routed=0, estimated=0, masked=False,
            caches=(),
        )  # fmt: skip
        self._caches: list[CacheSeen] = []

    def attention(self, hidden_RnC: Tensor) -> None:
        """What enters the layer's attention."""
        rows, tokens = hidden_RnC.shape[:2]
        self._call = self._call._replace(attending=rows, attention=tokens)

    def attended(self, queries_RHLc: Tensor, own_RHLc: Tensor, keys_RHnc: Tensor, mask: Tensor | None) -> None:
        """What enters the product of a group of heads."""
        own = own_RHLc.shape[2]
        if mask is not None:
            self._call = self._call._replace(masked=True)
        self._caches.append(CacheSeen(queries_RHLc.shape[1], read=keys_RHnc.shape[2] - own, own=own, kept=0, room=0))
        self.remembers()

    def observed(self, queries_RHmc: Tensor) -> None:
        """Queries whose attention is computed once more."""
        self._caches[-1] = self._caches[-1]._replace(observed=queries_RHmc.shape[2])

    def merged(self, kept_RHnc: Tensor) -> None:
        """The keys that come out of a merge."""
        before = self._caches[-1]
        self._caches[-1] = before._replace(merged=before.read + before.own - kept_RHnc.shape[2])

    def settled(self, place: CachePlace, written: int) -> None:
        """How many entries the group's cache was left with."""
        self._caches[-1] = self._caches[-1]._replace(kept=written, room=self._state.room(place))

    def remembers(self) -> None:
        """At every moment when the state may be larger than before."""
        self._peak = max(self._peak, self._state.nbytes)

    def picked(self, places_Rn: Tensor) -> None:
        """Tokens that are to be computed."""
        self._call = self._call._replace(picked=self._call.picked + len(places_Rn))

    def filled(self, name: SubLayerName, output_RLC: Tensor) -> None:
        """What a sub-layer that computed picked tokens gives for all."""
        attention, ffn = self._call.filled
        rows = len(output_RLC)
        self._call = self._call._replace(
            filled=(attention + rows, ffn) if name == "attention" else (attention, ffn + rows)
        )

    def noted(self, name: SubLayerName, rows: int) -> None:
        """Rows of which a policy noted something once a sub-layer had run."""
        attention, ffn = self._call.noted
        self._call = self._call._replace(
            noted=(attention + rows, ffn) if name == "attention" else (attention, ffn + rows)
        )

    def ffn(self, hidden_RnC: Tensor) -> None:
        """What enters the layer's FFN."""
        self._call = self._call._replace(ffn=hidden_RnC.shape[1])

    def closed_ffn(self, hidden_RnC: Tensor) -> None:
        """One that a plugin put in the place of the layer's own shows nothing of its inside, and counts as what it stands for."""
        made = hidden_RnC.shape[:2].numel() * self._hidden[self._call.backbone]
        self._call = self._call._replace(hidden=self._call.hidden + made)

    def layer_ends(self) -> None:
        self._calls.append(self._call._replace(caches=tuple(self._caches)))

    def routed(self, chosen_RnM: Tensor) -> None:
        """The experts that tokens were sent to."""
        self._call = self._call._replace(routed=self._call.routed + chosen_RnM.shape[:-1].numel())

    def estimated(self, output_RnC: Tensor) -> None:
        """What stands in for the output of tokens that are left out."""
        self._call = self._call._replace(estimated=self._call.estimated + output_RnC.shape[:-1].numel())

    def part(self, made: Tensor) -> None:
        """Hidden numbers that the FFN, or a part of it, made."""
        self._call = self._call._replace(hidden=self._call.hidden + made.numel())

    def end(self, rows: int, logits_RlV: Tensor) -> None:
        self._steps.append(
            StepSeen(
                images=self._images,
                rows=rows,
                embedded=self._embedded,
                drawn=logits_RlV.shape[1],
                calls=tuple(self._calls),
                state_peak=self._peak,
                state_after=self._state.nbytes,
            )
        )

    def trace(self) -> Trace:
        return Trace(steps=tuple(self._steps), taken=self._taken)
