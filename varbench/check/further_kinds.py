"""What else `varbench new-plugin` begins with. A kind is a summary, the module, and the test of its own rule."""

TRAINING = (
    "trains the full model and its first half in turn",
    '''\
"""One network for two depths, trained by turns: a step of the full model, a step of half of it. Replace this by yours."""

from varbench import hookimpl
from varbench.policies import DepthPolicy, Provenance, Settings, TrainingSchedule, TrainStep


class FirstLayers(DepthPolicy):
    def __init__(self, model, count):
        self.model, self.count = model, count

    def layers(self, scale, backbone):
        return range(self.model.depth if scale < self.model.scales // 2 else self.count)


class ByTurns(TrainingSchedule):
    def at(self, stage, step, total, uniform):
        return TrainStep(point="half") if step % 2 else TrainStep()


@hookimpl
def varbench_settings(model):
    return Settings(
        points=("full", "half"),
        recipes=("by_turns", "untrained"),
        neutral=("@untrained/full",),
        summary="the full model and its first half, trained by turns",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_depth_policy(setting, model):
    return FirstLayers(model, model.depth if setting.point == "full" else model.depth // 2)


@hookimpl
def varbench_training_schedule(setting, model):
    return ByTurns() if setting.recipe == "by_turns" else None
''',
    """\
def test_every_second_step_trains_half():
    setting = Setting(plugin="$name", recipe="by_turns", point="full")
    schedule = $name.varbench_training_schedule(setting, SPEC)
    (stage,) = schedule.stages()
    assert [schedule.at(stage, step, 4, None).point for step in range(4)] == [None, "half", None, "half"]
""",
)

GENERATOR = (
    "a model of another family in place of the whole loop",
    '''\
"""A generator of another family: noise, refined by a matrix a few times. Replace it by your model."""

from varbench import hookimpl
from varbench.policies import Generator, Provenance, Settings, Work


class Refiner(Generator):
    def __init__(self, model, steps):
        self.side, self.classes, self.steps = model.image_side, model.classes, steps

    def load(self, *, device, dtype, seed):
        import torch

        stream = torch.Generator().manual_seed(seed)
        self.place = {"device": device, "dtype": getattr(torch, dtype)}
        self.weight = torch.randn(self.side, self.side, generator=stream).div(self.side**0.5).to(**self.place)
        self.tones = torch.rand(self.classes, 3, 1, 1, generator=stream).to(**self.place)

    def generate(self, labels, *, seed, first_image):
        import torch

        # One stream for each image, so that an image does not depend on the batch that it is made in.
        noise = []
        for image in range(first_image, first_image + len(labels)):
            stream = torch.Generator().manual_seed(seed * 1_000_003 + image)
            noise.append(torch.randn(3, self.side, self.side, generator=stream))
        x_B3hw = torch.stack(noise).to(**self.place)
        tones_B311 = self.tones[torch.as_tensor(labels, device=self.tones.device)]
        for _ in range(self.steps):
            x_B3hw = (x_B3hw @ self.weight + tones_B311).tanh()
        return x_B3hw.float().mul(0.5).add(0.5)

    def work(self, batch):
        return Work(flops=2.0 * batch * 3 * self.side**3 * self.steps, steps=self.steps)


@hookimpl
def varbench_settings(model):
    return Settings(points=("s8", "s4"), summary="another family", provenance=Provenance(kind="ours"))


@hookimpl
def varbench_generator(setting, model):
    return Refiner(model, steps=int(setting.point[1:]))
''',
    """\
def test_half_the_steps_are_half_the_work():
    eight, four = ($name.varbench_generator(Setting(plugin="$name", point=point), SPEC).work(2) for point in ("s8", "s4"))
    assert eight.flops == 2 * four.flops
""",
)

TRANSFORM = (
    "replaces modules: the FFN's weights are stored in eight bits",
    '''\
"""Stores the FFN's weights in int8, a scale for each row, and multiplies in the compute type. Replace this by yours."""

from varbench import hookimpl
from varbench.policies import PartChange, Provenance, Settings, Transformed


def int8_linear(linear):
    """A module in a linear layer's place. Made in a function, so that importing the plugin does not import torch."""
    import torch

    class Int8Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            scale = linear.weight.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            self.register_buffer("scale", scale)
            self.register_buffer("stored", (linear.weight.float() / scale).round().to(torch.int8))
            self.bias = linear.bias

        def forward(self, x):
            weight = (self.stored.float() * self.scale).to(x.dtype)
            return torch.nn.functional.linear(x, weight, self.bias.to(x.dtype))

    return Int8Linear()


def replace_ffn(transformer):
    for block in transformer.blocks:
        block.ffn.fc1, block.ffn.fc2 = int8_linear(block.ffn.fc1), int8_linear(block.ffn.fc2)
    return transformer


@hookimpl
def varbench_settings(model):
    return Settings(summary="FFN weights in int8", provenance=Provenance(kind="ours"))


@hookimpl
def varbench_transform_model(setting, model):
    scales = model.depth * (model.hidden + model.width)
    return Transformed(
        apply=replace_ffn,
        changes={"ffn": PartChange(weight_type="int8", extra_bytes=4 * scales)},
    )
''',
    """\
def test_no_weight_moves_by_more_than_half_a_step():
    import torch

    linear = torch.nn.Linear(8, 4)
    made = $name.int8_linear(linear)
    assert made.stored.dtype == torch.int8
    moved = (made.stored * made.scale - linear.weight).abs()
    assert (moved <= made.scale * 0.501).all()
""",
)

CALIBRATE = (
    "finds a parameter of its own in an offline pass",
    '''\
"""Some layers keep every cache entry, the others a window; an offline pass finds which. Replace both by yours."""

from varbench import hookimpl
from varbench.engine.calibration import observe, read_layers, written_layers
from varbench.policies import CacheStrategy, Parameter, Provenance, Settings


class Window(CacheStrategy):
    def __init__(self, window, whole):
        self.window, self.whole = window, whole

    def keeps(self, layer, written, reader, group):
        return layer in self.whole or written == 0 or reader - written <= self.window


@hookimpl
def varbench_settings(model):
    return Settings(
        points=("w2", "w1"),
        point_pattern="w[0-9]+",
        parameters={"whole": Parameter(default="", help="layers that keep everything, as in 0.3; calibration finds them")},
        neutral=(f"@w{model.scales}", f"@w1:whole={written_layers(range(model.depth))}"),
        summary="a window of the cache, but for calibrated layers",
        provenance=Provenance(kind="ours"),
    )


@hookimpl
def varbench_cache_strategy(setting, model):
    whole = read_layers(setting.parameters["whole"], model, what="whole")
    return Window(int(setting.point[1:]), frozenset(whole))


@hookimpl
def varbench_calibrate(setting, pipe):
    """The quarter of the layers whose keys vary most. The row is then run with `parameters` as they stand here."""
    spread = [0.0] * pipe.model.depth

    def look(layer, scale, keys_BHnc, queries_BHlc):
        spread[layer] += keys_BHnc.float().std(dim=2).mean().item()

    observe(pipe, range(4), seed=1, look=look)
    widest = sorted(range(len(spread)), key=spread.__getitem__)[-max(1, len(spread) // 4) :]
    return {"spread": spread, "parameters": {"whole": written_layers(sorted(widest))}}
''',
    """\
def test_what_is_found_are_layers_that_keep_everything():
    from varbench.check.small_model import lively_pipeline

    found = $name.varbench_calibrate(None, lively_pipeline())["parameters"]
    strategy = $name.varbench_cache_strategy(Setting(plugin="$name", point="w1", parameters=found), SPEC)
    assert len(strategy.whole) == SPEC.depth // 4
    assert [strategy.keeps(layer, 1, 5, 0) for layer in range(SPEC.depth)].count(True) == SPEC.depth // 4
""",
)

METRICS = (
    "a column of its own: a figure of a row's images",
    '''\
"""One more column: how colourful images are (the spread between their channels). Replace this figure by yours."""

from varbench import hookimpl
from varbench.policies import Metric


def colourfulness(images, labels):
    """Of images (N, 3, S, S) as uint8: the deviation over channels, averaged over pixels, 0 for grey; one number an image."""
    return images.float().std(dim=1).mean(dim=(1, 2)) / 255


@hookimpl
def varbench_metrics():
    return [Metric(name="colourfulness", better="higher", compute=colourfulness)]
''',
    """\
def test_grey_has_no_colour_and_red_has():
    import torch

    (metric,) = $name.varbench_metrics()
    grey = torch.full((2, 3, 4, 4), 99, dtype=torch.uint8)
    red = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 255
    labels = torch.zeros(2, dtype=torch.long)
    assert (metric.compute(grey, labels) == 0).all()
    assert (metric.compute(red, labels) > 0).all()
""",
)

SECTIONS = (
    "a panel of its own in the report",
    '''\
"""One more panel of the report: how each row ended. Replace this table by your figure."""

from varbench import hookimpl
from varbench.record.sections import Section, Table


@hookimpl
def varbench_report_sections(records):
    rows = [(record.row.row, record.status, record.reason or "") for record in records]
    return [Section(title="How rows ended", parts=[Table(columns=("row", "status", "reason"), rows=rows)])]
''',
    """\
def test_the_panel_can_be_drawn():
    from varbench.record.sections import checked

    (section,) = $name.varbench_report_sections([])
    assert checked(section).title == "How rows ended"
""",
)
