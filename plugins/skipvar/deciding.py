"""What is measured of the previews, and the way that two logistic models choose by it.

Letters: B images, s pixels along a side, W numbers of last scales to leave out, 1 or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from varbench.errors import UserError
from varbench.policies import DecisionPolicy, Preview, SoFar, Way
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

Model = tuple[tuple[float, float, float], ...]
"""For each number of last scales, beginning with one: the weights of both features and a bias, over those of leaving out none."""


def decided_after(model: ModelSpec) -> int:
    """As many scales as draw a quarter of all tokens or less, but two at least."""
    return max(2, sum(start <= model.length / 4 for start in model.starts[1:]))


def way_names(model: ModelSpec, first: int) -> tuple[str, ...]:
    """In the order of the ways: `on`, then `end1` … without the last scales, then `labelled1` … without guidance there."""
    counts = range(1, model.scales - first + 1)
    return ("on", *(f"end{count}" for count in counts), *(f"labelled{count}" for count in counts))


def read_model(text: str, count: int, *, what: str) -> Model | None:
    """Weights and biases as `written_model` wrote them; None of an empty text."""
    if not text:
        return None
    try:
        numbers = [float(number) for number in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 * count:
        raise UserError(
            f"{what} is {text!r}; give {3 * count} numbers with strokes between them, two weights and a bias for each number "
            f"of last scales from 1 to {count}, as `varbench calibrate` does"
        )
    return tuple((numbers[at], numbers[at + 1], numbers[at + 2]) for at in range(0, len(numbers), 3))


def written_model(rows: Model) -> str:
    return "/".join(f"{number:.4g}".replace("e+", "e") for row in rows for number in row)


class AsLearned(DecisionPolicy):
    """Ends an image before its last scales as the first model says; of images that go on, guidance ends as the second says."""

    def __init__(
        self,
        model: ModelSpec,
        *,
        first: int,
        side: int,
        circle: float,
        ends: Model | None,
        labelled: Model | None,
        together: bool,
        always: int | None,
    ) -> None:
        self._scales, self._first, self.circle = model.scales, first, circle
        self._models, self._always, self.together = (ends, labelled), always, together
        decides = always is None and (ends is not None or labelled is not None)
        self.previews = self.both_previews(side) if decides else ()
        self.side = side

    def both_previews(self, side: int) -> tuple[Preview, Preview]:
        """After the scale before, and after the one at which it is decided."""
        return Preview(scale=self._first - 2, side=side), Preview(scale=self._first - 1, side=side)

    def after(self) -> int:
        return self._first - 1

    def ways(self) -> Sequence[Way]:
        counts = range(1, self._scales - self._first + 1)
        ends = (Way(ends=self._scales - count) for count in counts)
        return (Way(), *ends, *(Way(labelled=self._scales - count) for count in counts))

    def decide(self, seen: SoFar) -> Sequence[int]:
        if not self.previews:
            return [self._always or 0] * len(seen.map_BDhw)
        features_B2 = features(*seen.previews, circle=self.circle)
        if self.together:
            features_B2 = features_B2.mean(dim=0, keepdim=True).expand(len(features_B2), -1)
        return [self._way(*pair) for pair in features_B2.tolist()]

    def _way(self, difference: float, share: float) -> int:
        counts = [_likeliest(model, difference, share) for model in self._models]
        return counts[0] or (counts[1] and self._scales - self._first + counts[1])


def _likeliest(model: Model | None, difference: float, share: float) -> int:
    """How many last scales to leave out."""
    scores = [0.0, *(a * difference + b * share + bias for a, b, bias in model or ())]
    return scores.index(max(scores))


def features(earlier_B3ss: Tensor, later_B3ss: Tensor, *, circle: float) -> Tensor:
    """(B, 2): how far edges differ between two previews, and the share of high frequencies in the later one."""
    import torch

    difference_Bss = (edges(later_B3ss) - edges(earlier_B3ss)).abs()
    return torch.stack((difference_Bss.mean(dim=(1, 2)), high_share(later_B3ss, circle=circle)), dim=1)


def edges(images_B3ss: Tensor) -> Tensor:
    """Sobel's magnitude (B, s, s) of the mean over colours, with zeros around."""
    import torch.nn.functional as F

    grey = F.pad(images_B3ss.mean(dim=1), (1, 1, 1, 1))
    across = grey[:, :, :-2] - grey[:, :, 2:]
    across = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    down = grey[:, :-2] - grey[:, 2:]
    down = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return (across.square() + down.square()).sqrt()


def high_share(images_B3ss: Tensor, *, circle: float) -> Tensor:
    """(B): amplitudes outside a circle of low frequencies, as a share of all."""
    import torch

    side = images_B3ss.shape[-1]
    amplitude_Bss = torch.fft.fft2(images_B3ss.mean(dim=1)).abs()
    frequency = (torch.fft.fftfreq(side, device=images_B3ss.device) * side).round()
    outside = (frequency.square()[:, None] + frequency.square()).sqrt() > int(circle * side / 2)
    share_B: Tensor = (amplitude_Bss * outside).sum(dim=(1, 2)) / (amplitude_Bss.sum(dim=(1, 2)) + 1e-6)
    return share_B
