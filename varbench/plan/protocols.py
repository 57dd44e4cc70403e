"""Protocols that others published results under: their settings, and the files that they are measured with. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from varbench.errors import UserError, did_you_mean
from varbench.plan import presets
from varbench.spec import ModelSpec

Number = int | float

BATCH_IMAGES = 10_000
"""Images in a reference batch of the ADM suite, beside mu and sigma of the whole training set."""

CHECKPOINTS = "https://huggingface.co/FoundationVision/var/resolve/main"
BATCHES = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file under the name that it is published by."""

    name: str
    source: str
    """Where it comes from."""
    sha256: str | None = None
    """Of its bytes; None where no public source states it."""
    sure: bool = True
    """Whether more than one source states that hash. One alone may be wrong, and no file is refused for it."""
    also: str | None = None
    """Another name that the same file circulates under."""
    irreplaceable: bool = False
    """Whether scores are named after this very file, so that another one is never taken for it."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if self.also is None else (self.name, self.also)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    name: str
    settings: Mapping[str, Number]
    """By option."""
    weights: Mapping[str, PublishedFile]
    """By the model preset that they are of."""
    files: Mapping[str, PublishedFile]
    """By the option that takes them, whatever the model."""
    summary: str

    def files_of(self, model: str) -> dict[str, PublishedFile]:
        """All files that a run of a model needs, by option."""
        if model not in self.weights:
            raise UserError(
                f"--protocol {self.name} knows no weights of {model}; give --model with one of {', '.join(self.weights)}"
            )
        return {"weights": self.weights[model], **self.files}

    def weights_of(self, wanted: ModelSpec) -> PublishedFile | None:
        """Weights of a model of these sizes, whatever a method calls it."""
        specs = {model: presets.preset(model).spec for model in self.weights}
        return next(
            (self.weights[model] for model, spec in specs.items() if replace(wanted, name=spec.name) == spec), None
        )


def _checkpoint(name: str, sha256: str, *, sure: bool) -> PublishedFile:
    return PublishedFile(name=name, source=f"{CHECKPOINTS}/{name}", sha256=sha256, sure=sure)


_IMAGENET_256 = Protocol(
    name="imagenet256-50k",
    settings={"images": 50_000, "cfg": 1.5, "top_k": 900, "top_p": 0.96},
    weights={
        "var-d16": _checkpoint(
            "var_d16.pth", "4f6151aad91c94e03e224dd7358d8389fa05301c0c291279566998efb54b0ecb", sure=True
        ),
        "var-d20": _checkpoint(
            "var_d20.pth", "f7d232978e6fe82a4f2e0f5d82b012e01b1aa5abfe93ce2b56104ec0e878a10f", sure=False
        ),
        "var-d24": _checkpoint(
            "var_d24.pth", "12c03619b2d3906ed19fe59539a90aadf60d72287dbaa31cf540435e76ddf789", sure=False
        ),
        "var-d30": _checkpoint(
            "var_d30.pth", "7b11551dd4d794c7d6ed10b3d2822d42efe609a86128171b646e543dd2633b56", sure=False
        ),
    },
    files={
        "vae": _checkpoint(
            "vae_ch160v4096z32.pth", "7c3ec27ae28a3f87055e83211ea8cc8558bd1985d7b51742d074fb4c2fcf186c", sure=True
        ),
        "reference": PublishedFile(
            name="VIRTUAL_imagenet256_labeled.npz", source=f"{BATCHES}/256/VIRTUAL_imagenet256_labeled.npz"
        ),
        "inception": PublishedFile(
            name="weights-inception-2015-12-05-6726825d.pth",
            also="pt_inception-2015-12-05-6726825d.pth",
            source=f"{FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
            sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
            irreplaceable=True,
        ),
    },
    summary="50,000 images, 50 a class, against the ADM suite's batch, as VAR's README evaluates",
)

_PROTOCOLS = {one.name: one for one in (_IMAGENET_256,)}


def names() -> tuple[str, ...]:
    return tuple(_PROTOCOLS)


def protocol(name: str) -> Protocol:
    if name not in _PROTOCOLS:
        raise UserError(f"no protocol {name!r}.{did_you_mean(name, _PROTOCOLS)}")
    return _PROTOCOLS[name]


def published_weights(wanted: ModelSpec) -> PublishedFile | None:
    """Weights that were published of a model of these sizes."""
    return next((file for one in _PROTOCOLS.values() if (file := one.weights_of(wanted)) is not None), None)


def of_size(side: int, *, classes: int) -> list[Protocol]:
    """Protocols of models whose images have this side, and of as many classes."""
    found = {name: [presets.preset(model).spec for model in one.weights] for name, one in _PROTOCOLS.items()}
    return [
        _PROTOCOLS[name]
        for name, specs in found.items()
        if all((spec.image_side, spec.classes) == (side, classes) for spec in specs)
    ]


def departures(name: str, given: Mapping[str, object]) -> dict[str, tuple[object, Number]]:
    """Settings that are not the protocol's: what is given, and what it has."""
    return {
        option: (given[option], wanted) for option, wanted in protocol(name).settings.items() if given[option] != wanted
    }
