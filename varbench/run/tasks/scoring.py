"""Scores images in a process without plugins, measures their distance to the full model's, and keeps a few to show.

Images come in files, a batch each, and are checked by their hash and count; labels come from whoever asked for the images.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import zipfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from varbench.base.hashing import array_hash
from varbench.base.places import full_images
from varbench.base.whole_files import lay_there, whole_file
from varbench.errors import WrongOutputError
from varbench.measure.threads import threads
from varbench.model.checkpoints import build_tokenizer, load_tokenizer
from varbench.model.tokenizer import Tokenizer
from varbench.quality import Scoring, copies, distance_to_full, to_uint8
from varbench.quality.class_order import class_order
from varbench.quality.extractors import extract
from varbench.quality.groups import Group, Groups
from varbench.quality.image_features import ImageFeatures
from varbench.quality.images import Images, KeptImages, Labels, Tokens, read_made, write_made
from varbench.quality.likeness import chance
from varbench.record import Distance, Quality, Samples, Score
from varbench.run.channel import Channel
from varbench.run.messages import (
    GROUP,
    Begin,
    Begun,
    ClassOrder,
    Finish,
    Job,
    Liken,
    Likened,
    Oddities,
    ReferenceSeen,
    Scored,
    Take,
    Taken,
)
from varbench.run.scoring_networks import ScoringNetworks

REBUILT = 64
"""Images of the reference that are passed through the tokenizer, twice."""

GRID = 40
"""Images kept to look at."""

COMPARED = 256
"""Images that are held against the full model's own under the same noise."""

DECODED, DECODED_LARGE = 64, 16
"""Of those, spread over all, that are held against what their tokens decode to; fewer where a side has more than 64 pixels."""

_NO_THUMBNAILS = np.empty((0, 0), np.float32)

SAME_LEVEL = 16
"""Levels of 255 that a pixel may be off what its tokens decode to: type and order of sums differ between processes."""


def run(job: Job, channel: Channel) -> None:
    scorer = Scorer(job, channel)
    for message in channel.requests():
        if isinstance(message, Begin):
            channel.send(scorer.begin(message))
        elif isinstance(message, Take):
            channel.send(scorer.take(message))
        elif isinstance(message, Liken):
            channel.send(scorer.liken(message))
        else:
            assert isinstance(message, Finish)
            channel.send(scorer.finish(message.expected))


class Scorer:
    """Takes rows one after the other. Of each it keeps the networks' features, and its first images."""

    def __init__(self, job: Job, channel: Channel) -> None:
        self._job, self._channel = job, channel
        self._side = job.model.image_side
        self._networks = ScoringNetworks(job.options, side=self._side, device=job.options.device)
        self._full: tuple[Images, Tokens | None] | None = None
        self._full_seen: NDArray[np.floating] | None = None
        self._kept: KeptImages | None = None

    def begin(self, row: Begin) -> Begun:
        """A row's images come next. What an earlier process kept of them is taken as it is, where it may be."""
        if self._kept is not None:
            self._kept.give_up()
        count = self._job.options.images
        self._kept = KeptImages(Path(row.keep), count=count, side=self._side) if row.keep else None
        self._groups = Groups(None if row.groups is None else Path(row.groups), before=row.before)
        self._row, self._count = row, row.first
        self._waiting: list[tuple[Images, Labels, Tokens | None]] = []
        self._images: list[Images] = []
        self._tokens: list[Tokens] = []
        self._labels: list[int] = []
        self._thumbnails: list[copies.Thumbnails] = []
        self._pixels: set[bytes] = set()
        self._looked: list[ImageFeatures] = []
        self._scoring = self._new_scoring() if self._networks.scores else None
        for group in self._groups.earlier(first=row.first, upto=row.upto):
            if self._kept is not None and len(group.images) < len(group.labels_N):
                break  # they were looked at when none were to be kept
            self._add(group)
        return Begun(known=self._count)

    def _new_scoring(self, *, judge: bool = True, second_opinion: bool | None = None) -> Scoring:
        wanted = self._job.options.second_opinion if second_opinion is None else second_opinion
        return Scoring(
            replace(self._networks.reference, kept_before=self._row.before),
            self._networks.extractor,
            side=self._side,
            judge=self._networks.judge if judge else None,
            second_opinion=wanted,
            device=self._job.options.device,
        )

    def take(self, message: Take) -> Taken:
        images, tokens = read_made(message.chunk.path, sha256=message.chunk.sha256)
        wanted = (len(message.labels), 3, self._side, self._side)
        if images.dtype != np.uint8 or images.shape != wanted:
            raise WrongOutputError(
                f"images have shape {images.shape} and type {images.dtype}; {wanted} bytes were asked for"
            )
        self._waiting.append((images, np.asarray(message.labels, dtype=np.int64), tokens))
        if sum(len(some) for some, _, _ in self._waiting) >= GROUP:
            with threads(self._row.threads):
                group = self._looked_at()
            self._groups.put(group, first=self._count)
            self._add(group)
        return Taken(images_sha256=array_hash(images), known=self._count)

    def _looked_at(self) -> Group:
        """The images that wait, as what stays of them."""
        images, labels_N = (np.concatenate([one[place] for one in self._waiting]) for place in (0, 1))
        given = [tokens for _, _, tokens in self._waiting if tokens is not None]
        self._waiting.clear()
        few = slice(0, max(0, COMPARED - self._count))
        return Group(
            labels_N=labels_N,
            images=images if self._job.options.keep_images else images[few],
            tokens=np.concatenate(given)[few] if given else None,
            thumbnails=copies.thumbnails(images[:small])
            if (small := max(0, copies.MOST - self._count))
            else _NO_THUMBNAILS,
            pixels=copies.pixel_hashes(images),
            looked=None if self._scoring is None else self._scoring.seen_in(images, labels_N),
        )

    def _add(self, group: Group) -> None:
        if self._kept is not None:
            self._kept.take(group.images)
        if (room := COMPARED - self._count) > 0:
            self._images.append(group.images[:room])
            self._labels += group.labels_N[:room].tolist()
            if group.tokens is not None:
                self._tokens.append(group.tokens)
        if self._scoring is not None and group.looked is not None:
            self._scoring.add(group.looked)
            self._looked.append(group.looked)
        if len(group.thumbnails):
            self._thumbnails.append(group.thumbnails)
        self._pixels.update(one.tobytes() for one in group.pixels)
        self._count += len(group.labels_N)

    def liken(self, message: Liken) -> Likened:
        """Whether images that were timed look like those that were scored."""
        found = []
        for path in (message.scored, message.timed):
            with np.load(path, allow_pickle=False) as stored:
                found.append(stored["images"])
        scored, timed = found
        told = None
        if self._networks.scores:
            told = chance(*(extract(self._networks.extractor, images).features_ND for images in (scored, timed)))
        return Likened(images_sha256=array_hash(scored), chance=told)

    def finish(self, expected: int) -> Scored:
        if self._waiting:
            self._add(self._looked_at())
        if self._kept is not None:
            self._kept.end()
            self._kept = None
        images = np.concatenate(self._images)
        tokens = np.concatenate(self._tokens) if self._tokens else None
        quality = None
        if self._scoring is not None:
            scores = self._scoring.scores(expected=expected)
            self._channel.alive("scoring")
            quality = Quality(
                scores=scores.all(),
                floors=self._floors() if self._row.full else {},
                against=self._networks.against,
            )
        if self._row.full:
            self._keep(images, tokens)
            self._full_seen = self._seen(len(images))
        return Scored(
            quality=quality,
            distance=None if self._row.full else self._distance(images, tokens),
            samples=grid(images, self._labels, tokens=tokens, names=self._networks.class_names),
            weights=self._networks.files() if self._scoring is not None else (),
            oddities=self._oddities(images, tokens),
            reference=None if self._scoring is None else self._reference_seen(),
            contents={} if self._scoring is None else self._networks.contents(),
        )

    def _oddities(self, images: Images, tokens: Tokens | None) -> Oddities:
        real = self._real if self._scoring is not None else None
        few = np.unique(np.linspace(0, len(images) - 1, DECODED_LARGE if self._side > 64 else DECODED).astype(int))
        undecoded = darker = None
        if tokens is not None and self._job.files is not None:
            above = self._decoded(torch.from_numpy(tokens[few])).astype(int) - images[few]
            undecoded = float((np.abs(above) > SAME_LEVEL).mean())
            # At either end of the range there is nothing to cut off; and what is far off is not darker but other.
            near = (np.abs(above) <= SAME_LEVEL) & (images[few] > 0) & (images[few] < 255)
            darker = float(above[near].mean()) if near.any() else None
        return Oddities(
            repeated=self._count - len(self._pixels),
            copied=None
            if real is None
            else copies.share_copied(np.concatenate(self._thumbnails)[: copies.MOST], real[0], reach=real[1]),
            undecoded=undecoded,
            darker=darker,
            order=self._order(),
        )

    def _order(self) -> ClassOrder | None:
        known = [(one.labels_N, one.judged_N) for one in self._looked if one.judged_N is not None]
        if not known or self._networks.judge is None:
            return None
        labels, judged = (np.concatenate(some) for some in zip(*known, strict=True))
        found = class_order(labels, judged, classes=len(self._networks.judge.config.classes))
        return None if found is None else ClassOrder(**found._asdict())

    def _reference_seen(self) -> ReferenceSeen:
        reference = self._networks.reference
        return ReferenceSeen(
            source=reference.source,
            statistics=reference.statistics is not None,
            spatial=reference.spatial,
            images=None if reference.images is None else len(reference.images),
            rebuilt=self._rebuilt_again,
        )

    @cached_property
    def _rebuilt_again(self) -> float | None:
        """By how much more reference images change through the tokenizer than what has come out of it does."""
        images = self._networks.reference.images
        if images is None or self._job.files is None:
            return None
        some = images[:REBUILT]
        rebuilt = self._rebuilt(some)
        first, second = (
            float(np.square(after.astype(int) - before).mean())
            for before, after in ((some, rebuilt), (rebuilt, self._rebuilt(rebuilt)))
        )
        return first / max(second, 1e-9)

    @cached_property
    def _real(self) -> tuple[copies.Thumbnails, float] | None:
        """Reference images in small, and how near they are to each other; None where the reference is only statistics."""
        images = self._networks.reference.images
        if images is None:
            return None
        small = copies.thumbnails(images)
        return small, copies.within_real(small)

    def _distance(self, images: Images, tokens: Tokens | None) -> Distance | None:
        """To the full model's images of this run; of an earlier one with the same inputs, where they are not made again and what
        was kept of them can be read."""
        full = self._full or self._stored()
        if full is None:
            return None
        theirs, their_tokens = full
        count = min(len(theirs), len(images))
        extractor = self._networks.extractor if self._networks.sees else None
        features = None
        if extractor is not None and (seen := self._seen(count)) is not None:
            if self._full_seen is None:
                self._full_seen = extract(extractor, theirs).features_ND
            features = seen, self._full_seen[:count]
        found = distance_to_full(
            images[:count],
            theirs[:count],
            extractor=extractor,
            features=features,
            tokens=None if tokens is None else tokens[:count],
            full_tokens=None if their_tokens is None else their_tokens[:count],
        )
        return Distance(
            n=count,
            psnr=found.psnr.value,
            feature_distance=found.feature_distance.value,
            equal_tokens=found.equal_tokens.value,
        )

    def _seen(self, count: int) -> NDArray[np.floating] | None:
        """Features of the row's first images, where they were looked at to score them: those of a group are seen together, and
        it has no fewer than are compared."""
        return self._looked[0].seen.features_ND[:count] if self._looked else None

    def _place(self) -> Path | None:
        inputs = self._job.full_images
        return None if inputs is None else full_images(inputs)

    def _keep(self, images: Images, tokens: Tokens | None) -> None:
        self._full = (images, tokens)
        if (place := self._place()) is not None:
            # A full disk, or a cache that cannot be written, costs later runs the distance; not this one.
            with contextlib.suppress(OSError), whole_file(place) as file:
                write_made(file, images, tokens)

    def _stored(self) -> tuple[Images, Tokens | None] | None:
        place = self._place()
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            if place is not None and lay_there(place, before=self._row.before):
                return read_made(place)
        return None

    def _floors(self) -> dict[str, Score]:
        """What no method can beat: other real images, and real images through the tokenizer, as many as are scored."""
        further = self._networks.further_images()
        if further is None:
            return {}
        real, labels = further

        def distance(name: str, images: Images) -> Score:
            scoring = self._new_scoring(judge=False, second_opinion=False)
            scoring.take(images, labels)
            self._channel.alive(name)
            return scoring.distance()

        floors = {"real": distance("real images", real)}
        if self._job.files is not None:
            rebuilt = distance("real images through the tokenizer", self._rebuilt(real))
            floors["reconstruction"] = replace(rebuilt, name=f"r{rebuilt.name}")  # of a tokenizer, not of a generator
        return floors

    @torch.inference_mode()
    def _rebuilt(self, real: Images) -> Images:
        device = torch.device(self._job.options.device)
        rebuilt = []
        for first in range(0, len(real), 200):
            pixels = torch.from_numpy(real[first : first + 200]).to(device).float() / 127.5 - 1
            rebuilt.append(self._decoded(self._tokenizer.encode(pixels)))
        return np.concatenate(rebuilt)

    @torch.inference_mode()
    def _decoded(self, tokens: torch.Tensor) -> Images:
        """A scale that an image skipped has no codes, and adds nothing."""
        quantizer = self._tokenizer.quantize
        by_scale = tokens.to(self._job.options.device).split([side * side for side in quantizer.sides], dim=1)
        maps = [
            quantizer.contribution(codes.clamp(min=0), scale) * (codes[:, 0] >= 0).view(-1, 1, 1, 1)
            for scale, codes in enumerate(by_scale)
        ]
        return to_uint8(self._tokenizer.decode_map(torch.stack(maps).sum(dim=0)))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        assert self._job.files is not None
        vae = self._job.files["vae"]
        tokenizer = build_tokenizer(self._job.model, load_tokenizer(vae)[1], vae)
        return tokenizer.to(self._job.options.device).eval()


def grid(images: Images, labels: list[int], *, tokens: Tokens | None, names: tuple[str, ...] = ()) -> Samples:
    """The first images as one picture: the same labels and noise in every row."""
    count = min(GRID, len(images))
    columns = min(10, count)
    lines = math.ceil(count / columns)
    side = images.shape[-1]
    sheet = np.full((lines * side, columns * side, 3), 255, np.uint8)
    for place in range(count):
        y, x = divmod(place, columns)
        sheet[y * side : (y + 1) * side, x * side : (x + 1) * side] = images[place].transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    named = None if tokens is None else array_hash(tokens[:count])
    return Samples(
        png=base64.b64encode(buffer.getvalue()).decode(),
        columns=columns,
        labels=tuple(labels[:count]),
        classes=tuple(names[label] for label in labels[:count]) if names else (),
        tokens_sha256=named,
    )
