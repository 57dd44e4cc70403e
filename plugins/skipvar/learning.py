"""What calibration learns: of images on every way how like they stay to the full model's, and two logistic models from that.

Letters as in `deciding`, with N images, K numbers of last scales with none among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varbench.engine.calibration import on_each_way

from .deciding import AsLearned, Model, features, written_model

if TYPE_CHECKING:
    from varbench import Pipeline

SEED, FIRST_IMAGE = 2_506, 8_908_000
"""Of the noise: no image that is scored begins from it."""
BATCH = 64
NEVER = 1000.0
"""What the bias of a count is below the others' that no image was labelled with."""


def learned(policy: AsLearned, pipe: Pipeline, *, likeness: float, samples: int) -> dict[str, Any]:
    """Both models, as parameters of the row, with how often which number of scales could go."""
    counts = (len(policy.ways()) - 1) // 2
    policy.previews = policy.both_previews(policy.side)
    measured, ends, labelled = [], [], []
    for begin in range(0, samples, BATCH):
        images = range(begin, min(begin + BATCH, samples))
        labels = [image % pipe.model.classes for image in images]
        made = on_each_way(pipe, policy, labels, seed=SEED, first_image=FIRST_IMAGE + begin)
        measured.append(features(*made.seen.previews, circle=policy.circle).double().cpu())
        like_BW = torch.stack([ssim(images, made.images[0]) for images in made.images[1:]], dim=1).cpu()
        ends.append(most_left_out(like_BW[:, :counts], likeness))
        labelled.append(most_left_out(like_BW[:, counts:], likeness))
    features_N2 = torch.cat(measured)
    found: dict[str, Any] = {"parameters": {}, "samples": samples}
    for name, parts in (("ends", ends), ("labelled", labelled)):
        most_N = torch.cat(parts)
        model = fitted(features_N2, most_N, counts + 1)
        found["parameters"][name] = written_model(model)
        found[f"images by {name}"] = torch.bincount(most_N, minlength=counts + 1).tolist()
        found[f"{name} foreseen"] = float((foreseen(model, features_N2) == most_N).double().mean())
    return found


def most_left_out(like_BW: Tensor, threshold: float) -> Tensor:
    """(B): the largest number of last scales that an image stays alike enough without; 0 for none."""
    numbers_W = torch.arange(1, like_BW.shape[1] + 1)
    return ((like_BW >= threshold) * numbers_W).amax(dim=1)


def fitted(features_N2: Tensor, most_N: Tensor, classes: int) -> Model:
    """Softmax regression on standardised features, with half the square of the weights beside the sum of the losses; given for
    the features as they are, over the class of none left out."""
    mean, deviation = features_N2.mean(dim=0), features_N2.std(dim=0, correction=0).clamp_min(1e-12)
    standard_N2 = (features_N2 - mean) / deviation
    present = most_N.unique()
    classes_N = torch.searchsorted(present, most_N)
    weights = torch.zeros(len(present), 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], lr=1, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = standard_N2 @ weights[:, :2].T + weights[:, 2]
        value = F.cross_entropy(scores, classes_N, reduction="sum") + weights[:, :2].square().sum() / 2
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimiser.step(loss)
    found = torch.zeros(classes, 3, dtype=torch.float64)
    found[:, 2] = -NEVER
    scaled = weights.detach()[:, :2] / deviation
    found[present] = torch.cat((scaled, (weights.detach()[:, 2] - scaled @ mean)[:, None]), dim=1)
    rows = (found[1:] - found[0]).tolist()
    return tuple((row[0], row[1], row[2]) for row in rows)


def foreseen(model: Model, features_N2: Tensor) -> Tensor:
    rows = torch.tensor(model, dtype=torch.float64)
    scores = F.pad(features_N2 @ rows[:, :2].T + rows[:, 2], (1, 0))
    return scores.argmax(dim=1)


def ssim(images_B3ss: Tensor, others_B3ss: Tensor) -> Tensor:
    """(B): structural similarity of images in [0, 1], mean over places and colours; Gaussian window of 11 places, sigma 1.5."""
    place = torch.arange(11, device=images_B3ss.device) - 5
    line = (-place.square() / (2 * 1.5**2)).exp()
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blurred(x_B3ss: Tensor) -> Tensor:
        side = x_B3ss.shape[-1]
        mean: Tensor = F.conv2d(x_B3ss.reshape(-1, 1, side, side), window)
        return mean

    one, other = images_B3ss.float(), others_B3ss.float()
    mean, its_mean = blurred(one), blurred(other)
    spread = blurred(one.square()) - mean.square()
    its_spread = blurred(other.square()) - its_mean.square()
    together = blurred(one * other) - mean * its_mean
    small, large = 0.01**2, 0.03**2
    alike = (2 * mean * its_mean + small) * (2 * together + large)
    alike = alike / ((mean.square() + its_mean.square() + small) * (spread + its_spread + large))
    return alike.view(len(one), -1).mean(dim=1)
