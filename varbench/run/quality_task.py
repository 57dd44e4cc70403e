"""The quality task: images of every row of one set of weights, their scores, a few of them to look at."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from varbench.data.shapes import Shapes
from varbench.engine.pipeline import Pipeline
from varbench.errors import UserError
from varbench.measure.speed import Generation, balanced_labels, check_images
from varbench.plan import presets
from varbench.quality import (
    Extractor,
    Network,
    Reference,
    distance_to_full,
    from_inception,
    from_network,
    load_network,
    reference_folder,
    reference_images,
    reference_npz,
    score,
    to_uint8,
)
from varbench.quality.images import Images
from varbench.quality.reference import check_reference
from varbench.record import Distance, Samples, Score
from varbench.run.jobs import Job

if TYPE_CHECKING:
    from varbench.run.channel import Channel

GRID = 40
"""Images kept to look at."""

COMPARED = 256
"""Images that are held against the full model's own under the same noise."""


def make_and_score(job: Job, pipe: Pipeline, channel: Channel) -> None:
    looks = Looks(job, side=pipe.model.image_side)
    if looks.scores:  # before any image is made that could not be scored
        check_reference(looks.reference, looks.extractor, side=pipe.model.image_side)
    for row in job.rows:
        with channel.row(row):
            made = Generation(pipe=pipe, row=row, cfg=job.options.cfg, top_k=job.options.top_k, top_p=job.options.top_p)
            images, tokens = _generate(job, pipe, made, channel)
            labels = np.asarray(balanced_labels(job.options.images, pipe.model.classes))
            content: dict[str, Any] = {"samples": asdict(samples(images, labels, tokens=tokens))}
            if looks.scores:
                channel.say("progress", row=row, scoring=True)
                content |= scored(job, looks, images, labels)
            if row == job.full and job.full_images is not None:
                _keep(Path(job.full_images), images, tokens)
            elif job.full_images is not None and Path(job.full_images).is_file():
                content["distance"] = asdict(_distance(looks, Path(job.full_images), images, tokens))
            if row == job.full and job.floors and looks.scores:
                channel.say("progress", row=row, floors=True)
                content["floors"] = {name: asdict(one) for name, one in _floors(job, pipe, looks).items()}
            channel.result(row, **content)


def scored(job: Job, looks: Looks, images: Images, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Scores of a row's images, and the files that they were made with."""
    found = score(
        images,
        labels,
        reference=looks.reference,
        network=looks.extractor,
        judge=looks.judge,
        expected=job.options.images,
        second_opinion=job.options.second_opinion,
        device=job.options.device,
    )
    return {"scores": [asdict(one) for one in found.all()], "weights": looks.files()}


class Looks:
    """Who looks at the images and what they are compared with; made when first asked for, once a child."""

    def __init__(self, job: Job, *, side: int) -> None:
        self._job, self._side = job, side
        ships_data = presets.preset(job.options.model).assets
        self.own = ships_data and job.options.inception is None
        self.scores = ships_data or job.options.reference is not None
        self.judge: Network | None = None
        self._network: Network | None = None
        if self.own:
            folder = presets.asset_folder(job.options.model)
            self._network, self.judge = (load_network(folder / f"{kind}.safetensors") for kind in ("features", "judge"))

    @property
    def extractor(self) -> Extractor:
        return _extractor(self)

    @property
    def reference(self) -> Reference:
        return _reference(self)

    def files(self) -> list[dict[str, str]]:
        networks = [("features", self.extractor.sha256)] + ([("judge", self.judge.sha256)] if self.judge else [])
        return [{"role": role, "name": role, "sha256": sha256} for role, sha256 in networks]


@cache
def _extractor(looks: Looks) -> Extractor:
    if looks._network is not None:
        return from_network(looks._network, device=looks._job.options.device)
    if looks._job.options.inception is None:
        raise UserError(
            "scores against a reference need the published Inception weights, which are not downloaded for you: "
            "give their path, --inception FILE"
        )
    weights = Path(looks._job.options.inception)
    return from_inception(weights, device=looks._job.options.device, torchscript_folder=weights.parent)


@cache
def _reference(looks: Looks) -> Reference:
    path = looks._job.options.reference
    if path is None:
        data = Shapes(side=looks._side)
        return reference_images(data.images(data.test[: looks._job.options.images]), source=f"{data.name}, held out")
    if path.endswith(".npz"):
        return reference_npz(path)
    return reference_folder(path, side=looks._side)


def _generate(job: Job, pipe: Pipeline, made: Generation, channel: Channel) -> tuple[Images, NDArray[np.int64]]:
    """All images, a batch at a time. The noise is keyed by the image's number, so the batch does not matter."""
    side = pipe.model.image_side
    images = np.empty(
        (job.options.images, 3, side, side), np.uint8
    )  # filled in place: 50,000 at 256 px are 9.8 GB, once
    tokens = []
    for first in range(0, job.options.images, job.options.batch):
        count = min(job.options.batch, job.options.images - first)
        output = made(balanced_labels(count, pipe.model.classes, first=first), seed=job.options.seed, first=first)
        check_images(output.images, batch=count, side=side)
        images[first : first + count] = to_uint8(output.images)
        tokens.append(output.tokens.cpu().numpy())
        channel.alive(row=made.row, done=first + count, of=job.options.images)
    return images, np.concatenate(tokens)


def samples(images: Images, labels: NDArray[np.int64], *, tokens: NDArray[np.int64] | None) -> Samples:
    """The first images as one picture: the same labels and noise in every row."""
    count = min(GRID, len(images))
    columns = min(10, count)
    lines = math.ceil(count / columns)
    side = images.shape[-1]
    grid = np.full((lines * side, columns * side, 3), 255, np.uint8)
    for place in range(count):
        y, x = divmod(place, columns)
        grid[y * side : (y + 1) * side, x * side : (x + 1) * side] = images[place].transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, "PNG", optimize=True)
    return Samples(
        png=base64.b64encode(buffer.getvalue()).decode(),
        columns=columns,
        labels=tuple(int(label) for label in labels[:count]),
        tokens_sha256=None
        if tokens is None
        else hashlib.sha256(np.ascontiguousarray(tokens[:count]).tobytes()).hexdigest(),
    )


def _keep(path: Path, images: Images, tokens: NDArray[np.int64]) -> None:
    from varbench.base.whole_files import write_whole

    buffer = io.BytesIO()
    np.savez(buffer, images=images[:COMPARED], tokens=tokens[:COMPARED])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def _distance(looks: Looks, path: Path, images: Images, tokens: NDArray[np.int64]) -> Distance:
    with np.load(path, allow_pickle=False) as stored:
        full_images, full_tokens = stored["images"], stored["tokens"]
    count = min(len(full_images), len(images))
    found = distance_to_full(
        images[:count],
        full_images[:count],
        extractor=looks.extractor if looks.own or looks._job.options.inception else None,
        tokens=tokens[:count],
        full_tokens=full_tokens[:count],
    )
    return Distance(
        n=count,
        psnr=found.psnr.value,
        feature_distance=found.feature_distance.value,
        equal_tokens=found.equal_tokens.value,
    )


def _floors(job: Job, pipe: Pipeline, looks: Looks) -> dict[str, Score]:
    """What no method can beat: other real images, and real images through the tokenizer, as many as are scored."""
    if job.options.reference is not None:
        return {}
    data = Shapes(side=pipe.model.image_side)
    others = data.test[job.options.images : 2 * job.options.images]
    real, labels = data.images(others), data.labels(others)
    rebuilt = []
    for first in range(0, len(real), 200):
        pixels = torch.from_numpy(real[first : first + 200]).to(pipe.device).float() / 127.5 - 1
        rebuilt.append(to_uint8(pipe.decode(pipe.encode(pixels))))

    def distance(images: Images) -> Score:
        return score(
            images,
            labels,
            reference=looks.reference,
            network=looks.extractor,
            second_opinion=False,
            device=job.options.device,
        ).distance

    return {"real": distance(real), "reconstruction": distance(np.concatenate(rebuilt))}
