"""The generators: jumps of the student, with the teacher's help in between where asked for; and tokens drawn each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from varbench.policies import LoadedTeacher, LoadedTokenizer, TaughtGenerator, Work
from varbench.spec import ModelSpec

from .sizes import (
    Jump,
    noise_bytes,
    pixel_flops,
    student_flops,
    student_parameters,
    teacher_flops,
    teacher_parameters,
    teacher_state_bytes,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .network import Student

FREQUENCIES = "frequency_NLV"
"""Name of how often each class has each code at each place, beside the student's weights."""
MOST_FREQUENCIES = 10**7
"""Numbers of such a table that are worth keeping: ImageNet's would have billions."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What runs for one image."""

    jumps: int
    """Passes of the student: 0, where tokens are drawn each by itself, 1 or 2."""
    at: int
    """Scales that are there before the last jump, if anything comes before it."""
    retaught: int
    """How many of them, the last ones, the teacher makes."""
    split: int
    """Scales, the first ones, that are read as codes; the others are read as vectors."""

    @property
    def given(self) -> int:
        """Scales that the teacher is given."""
        return self.at - self.retaught

    @property
    def known(self) -> int:
        """Scales that are there before the last jump."""
        return self.at if self.jumps == 2 or self.retaught else 0


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How the teacher draws, and which scales the student is shown when it learns."""

    cfg: float
    top_k: int
    top_p: float
    at: int


def has_frequencies(model: ModelSpec) -> bool:
    return model.classes * model.length * model.tokenizer.vocabulary <= MOST_FREQUENCIES


class Jumping(TaughtGenerator):
    def __init__(
        self, model: ModelSpec, point: Point, teaching: Teaching, *, weights: str = "", everywhere: bool = False
    ) -> None:
        self.model, self.point, self.teaching = model, point, teaching
        self.weights, self.everywhere = weights, everywhere
        self._item = 4
        self._tokenizer: LoadedTokenizer | None = None
        self._state: Mapping[str, Tensor] | None = None
        self._teacher: LoadedTeacher | None = None
        self._student: Student | None = None

    @property
    def trained(self) -> bool:
        return bool(self.weights)

    # What it learns.

    @property
    def making(self) -> Mapping[str, Any]:
        from .flow import FIRST, LAST, STEPS

        drawn = {"cfg": self.teaching.cfg, "top_k": self.teaching.top_k, "top_p": self.teaching.top_p}
        return {**drawn, "flow": [STEPS, FIRST, LAST]}

    @property
    def training(self) -> Mapping[str, Any]:
        return {"shown": [0, self.teaching.at], "loss": "cross-entropy and squared error"}

    def meet(self, teacher: LoadedTeacher, *, tokenizer: LoadedTokenizer) -> None:
        self._teacher, self._tokenizer = teacher, tokenizer

    def made(self, labels_B: Tensor, numbers: range) -> Tensor:
        """The number, from which the noise comes, and the codes that the teacher makes of that noise."""
        import torch

        from .drawing import noise_of
        from .flow import codes_of, filtered

        assert self._teacher is not None and self._tokenizer is not None
        codebook_VD, starts = self._tokenizer.codebook, self.model.starts
        noise_BLD = noise_of(numbers, "learning", self.model, device=codebook_VD.device)

        def choose(logits_BlV: Tensor, scale: int) -> Tensor:
            likely = filtered(logits_BlV, top_k=self.teaching.top_k, top_p=self.teaching.top_p)
            noise_BlD = noise_BLD[:, starts[scale] : starts[scale + 1]]
            codes_N = codes_of(likely.flatten(0, 1), noise_BlD.flatten(0, 1), codebook_VD)
            return codes_N.view(likely.shape[:2])

        codes_BL = self._teacher.draw(labels_B, choose, cfg=self.teaching.cfg, until=self.model.scales)
        return torch.cat((torch.tensor(numbers, device=codes_BL.device)[:, None], codes_BL), dim=1)

    def network_for(self, tokenizer: LoadedTokenizer, seen: Tensor, *, seed: int) -> Student:
        """The examples also tell how often each class has each code at each place."""
        from .network import student_of

        assert self._teacher is not None
        student = student_of(self.model, self._teacher.weights, seed=seed)
        if has_frequencies(self.model):
            student.register_buffer(FREQUENCIES, self._frequencies(seen))
        return student

    def _frequencies(self, examples_Bn: Tensor) -> Tensor:
        import torch

        model, vocabulary = self.model, self.model.tokenizer.vocabulary
        classes_B1 = (examples_Bn[:, :1] % model.classes).long()
        places_L = torch.arange(model.length, device=examples_Bn.device)
        cells = ((classes_B1 * model.length + places_L) * vocabulary + examples_Bn[:, 1:]).flatten()
        counts = torch.bincount(cells, minlength=model.classes * model.length * vocabulary).float()
        counts_NLV = counts.view(model.classes, model.length, vocabulary)
        return counts_NLV / counts_NLV.sum(-1, keepdim=True).clamp_min(1)

    def losses(self, network: Student, examples_Bn: Tensor, labels_B: Tensor) -> Tensor:
        """Every second image begins from noise alone, the others from the scales of two jumps. Of what is left, the codes'
        cross-entropy, and the vectors' squared error as a share of the codes' own spread."""
        import torch
        import torch.nn.functional as F

        from .drawing import noise_of

        assert self._tokenizer is not None
        codebook_VD, codes_BL = self._tokenizer.codebook, examples_Bn[:, 1:]
        noise_BLD = noise_of(examples_Bn[:, 0].tolist(), "learning", self.model, device=codebook_VD.device)
        given_B = torch.arange(len(codes_BL), device=codes_BL.device) % 2 * self.model.starts[self.teaching.at]
        there_BL = torch.arange(codes_BL.shape[1], device=codes_BL.device) < given_B[:, None]
        wanted_BLD, spread = codebook_VD[codes_BL], self._spread()
        states_BLC = network.states(labels_B, torch.where(there_BL[..., None], wanted_BLD, spread * noise_BLD), given_B)
        logits_BLV = network.logits(states_BLC, labels_B)
        by_code = F.cross_entropy(logits_BLV.flatten(0, 1), codes_BL.flatten(), reduction="none").view_as(codes_BL)
        missed_BLD = network.vectors(states_BLC, labels_B) - wanted_BLD
        left_BL = (~there_BL).float()
        each_BL = by_code + missed_BLD.square().mean(-1) / spread**2
        return (each_BL * left_BL).sum(1) / left_BL.sum(1)

    def _spread(self) -> float:
        """The noise's standard deviation; 1 for official weights, which were trained so."""
        from .flow import spread_of

        assert self._tokenizer is not None
        return 1.0 if self.weights else spread_of(self._tokenizer.codebook)

    # What it makes.

    def take(self, *, tokenizer: LoadedTokenizer, weights: Mapping[str, Tensor] | None) -> None:
        self._tokenizer, self._state = tokenizer, weights

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        import torch

        from .network import empty_student, student_of
        from .official import official_state

        assert self._teacher is not None
        kind, state = getattr(torch, dtype), dict(self._state or {})
        self._state = None
        if self.weights:
            student, state = empty_student(self.model), official_state(self.weights, self.model)
        elif state:
            student = empty_student(self.model)
            state = {name: tensor.float() for name, tensor in state.items()}
        else:
            student = student_of(self.model, self._teacher.weights, seed=seed)
        if state:
            student.load_state_dict({name: value for name, value in state.items() if name != FREQUENCIES}, assign=True)
        self._item = kind.itemsize
        self._student = student.requires_grad_(False).eval().cast_(kind).to(device)
        if not self.point.retaught:
            self._teacher = None

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        import torch

        assert self._tokenizer is not None
        device = self._tokenizer.codebook.device
        images = range(first_image, first_image + len(labels))
        vectors_BLD = self.vectors_of(torch.tensor(labels, device=device), images, seed=seed)
        return self._tokenizer.decode_map(self._tokenizer.map_of(vectors_BLD))

    def vectors_of(self, labels_B: Tensor, images: range, *, seed: int) -> Tensor:
        """Vectors of all tokens, (B, L, D)."""
        import torch

        from .drawing import noise_of

        noise_BLD = self._spread() * noise_of(images, f"making {seed}", self.model, device=labels_B.device)
        known_BnD = noise_BLD[:, :0]
        if self.point.jumps == 2:
            known_BnD = self._jump(labels_B, known_BnD, noise_BLD, until=self.model.starts[self.point.at])
        if self.point.retaught:
            known_BnD = self._retaught(labels_B, known_BnD, images, seed=seed)
        return torch.cat((known_BnD, self._jump(labels_B, known_BnD, noise_BLD, until=self.model.length)), dim=1)

    def _jump(self, labels_B: Tensor, known_BnD: Tensor, noise_BLD: Tensor, *, until: int) -> Tensor:
        """Vectors from the known ones on, all at once."""
        import torch

        assert self._student is not None and self._tokenizer is not None
        student, read = self._student, self._read(known_BnD.shape[1], until)
        vectors_BmD = torch.cat((known_BnD, noise_BLD[:, known_BnD.shape[1] : read.places]), dim=1)
        given_B = torch.full_like(labels_B, known_BnD.shape[1])
        states_BmC = student.states(labels_B, vectors_BmD, given_B, everywhere=self.everywhere)
        parts = []
        if read.codes:
            logits_BlV = student.logits(states_BmC[:, read.codes.start : read.codes.stop], labels_B)
            codes_Bl = logits_BlV.argmax(-1)[:, read.begin - read.codes.start : read.edge - read.codes.start]
            parts.append(self._tokenizer.codebook[codes_Bl])
        if read.vectors:
            vectors_BlD = student.vectors(states_BmC[:, read.vectors.start : read.vectors.stop], labels_B)
            parts.append(vectors_BlD[:, read.edge - read.vectors.start : until - read.vectors.start])
        return torch.cat(parts, dim=1)

    def _read(self, begin: int, until: int) -> Read:
        """Heads are read where they are wanted, and no token runs on which none of these depends; or all, as in the authors'
        code."""
        edge = min(max(self.model.starts[self.point.split], begin), until)
        if self.everywhere:
            everything = range(self.model.length)
            return Read(places=self.model.length, begin=begin, edge=edge, codes=everything, vectors=everything)
        return Read(places=until, begin=begin, edge=edge, codes=range(begin, edge), vectors=range(edge, until))

    def _retaught(self, labels_B: Tensor, known_BnD: Tensor, images: range, *, seed: int) -> Tensor:
        """The scales before the last jump, of which the teacher draws the last ones anew, given the codes that the others' vectors
        are nearest to."""
        from .drawing import drawn, nearest, uniforms_of
        from .flow import filtered

        assert self._teacher is not None and self._tokenizer is not None
        codebook_VD, starts, teaching = self._tokenizer.codebook, self.model.starts, self.teaching
        chances_BL = uniforms_of(images, f"drawing {seed}", self.model, device=labels_B.device)

        def choose(logits_BlV: Tensor, scale: int) -> Tensor:
            likely_BlV = filtered(logits_BlV, top_k=teaching.top_k, top_p=teaching.top_p)
            return drawn(likely_BlV.softmax(-1), chances_BL[:, starts[scale] : starts[scale + 1]])

        given_Bn = None
        if self.point.given:
            given_Bn = nearest(known_BnD[:, : starts[self.point.given]], codebook_VD)
        codes_Bn = self._teacher.draw(labels_B, choose, cfg=teaching.cfg, until=self.point.at, given_Bn=given_Bn)
        return codebook_VD[codes_Bn]

    def work(self, batch: int) -> Work:
        model, point = self.model, self.point
        starts = model.starts
        spans = [(0, starts[point.at])] if point.jumps == 2 else []
        flops = tokens = maps = 0
        steps = point.jumps + point.retaught
        state = noise_bytes(model, batch=batch) if steps > 1 else 0
        for begin, until in (*spans, (starts[point.known], model.length)):
            read = self._read(begin, until)
            jump = Jump(tokens=read.places, logits=len(read.codes), vectors=len(read.vectors))
            flops += student_flops(model, jump, batch=batch, everywhere=self.everywhere)
            tokens += read.places + 1
        if point.retaught:
            flops += teacher_flops(model, given=point.given, until=point.at, batch=batch)
            flops += 2 * batch * starts[point.given] * model.tokenizer.code_dim * model.tokenizer.vocabulary
            tokens += starts[point.at]
            state += teacher_state_bytes(model, given=point.given, until=point.at, batch=batch, item=self._item)
            maps = point.at
        return Work(
            flops=float(flops),
            decoder_flops=float(pixel_flops(model, maps=model.scales + maps, batch=batch)),
            parameters=student_parameters(model) + (teacher_parameters(model) if point.retaught else 0),
            steps=steps,
            layer_tokens=model.depth * tokens,
            cache_peak_bytes=state,
            cache_end_bytes=0,
        )


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one jump runs, and which of its tokens each head looks at."""

    places: int
    """Tokens that run."""
    begin: int
    edge: int
    """Codes are wanted from `begin` on, vectors from `edge` on."""
    codes: range
    vectors: range


class Independent(Jumping):
    """Every token drawn by itself, as often as its class has the code at its place among the teacher's examples: what is left
    where tokens know nothing of each other."""

    _table_NLV: Tensor | None = None

    def load(self, *, device: str, dtype: str, seed: int) -> None:
        import torch

        state, self._state, self._teacher = self._state, None, None
        if state is None:
            shape = (self.model.classes, self.model.length, self.model.tokenizer.vocabulary)
            table = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)
        else:
            table = state[FREQUENCIES]
        self._table_NLV = table.float().to(device)

    def vectors_of(self, labels_B: Tensor, images: range, *, seed: int) -> Tensor:
        from .drawing import drawn, uniforms_of

        assert self._table_NLV is not None and self._tokenizer is not None
        chances_BL = uniforms_of(images, f"drawing {seed}", self.model, device=labels_B.device)
        return self._tokenizer.codebook[drawn(self._table_NLV[labels_B], chances_BL)]

    def work(self, batch: int) -> Work:
        model = self.model
        return Work(
            flops=0.0,
            decoder_flops=float(pixel_flops(model, maps=model.scales, batch=batch)),
            parameters=model.classes * model.length * model.tokenizer.vocabulary,
            steps=1,
            layer_tokens=0,
            cache_peak_bytes=0,
            cache_end_bytes=0,
        )
