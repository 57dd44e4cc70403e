"""`load_pipeline`: a tokenizer and a transformer, ready to encode, decode, score and generate by any method."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varbench.base.hashing import file_hash
from varbench.engine.arguments import check_filters, images_given, labels_given, tokens_given
from varbench.engine.generate import Observer, Sampling, generate
from varbench.engine.teacher import TeacherPass, fused_attention
from varbench.engine.transforms import transformed
from varbench.errors import CheckpointError, UserError
from varbench.model.checkpoints import build_tokenizer, load_tokenizer, load_transformer
from varbench.model.state_files import read_record
from varbench.model.tokenizer import Tokenizer
from varbench.model.transformer import Transformer, initialise_
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.plan.owned import RowPolicies
from varbench.plan.steps import Plan
from varbench.plan.trace import Trace
from varbench.policies import MAIN
from varbench.rows.grammar import FULL
from varbench.spec import ModelSpec

if TYPE_CHECKING:
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
        self.backbones = {name: self._placed(model) for name, model in backbones.items()}
        self.weights = dict(weights)
        """sha256 of each file that was loaded, or how the weights were made."""
        self.find = find
        self.recipes = recipes
        """By backbone, the recipe that its file says it was trained by; None where weights come from no file."""
        self._plans: dict[str, tuple[Plan, RowPolicies]] = {}
        self._transformed: dict[tuple[str, ...], Transformer] = {}
        self._compiled: str | None = None
        self._passes: dict[tuple[str, str], TeacherPass] = {}

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
            key = (name, *(owned.part for owned in transforms))
            if transforms and key not in self._transformed:
                self._transformed[key] = transformed(self.backbones[name], transforms)
                self._compile_layers(self._transformed[key])
            found[name] = self._transformed[key] if transforms else self.backbones[name]
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
            block.ffn.forward = torch.compile(block.ffn.forward, mode=self._compiled, dynamic=True)
            block.attn.qkv = torch.compile(block.attn.qkv, mode=self._compiled, dynamic=True)
            block.attn.out = torch.compile(block.attn.out, mode=self._compiled, dynamic=True)

    @contextmanager
    def alone(self, method: str | Row) -> Iterator[None]:
        """For a look at memory: models that the row does not run on lie in the host's meanwhile, not on the GPU."""
        running = self.backbones_of(method).values()
        idle = [m for m in (*self.backbones.values(), *self._transformed.values()) if m not in running]
        for model in idle:
            model.cpu()
        try:
            yield
        finally:
            for model in idle:
                model.to(self.device)

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

    @torch.inference_mode()
    def encode(self, images: Tensor | NDArray[np.floating]) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] to codes (B, L) of all scales."""
        return self.tokenizer.encode(images_given(images, self.model).to(self.device))

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Codes (B, L) to images (B, 3, S, S) in [0, 1]."""
        maps = self.tokenizer.quantize.running_maps(tokens_given(tokens, self.model).to(self.device))
        return self._decode_map(maps[-1])

    @torch.inference_mode()
    def logits(self, tokens: Tensor, labels: Tensor | Sequence[int], *, method: str | Row = FULL) -> Tensor:
        """Teacher-forced logits (B, L, V) of a method that computes every scale, without guidance."""
        plan, _ = self.compile(method)
        method_name = method if isinstance(method, str) else method.name
        tokens = tokens_given(tokens, self.model).to(self.device)
        labels = labels_given(labels, self.model).to(self.device)
        features = self.tokenizer.teacher_input(tokens)
        parts: dict[int, Tensor] = {}
        backbones = self.backbones_of(method)
        for name in dict.fromkeys(step.backbone for step in plan.steps):
            if (method_name, name) not in self._passes:
                self._passes[method_name, name] = TeacherPass(plan, name)
            run = self._passes[method_name, name]
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
        """Images for class labels. `first_image` is the first one's number in the noise stream; `tokens` forces the codes."""
        labels_B = labels_given(labels, self.model).to(self.device)
        check_filters(self.model, top_k=top_k, top_p=top_p)
        plan, row = self.compile(method)
        made = generate(
            plan,
            row,
            backbones=self.backbones_of(method),
            tokenizer=self.tokenizer,
            labels_B=labels_B,
            images_B=torch.arange(first_image, first_image + len(labels_B), device=self.device),
            sampling=Sampling(seed=seed, cfg=cfg, top_k=top_k, top_p=top_p),
            dtype=self.dtype,
            forced_BL=None if tokens is None else tokens_given(tokens, self.model).to(self.device),
            return_logits=return_logits,
            observer=observer,
        )
        images = self._decode_map(made.f_hat_BDhw)
        return Output(images=images, tokens=made.tokens_BL, logits=made.logits_BLV, plan=plan, trace=made.trace)

    @torch.inference_mode()
    def _decode_map(self, f_hat_BDhw: Tensor) -> Tensor:
        """The decoder runs in the compute type on a GPU, as the official script does, and in float32 on a CPU."""
        reduced = self.device.type == "cuda" and self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype if reduced else torch.bfloat16, enabled=reduced):
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


def load_pipeline(
    preset: str | None = None,
    *,
    vae: str | Path | None = None,
    var: str | Path | None = None,
    companions: Mapping[str, str | Path] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    num_heads: int | None = None,
    random: bool = False,
    seed: int = 0,
) -> Pipeline:
    """A pipeline from checkpoint files, or of a preset.

    With `vae` and `var`, sizes are read off the files. With a preset alone, its shipped weights are loaded, or with
    `random` random ones drawn from `seed`. `companions` are further models by name, for methods that run on two; of a
    preset, those that are not given are found as its own weights are.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"device {device!r} was asked for, but torch sees no GPU; use device='cpu' or look at 'varbench env'"
        )
    if (vae is None) != (var is None):
        raise CheckpointError(
            "give both vae= and var=, or neither; a transformer speaks the codes of its own tokenizer"
        )
    if random and vae is not None:
        raise UserError("random=True draws weights, and vae= and var= give them; leave one of the two out")
    if vae is None or var is None:
        return _preset_pipeline(
            preset or "tiny", companions=companions, device=device, dtype=dtype, random=random, seed=seed
        )
    tokenizer_spec, tokenizer_state = load_tokenizer(vae)
    backbones = {MAIN: load_transformer(var, tokenizer_spec, num_heads=num_heads)}
    for name, path in (companions or {}).items():
        backbones[name] = load_transformer(path, tokenizer_spec)
    spec = backbones[MAIN].spec
    for name, path in (companions or {}).items():
        other = backbones[name].spec
        if (other.sides, other.classes) != (spec.sides, spec.classes):
            raise CheckpointError(
                f"{path}: scales {other.sides} and {other.classes} classes, but {var}, whose {name} it is to be, has "
                f"{spec.sides} and {spec.classes}"
            )
    if preset:
        spec = _renamed(backbones, preset, var)
    files = {MAIN: var, **(companions or {})}
    return Pipeline(
        tokenizer=build_tokenizer(spec, tokenizer_state, vae),
        backbones=backbones,
        device=device,
        dtype=dtype,
        weights={name: file_hash(path) for name, path in {"vae": vae, **files}.items()},
        recipes={name: (read_record(path) or {}).get("row") for name, path in files.items()},
    )


def _renamed(backbones: dict[str, Transformer], preset: str, path: str | Path) -> ModelSpec:
    """The file's own sizes under the preset's name; other sizes than the preset's are refused with both."""
    expected, found = presets.preset(preset).spec, backbones[MAIN].spec
    if replace(found, name=preset) != expected:
        raise CheckpointError(
            f"{path}: {found.depth} layers of width {found.width} and scales {found.sides}, but {preset} has "
            f"{expected.depth} of width {expected.width} and {expected.sides}"
        )
    backbones[MAIN].spec = expected
    return expected


def _preset_pipeline(
    name: str, *, companions: Mapping[str, str | Path] | None, device: str, dtype: str, random: bool, seed: int
) -> Pipeline:
    preset = presets.preset(name)
    shipped = presets.shipped_files(name)
    if shipped and not random:
        vae, var = shipped["vae"], shipped[MAIN]
        pipe = load_pipeline(name, vae=vae, var=var, companions=companions, device=device, dtype=dtype)
        pipe.find = functools.partial(_shipped, name)
        return pipe
    if not random:
        raise UserError(
            f"{name} ships no weights; give vae= and var=, or random=True for random ones, on which speed and memory can "
            "be measured and nothing can be seen"
        )
    drawn = f"random, seed {seed}"
    return Pipeline(
        tokenizer=random_tokenizer(preset.spec, seed),
        backbones={MAIN: random_transformer(preset.spec, seed, device=device)},
        device=device,
        dtype=dtype,
        weights={"vae": drawn, MAIN: drawn},
        find=lambda _, spec: (random_transformer(spec, seed, device=device), drawn),
    )


def _shipped(preset: str, name: str, spec: ModelSpec) -> tuple[Transformer, str] | None:
    path = presets.shipped_files(preset, {name: spec}).get(name)
    if path is None:
        return None
    model = load_transformer(path, spec.tokenizer)
    model.spec = spec
    return model, file_hash(path)


def random_tokenizer(spec: ModelSpec, seed: int) -> Tokenizer:
    """A tokenizer with torch's own initial values; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tokenizer.for_model(spec).requires_grad_(False)


def random_transformer(spec: ModelSpec, seed: int, *, device: str = "cpu") -> Transformer:
    """A transformer with official initial values, drawn where it will run: billions of numbers take long on a CPU."""
    with torch.device("meta"):
        model = Transformer(spec)
    generator = torch.Generator(device).manual_seed(seed)
    return initialise_(model.to_empty(device=device), generator).requires_grad_(False)
