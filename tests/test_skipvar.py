"""skipvar against its rule written again in plain loops, and what its calibration learns against a fit by other means."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import models
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from varbench import rows
from varbench.engine.calibration import calibrate, on_each_way
from varbench.engine.pipeline import Pipeline
from varbench.errors import UserError
from varbench.plan import presets
from varbench.plan.compiler import compile_plan
from varbench.policies import Setting, SoFar, Way
from varbench_plugins import skipvar
from varbench_plugins.skipvar.deciding import AsLearned, decided_after, features, read_model, way_names, written_model
from varbench_plugins.skipvar.learning import fitted, most_left_out, ssim

TINY, D30 = presets.preset("tiny").spec, presets.preset("var-d30").spec
SPEC = models.SPEC
LABELS = [0, 3, 9, 5, 7, 1]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return models.pipeline()


def images(seed: int, *, side: int = 12, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def naive_edges(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sobel, place by place."""
    grey, side = image.mean(axis=0), image.shape[-1]
    kernel = [(-1, 1), (0, 2), (1, 1)]
    found = np.zeros((side, side))
    for y in range(side):
        for x in range(side):

            def at(row: int, column: int) -> float:
                inside = 0 <= row < side and 0 <= column < side
                return float(grey[row, column]) if inside else 0.0

            across = sum(weight * (at(y + d, x - 1) - at(y + d, x + 1)) for d, weight in kernel)
            down = sum(weight * (at(y - 1, x + d) - at(y + 1, x + d)) for d, weight in kernel)
            found[y, x] = math.hypot(across, down)
    return found


def naive_share(image: NDArray[np.float64], circle: float) -> float:
    """Discrete Fourier transform, wave by wave."""
    grey, side = image.mean(axis=0), image.shape[-1]
    at = np.arange(side)
    high = total = 0.0
    for v in range(-(side // 2), (side + 1) // 2):
        for u in range(-(side // 2), (side + 1) // 2):
            wave = np.exp(-2j * np.pi * (v * at[:, None] + u * at[None, :]) / side)
            amplitude = abs((grey * wave).sum())
            total += amplitude
            if math.hypot(v, u) > int(circle * side / 2):
                high += amplitude
    return high / (total + 1e-6)


@pytest.mark.parametrize(("side", "circle"), [(12, 0.4), (11, 0.4), (8, 0.0), (8, 0.9)])
def test_features_by_plain_loops(side: int, circle: float) -> None:
    earlier, later = images(1, side=side), images(2, side=side)
    found = features(earlier, later, circle=circle)
    for image in range(3):
        one, other = earlier[image].double().numpy(), later[image].double().numpy()
        difference = np.abs(naive_edges(other) - naive_edges(one)).mean()
        assert found[image].tolist() == pytest.approx([difference, naive_share(other, circle)], rel=1e-4)


def policy(**given: object) -> AsLearned:
    settings = skipvar.varbench_settings(SPEC)
    parameters = {key: parameter.default for key, parameter in settings.parameters.items()}
    return skipvar.policy_of(Setting(plugin="skipvar", point="s88", parameters={**parameters, **given}), SPEC)  # type: ignore[dict-item]


ENDS, LABELLED = "10/0.5/-6.5/20/1/-15", "0/40/-22.4/1/80/-47"
ENDS_EARLIER = "100/0/-31.2/0/0/-9"


def naive_way(difference: float, share: float, ends: str = ENDS) -> str:
    """The first model by its largest probability; the second only where the first leaves out none."""
    for name, text in (("end", ends), ("labelled", LABELLED)):
        numbers = [float(number) for number in text.split("/")]
        scores = [0.0]
        for count in (1, 2):
            a, b, bias = numbers[3 * count - 3 : 3 * count]
            scores.append(a * difference + b * share + bias)
        chances = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        count = max(range(3), key=lambda place: chances[place])
        if count:
            return f"{name}{count}"
    return "on"


def test_the_rule_by_plain_loops() -> None:
    ours = policy(ends=ENDS, labelled=LABELLED)
    earlier, later = images(3, count=60) ** 2, images(4, count=60) * torch.linspace(0, 1, 60).view(-1, 1, 1, 1)
    seen = SoFar(map_BDhw=torch.zeros(60, 1), logits_BlV=torch.zeros(60, 1), previews=(earlier, later))
    names = way_names(SPEC, 4)
    pairs = features(earlier, later, circle=0.4).tolist()
    expected = [naive_way(*pair) for pair in pairs]
    assert [names[way] for way in ours.decide(seen)] == expected
    assert len(set(expected)) >= 3, "the test tells ways apart"
    together = policy(ends=ENDS, labelled=LABELLED, together=True).decide(seen)
    mean = [sum(pair[place] for pair in pairs) / 60 for place in (0, 1)]
    assert [names[way] for way in together] == [naive_way(mean[0], mean[1])] * 60


def test_ways_and_where_it_is_decided() -> None:
    assert [decided_after(model) for model in (TINY, D30)] == [4, 7], (
        "three of ten scales are left, as three of thirteen there"
    )
    assert way_names(SPEC, 4) == ("on", "end1", "end2", "labelled1", "labelled2")
    assert list(policy().ways()) == [Way(), Way(ends=5), Way(ends=4), Way(labelled=5), Way(labelled=4)]
    assert policy().previews == policy(ends=ENDS, always="end1").previews == ()
    asked = policy(ends=ENDS)
    assert [(one.scale, one.side) for one in asked.previews] == [(2, 4), (3, 4)] and asked.after() == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first": 6}, "two previews and a scale to leave out need 2 to 5"),
        ({"circle": 1.0}, "less than 1"),
        ({"always": "end3"}, "give on, end1, end2, labelled1, labelled2"),
        ({"ends": "1/2/3"}, "give 6 numbers with strokes between them"),
        ({"labelled": "a/b"}, "two weights and a bias for each number of last scales from 1 to 2"),
    ],
)
def test_what_cannot_be_set_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        policy(**given)


def test_models_survive_being_written() -> None:
    model = ((1.23456e7, -2.5e-9, 0.25), (-1000.0, 0.0, 3.0))
    text = written_model(model)
    assert "+" not in text and text.count("/") == 5
    read = read_model(text, 2, what="ends")
    assert read is not None
    assert [number for row in read for number in row] == pytest.approx([n for row in model for n in row], rel=1e-3)


def test_likeness_by_plain_loops() -> None:
    one, other = images(5, side=13, count=2), images(6, side=13, count=2) * 0.5 + images(5, side=13, count=2) * 0.5
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    for image in range(2):
        values = []
        for colour in range(3):
            x, y = one[image, colour].double().numpy(), other[image, colour].double().numpy()
            for row in range(3):
                for column in range(3):
                    a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
                    ma, mb = (window * a).sum(), (window * b).sum()
                    va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                    vab = (window * (a - ma) * (b - mb)).sum()
                    values.append((2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
        assert float(ssim(one, other)[image]) == pytest.approx(float(np.mean(values)), rel=1e-4)
    assert ssim(one, one).tolist() == pytest.approx([1.0, 1.0])


def test_the_largest_number_of_scales_that_can_go() -> None:
    like = torch.tensor([[0.9, 0.7], [0.7, 0.9], [0.8, 0.85], [0.1, 0.2]])
    assert most_left_out(like, 0.8).tolist() == [1, 2, 2, 0]


def test_the_fit_is_that_of_another_minimiser() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=(120, 2)) * [0.02, 3.0] + [0.3, 5.0]
    most = np.digitize(given[:, 0] * 40 + given[:, 1] * 0.3 + rng.normal(size=120), [13.0, 14.5])
    model = fitted(torch.from_numpy(given), torch.from_numpy(most), 3)
    standard = (given - given.mean(axis=0)) / given.std(axis=0)

    def loss(flat: NDArray[np.float64]) -> float:
        weights = flat.reshape(3, 3)
        scores = standard @ weights[:, :2].T + weights[:, 2]
        largest = scores.max(axis=1, keepdims=True)
        sums = np.log(np.exp(scores - largest).sum(axis=1)) + largest[:, 0]
        return float((sums - scores[np.arange(120), most]).sum() + (weights[:, :2] ** 2).sum() / 2)

    theirs = minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-6}).x.reshape(3, 3)
    slopes = theirs[:, :2] / given.std(axis=0)
    biases = theirs[:, 2] - slopes @ given.mean(axis=0)
    expected = [[*(slopes[k] - slopes[0]), biases[k] - biases[0]] for k in (1, 2)]
    assert np.array(model) == pytest.approx(np.array(expected), rel=2e-3, abs=2e-3)


def test_a_number_that_no_image_could_do_without_is_never_chosen() -> None:
    given, most = torch.rand(40, 2, dtype=torch.float64), torch.tensor([0, 2] * 20)
    numbers = fitted(given, most, 3)
    ours = AsLearned(SPEC, first=4, side=4, circle=0.4, ends=numbers, labelled=None, together=False, always=None)
    assert {ours._way(*pair) for pair in (10 * given).tolist()} <= {0, 2}
    assert fitted(given, torch.zeros(40, dtype=torch.long), 3) == ((0.0, 0.0, -1000.0),) * 2


def test_calibration_learns_from_what_each_way_makes_of_an_image(pipe: Pipeline) -> None:
    """The same by rows that always go one way, and previews decoded by hand."""
    row = rows.resolve("skipvar@s84:samples=12", pipe.model)
    found = calibrate(row, pipe)
    text = found.path.read_text()
    kept = json.loads(text)["found"]["skipvar"]
    assert found.row.name.startswith("skipvar@s84:ends=") and sum(kept["images by ends"]) == kept["samples"] == 12
    labels = [image % 10 for image in range(12)]
    given = {"seed": 2506, "first_image": 8_908_000}
    made = {
        name: pipe.generate(labels, method=f"skipvar@s84:always={name}", **given)  # type: ignore[arg-type]
        for name in way_names(pipe.model, 4)
    }
    for name in ("end", "labelled"):
        alike = [ssim(made["on"].images, made[f"{name}{count}"].images) >= 0.84 for count in (1, 2)]
        most = [2 if two else 1 if one else 0 for one, two in zip(*(like.tolist() for like in alike), strict=True)]
        assert kept["images by ends" if name == "end" else "images by labelled"] == [most.count(n) for n in range(3)]
    maps = pipe.tokenizer.quantize.running_maps(made["on"].tokens)
    previews = [pipe.tokenizer.decode_map(torch.nn.functional.adaptive_avg_pool2d(one, 4)) for one in maps[2:4]]
    seen = on_each_way(pipe, replaced(policy()), labels, **given).seen  # type: ignore[arg-type]
    for ours, theirs in zip(seen.previews, previews, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def replaced(ours: AsLearned) -> AsLearned:
    ours.previews = ours.both_previews(4)
    return ours


def test_a_row_with_models_goes_where_they_say(pipe: Pipeline) -> None:
    method = f"skipvar@s88:ends={ENDS_EARLIER}:labelled={LABELLED}"
    out = pipe.generate(LABELS, seed=3, method=method)
    full = pipe.generate(LABELS, seed=3)
    maps = pipe.tokenizer.quantize.running_maps(full.tokens)
    previews = [pipe.tokenizer.decode_map(torch.nn.functional.adaptive_avg_pool2d(one, 4)) for one in maps[2:4]]
    names = [naive_way(*pair, ENDS_EARLIER) for pair in features(*previews, circle=0.4).tolist()]
    assert {"on", "end1", "labelled1"} == set(names)
    ways = way_names(pipe.model, 4)
    assert out.trace.taken == tuple(names.count(name) for name in ways)
    for image, name in enumerate(names):
        alone = pipe.generate(LABELS, seed=3, method=f"skipvar@s88:always={name}")
        assert torch.equal(out.tokens[image], alone.tokens[image])


def test_uncalibrated_it_is_the_full_model(pipe: Pipeline) -> None:
    full, out = (pipe.generate(LABELS, seed=1, method=method) for method in ("full_var", "skipvar@s88"))
    assert torch.equal(full.images, out.images) and out.trace.taken == (6, 0, 0, 0, 0)
    plan = compile_plan(SPEC, rows.resolve("skipvar@s88", SPEC).policies)
    assert plan.decision is not None and plan.decision.previews == ()
    assert replace(plan, decision=None).digest == compile_plan(SPEC, rows.resolve("full_var", SPEC).policies).digest
