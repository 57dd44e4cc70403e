"""A tokenizer and the models beside it on one device, ready to encode, decode, score and generate by any method."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varbench.base.devices import by_its_device, on_its_device
from varbench.engine import pixels
from varbench.engine.arguments import check_filters, images_given, labels_given, tokens_given
from varbench.engine.captured import Graphs, Made, asked_within, can_be_captured, is_watched
from varbench.engine.generate import generate
from varbench.engine.loop import Observer, Sampling, refuse_undrawn
from varbench.engine.own_weights import OwnOfWeights
from varbench.engine.sampler import streams
from varbench.engine.teacher import TeacherPass
from varbench.engine.trained_layer import fused_attention
from varbench.engine.transforms import share, transformed
from varbench.errors import UserError
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import FeedForward, Transformer
from varbench.model.weighted import true_float32
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import RowPolicies
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace
from varbench.policies import MAIN
from varbench.rows.grammar import FULL
from varbench.spec import ModelSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from varbench.rows.grammar import Row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Output:
    """What `Pipeline.generate` returns."""

    images: Tensor
    """(B, 3, S, S) in [0, 1]."""
    tokens: Tensor
    """(B, L) codes of all scales; -1 where the method skips a scale."""
    logits: Tensor | None
    """(B, L, V) after guidance and before filtering, where they were asked for."""
    plan: Plan
    trace: Trace

    def pil(self) -> list[Image]:
        """The images as pictures of PIL."""
        return pixels.pictures(self.images)

    def _repr_png_(self) -> bytes:
        """What a notebook shows of it."""
        file = io.BytesIO()
        pixels.sheet(self.images).save(file, "PNG")
        return file.getvalue()

    def __repr__(self) -> str:
        count, _, height, width = self.images.shape
        return f"Output({count} images of {height}x{width} by {self.plan.name}, {self.tokens.shape[1]} tokens each)"


Find = Callable[[str, ModelSpec], tuple[Transformer, str] | None]
"""Gives a further model of a name and sizes, with its file's sha256 or how it was made; None where there is none."""


class Pipeline:
    """One model with its weights on one device, in one compute type."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        backbones: Mapping[str, Transformer],
        device: str,
        dtype: str,
        weights: Mapping[str, str],
        find: Find = lambda name, spec: None,
        recipes: Mapping[str, str | None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.tokenizer = tokenizer.to(self.device).eval()
        # The official code under autocast decodes in the compute type too; a CPU has no fast float16.
        half = self.dtype == torch.float16 and self.device.type == "cpu"
        self.tokenizer.cast_decoder_(torch.float32 if half else self.dtype)
        self.backbones = {name: self._placed(model) for name, model in backbones.items()}
        self.weights = dict(weights)
        """sha256 of each file that was loaded, or how the weights were made."""
        self.find = find
        self.recipes = recipes
        """By backbone, the recipe that its file says it was trained by; None where weights come from no file."""
        # What rows do not share with the model does not stay in it.
        self._own = OwnOfWeights(self.backbones[MAIN])
        self._plans: dict[str, tuple[Plan, RowPolicies]] = {}
        self._transformed: dict[tuple[str, ...], Transformer] = {}
        self._compiled: str | None = None
        self._passes: dict[tuple[str, str], TeacherPass] = {}
        self._graphs = Graphs()
        self.graphs = self.device.type == "cuda"
        """Whether generations are captured that can be."""

    @property
    def model(self) -> ModelSpec:
        return self.backbones[MAIN].spec

    def __repr__(self) -> str:
        spec = self.model
        others = "".join(f" and {name}" for name in self.backbones if name != MAIN)
        dtype = str(self.dtype).removeprefix("torch.")
        origin = self.weights.get(MAIN, "")[:16]
        return f"Pipeline({spec.name}{others}, {spec.depth} layers of width {spec.width}, {dtype} on {self.device}, weights {origin})"

    def compile(self, method: str | Row) -> tuple[Plan, RowPolicies]:
        """The plan of a row such as `my_method@half`, and the policies that the engine asks. Made once for each row."""
        from varbench import rows

        name = method if isinstance(method, str) else method.name
        if name not in self._plans:
            row = rows.resolve(method, self.model) if isinstance(method, str) else method
            self._warn_of_other_weights(row)
            missing = self.load_further(row.policies.backbones)
            if missing:
                raise UserError(
                    f"{name} runs on a second model, {missing[0]!r}, which is not loaded; "
                    f"give it: load_pipeline(..., companions={{{missing[0]!r}: PATH}})"
                )
            loaded = {backbone: model.spec for backbone, model in self.backbones.items()}
            plan = compile_plan(self.model, row.policies, accounting=row.accounting, loaded=loaded)
            self._plans[name] = (plan, row.policies)
        return self._plans[name]

    def backbones_of(self, method: str | Row) -> dict[str, Transformer]:
        """The models that a row runs on: those that are loaded, or as its transforms leave them, made once."""
        plan, row = self.compile(method)
        found = {}
        for name, _ in plan.backbones:
            transforms = [owned for owned in row.transforms if owned.backbone == name]
            own = self._own.of_row(row, plan) if name == MAIN else None
            changed = bool(transforms) or own is not None
            key = (name, *(owned.part for owned in transforms), *([own.key] if own is not None else []))
            if changed and key not in self._transformed:
                self._transformed[key] = transformed(self.backbones[name], transforms, own)
                self._compile_layers(self._transformed[key])
            found[name] = self._transformed[key] if changed else self.backbones[name]
        return found

    def compile_layers(self, *, mode: str) -> None:
        """Compiles what every layer computes whatever the method: projections and FFN. Caches and choices stay outside."""
        self._compiled = mode
        for transformer in (*self.backbones.values(), *self._transformed.values()):
            self._compile_layers(transformer)

    def _compile_layers(self, transformer: Transformer) -> None:
        if self._compiled is None:
            return
        block: Any
        for block in transformer.blocks:
            # One that a plugin put in the FFN's place has no halves to look between.
            of_ffn = ("into", "out") if isinstance(block.ffn, FeedForward) else ("forward",)
            for module, name in (*((block.ffn, name) for name in of_ffn), (block.attn, "qkv"), (block.attn, "out")):
                setattr(module, name, torch.compile(getattr(module, name), mode=self._compiled, dynamic=True))

    def _kind(self, method: str | Row, batch: int, sampling: Sampling) -> Hashable:
        """What a captured generation depends on besides labels and noise. A plan says how many tokens or entries are chosen, and
        not which."""
        plan, row = self.compile(method)
        code = (*self.backbones_of(method).values(), *asked_within(plan, row))
        return plan.digest, tuple(map(id, code)), batch, sampling

    def is_ready(self, method: str | Row, batch: int, sampling: Sampling) -> bool:
        """Whether nothing has to be captured for such a call any more."""
        return not self.captures(method) or self._graphs.is_ready(self._kind(method, batch, sampling))

    def is_captured(self, method: str | Row, batch: int, sampling: Sampling) -> bool:
        """Whether such a call is launched as graphs, once it is captured."""
        return self.captures(method) and not self._graphs.has_no_room(self._kind(method, batch, sampling))

    def captures(self, method: str | Row) -> bool:
        """Whether the row's generations are launched as graphs: on a GPU, where it runs no code of its own in between."""
        return self.graphs and self._compiled is None and can_be_captured(*self.compile(method))

    @contextmanager
    def alone(self, method: str | Row) -> Iterator[None]:
        """For a look at memory: models that the row does not run on lie in the host's meanwhile, not on the GPU, and every tensor
        of a call comes from the allocator."""
        with on_its_device(self.device):
            self._graphs.forget()
        graphs, self.graphs = self.graphs, False
        running = self.backbones_of(method).values()
        idle = [m for m in (*self.backbones.values(), *self._transformed.values()) if m not in running]
        for model in idle:
            model.cpu()
        try:
            yield
        finally:
            for model in self.backbones.values():
                model.to(self.device)
            for (name, *_), model in self._transformed.items():
                share(model.to(self.device), self.backbones[name])
            self.graphs = graphs

    def load_further(self, wanted: Mapping[str, ModelSpec]) -> list[str]:
        """Brings further models that methods name, where they are not loaded; the names of those that are not to be had."""
        missing = []
        for name, spec in wanted.items():
            if name in self.backbones:
                continue
            found = self.find(name, spec)
            if found is None:
                missing.append(name)
            else:
                self.backbones[name], self.weights[name] = self._placed(found[0]), found[1]
        return missing

    def _placed(self, model: Transformer) -> Transformer:
        return model.cast_(self.dtype).to(self.device).eval()

    @by_its_device
    @torch.inference_mode()
    @true_float32()
    def encode(self, images: Tensor | NDArray[np.floating]) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] to codes (B, L) of all scales."""
        return self.tokenizer.encode(images_given(images, self.model).to(self.device))

    @by_its_device
    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Codes (B, L) to images (B, 3, S, S) in [0, 1]."""
        maps = self.tokenizer.quantize.running_maps(tokens_given(tokens, self.model).to(self.device))
        return self._decode_map(maps[-1])

    @by_its_device
    @torch.inference_mode()
    def logits(self, tokens: Tensor, labels: Tensor | Sequence[int], *, method: str | Row = FULL) -> Tensor:
        """Teacher-forced logits (B, L, V) of a method that computes every scale, without guidance."""
        plan, row = self.compile(method)
        if plan.decision is not None:
            raise UserError(f"{plan.name} decides by content how it goes on, so it has no logits of given tokens")
        if plan.cache_form is not None:
            raise UserError(
                f"{plan.name} reads keys and values that were encoded and decoded, which a pass over all scales at once does not; "
                "ask for the logits of a generation, generate(tokens=…, return_logits=True)"
            )
        method_name = method if isinstance(method, str) else method.name
        tokens = tokens_given(tokens, self.model).to(self.device)
        labels = labels_given(labels, self.model).to(self.device)
        features = self.tokenizer.teacher_input(tokens)
        parts: dict[int, Tensor] = {}
        backbones = self.backbones_of(method)
        for name in dict.fromkeys(step.backbone for step in plan.steps):
            if (method_name, name) not in self._passes:
                self._passes[method_name, name] = TeacherPass(plan, name, row.width, side_by_side=True)
            run = self._passes[method_name, name]
            with true_float32():
                logits = run.logits(backbones[name], features, labels, dtype=self.dtype, attend=fused_attention)
            counts = [self.model.tokens[scale] for scale in run.plan.sampled]
            parts.update(zip(run.plan.sampled, logits.split(counts, dim=1), strict=True))
        if plan.skipped:
            raise UserError(
                f"{method_name} skips {self.model.scale_name(plan.skipped[0])}, so it has no logits for all tokens"
            )
        return torch.cat([parts[scale] for scale in range(self.model.scales)], dim=1)

    def generate(
        self,
        labels: Tensor | Sequence[int],
        *,
        seed: int = 0,
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        method: str | Row = FULL,
        first_image: int = 0,
        tokens: Tensor | None = None,
        return_logits: bool = False,
        observer: Observer | None = None,
    ) -> Output:
        """Images for class labels. `first_image` is the first one's number in the noise stream; `tokens` forces the codes. Where it
        is captured as graphs, the first call of a kind resets torch's peaks of memory, and an observer may be told from the start again."""
        labels_B = labels_given(labels, self.model).to(self.device)
        check_filters(self.model, top_k=top_k, top_p=top_p)
        plan, row = self.compile(method)
        sampling, backbones = Sampling(cfg=cfg, top_k=top_k, top_p=top_p), self.backbones_of(method)
        forced_BL = None if tokens is None else tokens_given(tokens, self.model).to(self.device)

        def make(labels_B: Tensor, streams_B1: Tensor, observer: Observer | None) -> Made:
            codes = generate(
                plan,
                row,
                backbones=backbones,
                tokenizer=self.tokenizer,
                labels_B=labels_B,
                streams_B1=streams_B1,
                sampling=sampling,
                dtype=self.dtype,
                forced_BL=forced_BL,
                return_logits=return_logits,
                observer=observer,
                decode=self._decode_map,
            )
            return Made(codes=codes, images=self._decode_map(codes.f_hat_BDhw))

        numbers = range(first_image, first_image + len(labels_B))
        given = labels_B, streams(torch.tensor(numbers, device=self.device), seed=seed), observer
        plain = forced_BL is not None or return_logits or is_watched() or not self.captures(method)
        key = None if plain else self._kind(method, len(labels_B), sampling)
        with on_its_device(self.device):
            made = self._graphs.make(key, make, *given)
        refuse_undrawn(made.codes.tokens_BL, plan)
        codes = made.codes
        return Output(images=made.images, tokens=codes.tokens_BL, logits=codes.logits_BLV, plan=plan, trace=codes.trace)

    @torch.inference_mode()
    @true_float32()
    def _decode_map(self, f_hat_BDhw: Tensor) -> Tensor:
        """A map to images in [0, 1]."""
        return self.tokenizer.decode_map(f_hat_BDhw)

    def _warn_of_other_weights(self, row: Row) -> None:
        """Images of a method on weights that were not trained for it say little of the method."""
        if self.recipes is None or row.schedule is None or row.recipe_name in self.recipes.values():
            return
        recipe = self.recipes.get(MAIN)
        warnings.warn(
            f"{row.name} is made for weights that recipe {row.recipe_name} has trained, and these "
            f"({self.weights[MAIN][:8]}…) are {f'of recipe {recipe}' if recipe else 'not known to be of any recipe'}. "
            f"`varbench train {row.recipe_name}` trains them and says where they lie.",
            stacklevel=4,
        )
