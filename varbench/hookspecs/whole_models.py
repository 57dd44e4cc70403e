"""What replaces the modules of a model or the whole of it, and what is found out with it beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from varbench.hookspecs.marks import hookspec

if TYPE_CHECKING:
    from varbench.policies import Generator, LoadedModel, Setting, Transformed
    from varbench.spec import ModelSpec


@hookspec
def varbench_transform_model(setting: Setting, model: ModelSpec) -> Transformed | None:
    """Gives how modules are replaced once weights are loaded, and what that does to work and bytes; those of a row stack.

    It is asked for each backbone of a row, and applied to a copy: rows without it run on the weights as they were.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry of the backbone whose modules are replaced.

    Example:
        from varbench import hookimpl
        from varbench.policies import PARTS, PartChange, Transformed

        def stored_in_half(transformer):
            import torch

            for module in transformer.modules():
                if isinstance(module, torch.nn.Linear):
                    module.to(torch.bfloat16)
            return transformer

        @hookimpl
        def varbench_transform_model(setting, model):
            half = PartChange(weight_type="bfloat16", bias_type="bfloat16")
            return Transformed(apply=stored_in_half, changes=dict.fromkeys(PARTS, half))
    """


@hookspec
def varbench_generator(setting: Setting, model: ModelSpec) -> Generator | None:
    """Gives a generator that replaces the whole loop, for models of another family; it is alone in its row.

    A `TrainedGenerator` gets the preset's tokenizer, says what its network learns of images, and is trained by `varbench train`
    and by a run, as recipes are, with weights that are kept and a training that can be interrupted. A `TaughtGenerator` gets the
    full model too, whose tensors it may begin from, and learns from examples that this model makes: once, with weights of the
    same hash, and kept a part at a time.

    Parameters:
        setting: recipe, point and parameters of the row.
        model: the geometry whose image size and classes the row is compared under.

    Example:
        from varbench import hookimpl
        from varbench.policies import Generator, Work

        class Grey(Generator):
            def __init__(self, side):
                self.side = side

            def load(self, *, device, dtype, seed):
                self.device = device

            def generate(self, labels, *, seed, first_image):
                import torch

                return torch.full((len(labels), 3, self.side, self.side), 0.5, device=self.device)

            def work(self, batch):
                return Work(flops=0.0, steps=1)

        @hookimpl
        def varbench_generator(setting, model):
            return Grey(model.image_side)

    Example of a generator that learns from what the full model makes, in the place of images:
        from varbench import hookimpl
        from varbench.policies import TaughtGenerator, Work

        class MeansOfClasses(TaughtGenerator):
            training, making = {"of": "vectors"}, {"cfg": 1.5}

            def __init__(self, model):
                self.model, self.numbers = model, model.length * model.tokenizer.code_dim

            def meet(self, teacher, *, tokenizer):
                self.teacher, self.tokenizer = teacher, tokenizer

            def made(self, labels_B, numbers):
                def likeliest(logits_BlV, scale):
                    return logits_BlV.argmax(-1)

                return self.teacher.draw(labels_B, likeliest, cfg=1.5, until=self.model.scales)

            def network_for(self, tokenizer, seen, *, seed):
                import torch

                return torch.nn.Embedding(self.model.classes, self.numbers)

            def losses(self, network, examples_Bn, labels_B):
                wanted = self.tokenizer.codebook[examples_Bn].flatten(1)
                return (network(labels_B) - wanted).square().mean(1)

            def take(self, *, tokenizer, weights):
                self.tokenizer, self.weights = tokenizer, weights

            def load(self, *, device, dtype, seed):
                import torch

                stream = torch.Generator().manual_seed(seed)
                drawn = torch.randn(self.model.classes, self.numbers, generator=stream)
                self.table = (self.weights["weight"] if self.weights else drawn).float().to(device)
                self.teacher = None

            def generate(self, labels, *, seed, first_image):
                import torch

                vectors = self.table[torch.tensor(labels, device=self.table.device)]
                return self.tokenizer.decode_map(self.tokenizer.map_of(vectors.view(len(labels), self.model.length, -1)))

            def work(self, batch):
                return Work(flops=0.0, steps=1)

        @hookimpl
        def varbench_generator(setting, model):
            return MeansOfClasses(model)
    """


@hookspec
def varbench_calibrate(setting: Setting, pipe: LoadedModel) -> dict[str, Any] | None:
    """Runs an offline pass over the loaded model, and returns what it found as JSON, which is hashed and kept.

    `varbench calibrate` and `varbench.engine.calibration.calibrate(row, pipe)` call it. What stands under `parameters` becomes
    the row's own, and the settings mark it so (`Parameter(calibrated=True)`); a row that was not calibrated runs with the
    defaults, and `varbench run` warns of it.

    Parameters:
        setting: recipe, point and parameters of the row.
        pipe: the pipeline with its weights, on its device.

    Example:
        from varbench import hookimpl

        @hookimpl
        def varbench_calibrate(setting, pipe):
            tokens = pipe.generate([0, 1], seed=7).tokens
            used = int(tokens.unique().numel())
            return {"codes_used": used, "parameters": {"first": min(used, 3)}}
    """
