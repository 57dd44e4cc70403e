"""What users of such models get wrong: each is a verdict or a warning, and says what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from record_factory import full_records, make_record, make_score
from scripted import a_run
from test_generators import OPTIONS, TINY, Grey, process
from test_generators import a_run as a_run_of_a_generator
from torch import Tensor

from varbench.base.hashing import file_hash
from varbench.data.shapes import Shapes
from varbench.engine.loading import load_pipeline
from varbench.measure import honesty
from varbench.measure.calls import Chunk, Reply, balanced_labels
from varbench.plan import presets
from varbench.quality import distance_to_full, same_noise, to_uint8
from varbench.quality.class_order import class_order
from varbench.quality.images import write_made
from varbench.record import Notice, Quality, Samples, WeightFile
from varbench.run import pitfalls, sanity
from varbench.run.findings import Findings, Looks, Seen
from varbench.run.looking import look_at
from varbench.run.messages import Begin, ClassOrder, Job, Oddities, ReferenceSeen, Scored, Take
from varbench.run.prepare import Run
from varbench.run.scoring_networks import imagenet_classes
from varbench.run.tasks import scoring
from varbench.run.tasks.making import _are_bytes
from varbench.run.tasks.scoring import Scorer
from varbench.show.advice import across_blocks
from varbench.show.entries import blocks_of, score_label
from varbench.show.samples import grids_of

ROW = "variant@untrained/d8"
PLAIN = Oddities(repeated=0, copied=None, undecoded=None)
BATCH = ReferenceSeen(source="batch.npz", statistics=True, spatial=True, images=10_000)


JUDGE = (WeightFile(role="judge", name="judge", sha256="0" * 64),)


def a_scored(
    name: str = "FD-shapes",
    *,
    oddities: Oddities = PLAIN,
    reference: ReferenceSeen = BATCH,
    weights: tuple[WeightFile, ...] = JUDGE,
) -> Scored:
    quality = Quality(scores=(make_score(name, 3.0, 0.1, n=2000),))
    return Scored(
        quality=quality, distance=None, samples=Samples(), weights=weights, oddities=oddities, reference=reference
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """With weights, so that images are scored."""
    made = a_run(tmp_path, plugins=ROW, weights=None, images=2000)
    return replace(made, options=replace(made.options, cfg=1.5))


def noticed(run: Run, scored: Scored | None = None, **options: Any) -> list[Notice]:
    changed = replace(run, options=replace(run.options, **options))
    found = Findings(seen=None if scored is None else Seen(scored=scored))
    return list(pitfalls.notices(changed, changed.rows[ROW], found))


def reasons(run: Run, oddities: Oddities) -> str:
    found = Findings(seen=Seen(scored=a_scored(oddities=oddities)))
    return "; ".join(sanity.reasons(run, run.rows[ROW], found, {}))


def test_a_run_as_it_should_be_is_told_nothing(run: Run) -> None:
    assert noticed(run, a_scored()) == []
    assert reasons(run, PLAIN) == ""


def test_files_of_other_hashes_are_said_with_the_command_that_takes_the_published_ones(run: Run) -> None:
    given = {"protocol": "imagenet256-50k", "other_files": True, "checkpoints": "FILES", "model": "var-d16"}
    (notice,) = [one for one in noticed(run, **given) if "other hashes" in one.text]
    assert notice.next_command == (
        f"varbench run --protocol imagenet256-50k --model var-d16 --checkpoints FILES --plugins {ROW}"
    )


def test_every_verdict_says_what_to_do_next(run: Run) -> None:
    odd = Oddities(
        repeated=500,
        copied=0.5,
        undecoded=0.5,
        darker=0.5,
        order=ClassOrder(right=0.0, reordered=0.9, asked=1, shown=2),
    )
    for one, then in (
        ("repeated", "draw the noise of each image"),
        ("copied", "by --reference"),
        ("undecoded", "decoded by the model's own tokenizer"),
        ("darker", "(255 * images).round()"),
        ("order", "sorted names of its folders"),
    ):
        said = reasons(run, replace(PLAIN, **{one: getattr(odd, one)}))
        assert then in said.partition("; ")[2], said
        assert ("--reference PATH" in said) == (one == "copied")
        assert (f"`varbench run --plugins {ROW} " in said) == (one == "copied")


def test_guidance_left_off(run: Run) -> None:
    (notice,) = noticed(run, cfg=0.0)
    assert "guidance is off" in notice.text and "--cfg 1.5" in (notice.next_command or "")


@pytest.mark.parametrize(("images", "next_"), [(2_003, 2_000), (1_999, 1_990)])
def test_labels_that_are_not_balanced(run: Run, images: int, next_: int) -> None:
    (notice,) = noticed(run, images=images)
    assert f"{images:,} images of 10 classes" in notice.text
    assert f"--images {next_}" in (notice.next_command or "")


def of_imagenet(run: Run) -> Run:
    return replace(run, model=presets.preset("var-d16").spec)


def test_a_reference_that_is_not_the_batch_of_the_adm_suite(run: Run) -> None:
    there = of_imagenet(run)
    assert noticed(there, a_scored("FID")) == []
    for reference in (
        ReferenceSeen(source="val", statistics=False, images=50_000),
        ReferenceSeen(source="own statistics", statistics=True, images=None),
        replace(BATCH, source="own batch", spatial=False),
        replace(BATCH, source="another batch", images=50_000),
    ):
        (notice,) = noticed(there, a_scored("FID", reference=reference))
        assert reference.source in notice.text and "rFID" in notice.text
        assert "--reference VIRTUAL_imagenet256_labeled.npz" in (notice.next_command or "")
    own = ReferenceSeen(source="val", statistics=False, images=2_000)
    assert noticed(run, a_scored("FID", reference=own)) == [], "a user's own classes have no such batch"


def test_a_reference_of_reconstructions(run: Run) -> None:
    (notice,) = noticed(run, a_scored(reference=replace(BATCH, rebuilt=1.02)))
    assert "came out of this tokenizer" in notice.text and notice.next_command
    assert noticed(run, a_scored(reference=replace(BATCH, rebuilt=2.5))) == []


def test_bytes_that_were_cut_off_and_not_rounded(run: Run) -> None:
    assert "0.50 levels below" in reasons(run, replace(PLAIN, darker=0.5))
    assert reasons(run, replace(PLAIN, darker=0.02)) == ""


@pytest.fixture(scope="module")
def made() -> tuple[torch.Tensor, np.ndarray]:
    """Floats and tokens of forty images by the shipped model."""
    out = load_pipeline("tiny").generate([place % 10 for place in range(40)])
    return out.images, out.tokens.numpy()


def scored(made: tuple[torch.Tensor, np.ndarray], folder: Path, images: np.ndarray, *, full: bool = False) -> Scored:
    """What a scorer says of these bytes, which come with the tokens of the images."""
    return said(scorer_of_forty(), made, folder, images, full=full)


def scorer_of_forty() -> Scorer:
    files = {part: str(path) for part, path in presets.shipped_files("tiny").items()}
    job = Job(task="scoring", options=replace(OPTIONS, images=40), model=TINY, files=files)
    return Scorer(job, SimpleNamespace(alive=lambda text="": None))  # type: ignore[arg-type]


def said(
    scorer: Scorer, made: tuple[torch.Tensor, np.ndarray], folder: Path, images: np.ndarray, *, full: bool
) -> Scored:
    scorer.begin(Begin(row="a", full=full))
    path = folder / "chunk.npz"
    with open(path, "wb") as file:
        write_made(file, images, made[1])
    chunk = Chunk(path=str(path), sha256=file_hash(path))
    scorer.take(Take(chunk=chunk, labels=balanced_labels(40, 10)))
    return scorer.finish(40)


def test_a_scorer_sees_that_bytes_were_cut_off(made: tuple[torch.Tensor, np.ndarray], tmp_path: Path) -> None:
    rounded = scored(made, tmp_path, to_uint8(made[0]))
    cut = scored(made, tmp_path, (made[0] * 255).to(torch.uint8).numpy())
    assert rounded.oddities.darker == pytest.approx(0.0, abs=0.05)
    assert cut.oddities.darker == pytest.approx(0.5, abs=0.1)


def test_a_scorer_sees_that_images_of_one_class_are_not_what_their_tokens_say(
    made: tuple[torch.Tensor, np.ndarray], tmp_path: Path
) -> None:
    """A few are looked at, of every class: `tiny` has an even number of them."""
    count, job = 256, scorer_of_forty()._job
    images, tokens = (np.resize(some, (count, *some.shape[1:])) for some in (to_uint8(made[0]), made[1]))
    labels = np.asarray(balanced_labels(count, 10))
    for wrong in (None, 4, 7):
        shown = np.where((labels == wrong)[:, None, None, None], 255 - images, images)
        scorer = Scorer(replace(job, options=replace(job.options, images=count)), SimpleNamespace(alive=lambda _: None))  # type: ignore[arg-type]
        scorer.begin(Begin(row="a", full=False))
        path = tmp_path / "chunk.npz"
        with open(path, "wb") as file:
            write_made(file, shown, tokens)
        scorer.take(Take(chunk=Chunk(path=str(path), sha256=file_hash(path)), labels=tuple(labels.tolist())))
        found = scorer.finish(count).oddities.undecoded
        assert found is not None and (found > sanity.UNDECODED) == (wrong is not None)


def test_what_was_seen_in_images_to_score_them_is_what_their_distance_to_the_full_models_is_of(
    made: tuple[torch.Tensor, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is looked at a second time."""
    scorer, exact = scorer_of_forty(), to_uint8(made[0])
    darker = exact - exact // 8
    for module in (scoring, same_noise):
        monkeypatch.setattr(module, "extract", None)
    assert said(scorer, made, tmp_path, exact, full=True).distance is None
    first, again = (said(scorer, made, tmp_path, images, full=False).distance for images in (darker, exact))
    monkeypatch.undo()
    wanted = distance_to_full(darker, exact, extractor=scorer._networks.extractor).feature_distance.value
    assert first is not None and first.feature_distance == pytest.approx(wanted, rel=1e-4) and wanted
    assert again is not None and again.feature_distance == 0


def test_distances_of_a_tokenizer_and_of_a_generator_have_names_of_their_own(
    made: tuple[torch.Tensor, np.ndarray], tmp_path: Path
) -> None:
    found = scored(made, tmp_path, to_uint8(made[0]), full=True)
    assert found.quality is not None
    assert found.quality.scores[0].name == "FD-shapes" == found.quality.floors["real"].name
    assert found.quality.floors["reconstruction"].name == "rFD-shapes"
    assert found.quality.against is not None and "its 40 images" in found.quality.against
    assert found.samples.classes[:2] == Shapes().classes[:2]
    assert found.reference is not None and found.reference.rebuilt is not None
    assert found.reference.rebuilt > pitfalls.REBUILT, "held-out images did not come out of the tokenizer"


def test_bytes_from_a_generator_are_told_from_floats() -> None:
    floats = torch.rand(2, 3, 8, 8)
    assert not _are_bytes(floats)
    assert _are_bytes((floats * 255).floor() / 255)


def test_a_generator_that_hands_bytes_over_is_warned_of(run: Run) -> None:
    looks = Looks(
        batch=4,
        peaks=None,
        trace=None,
        work=None,
        kernel=None,
        arithmetic=None,
        findings=(),
        changed=(),
        from_bytes=True,
    )  # type: ignore[arg-type]  # the rest is not looked at
    (notice,) = pitfalls.notices(run, run.rows[ROW], Findings(looks=looks))
    assert "cut off" in notice.text and "let the generator give floats" in notice.text
    assert f"--plugins {ROW}" in (notice.next_command or "")


def test_another_order_of_the_classes(run: Run) -> None:
    labels = np.arange(2000) % 10
    judged = (labels + 3) % 10
    judged[::7] = 0
    found = class_order(labels, judged, classes=10)
    assert found is not None and found.right < 0.05 and found.reordered > 0.8 and found.shown == (found.asked + 3) % 10
    assert "classes stood in another order" in reasons(run, replace(PLAIN, order=ClassOrder(**found._asdict())))
    weak = class_order(labels, np.random.default_rng(0).integers(0, 10, 2000), classes=10)
    assert weak is not None
    assert reasons(run, replace(PLAIN, order=ClassOrder(**weak._asdict()))) == "", "bad images are no other order"
    assert class_order(labels[:40], judged[:40], classes=10) is None


def test_an_order_of_classes_that_nobody_judged_is_said(run: Run) -> None:
    """As of ImageNet's models: the published Inception numbers its classes otherwise, and judges none."""
    (notice,) = noticed(of_imagenet(run), a_scored("FID", weights=()))
    assert notice.text.startswith("class order was not checked: no judge") and "samples" in notice.text
    (notice,) = noticed(of_imagenet(run), a_scored("FID", weights=()), model="var-d16")
    assert notice.next_command == "varbench train judge --data FOLDER --out judge.safetensors --model var-d16"
    (notice,) = noticed(run, a_scored(weights=()), data="MY IMAGES")
    assert notice.next_command == "varbench train judge --data 'MY IMAGES' --out judge.safetensors --model tiny"


def test_a_scorer_tells_whether_a_judge_looked(made: tuple[torch.Tensor, np.ndarray], tmp_path: Path) -> None:
    assert "judge" in {file.role for file in scored(made, tmp_path, to_uint8(made[0])).weights}


class SameNoise(Grey):
    """One seed for every batch: places in the batch draw the same noise again and again."""

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        return super().generate(labels, seed=seed, first_image=0)


class NoiseOfTheClass(Grey):
    """One seed for each class: all images of a class are one image, whatever the batch."""

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        return torch.cat(
            [super(NoiseOfTheClass, self).generate([label], seed=seed, first_image=label) for label in labels]
        )


class NoiseOfTheCall(Grey):
    """A noise for each call, and all its classes have it."""

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        return super().generate(labels[:1], seed=seed, first_image=first_image).expand(len(labels), -1, -1, -1)


class NoiseAnewForEachClass(Grey):
    """The first image of every class has one noise, the second of every class the next."""

    def generate(self, labels: Sequence[int], *, seed: int, first_image: int) -> Tensor:
        numbers = range(first_image, first_image + len(labels))
        one = super().generate
        return torch.cat([one([0], seed=seed, first_image=number // TINY.classes) for number in numbers])


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (Grey, set()),
        (SameNoise, {"batch"}),
        (NoiseOfTheClass, {"batch", "class"}),
        (NoiseOfTheCall, {"class"}),
        (NoiseAnewForEachClass, {"batch", "class"}),
    ],
)
def test_the_same_noise_for_every_batch_or_class(kind: type[Grey], caught: set[str]) -> None:
    looks = look_at(process(kind()).ask, "test", a_run_of_a_generator())
    found = {
        what for finding in looks.findings for what in ("batch", "class") if f"each {what} has the same" in finding
    }
    assert found == caught


def test_images_of_one_noise_a_class_are_seen_to_repeat(
    run: Run, made: tuple[torch.Tensor, np.ndarray], tmp_path: Path
) -> None:
    """Ten classes, of seven shades."""
    images = NoiseOfTheClass().generate(balanced_labels(40, 10), seed=0, first_image=0)
    found = scored(made, tmp_path, to_uint8(images))
    assert found.oddities.repeated == 33
    assert "33 of 2000 images repeat another one's pixels" in reasons(run, found.oddities)


def test_images_are_compared_by_what_was_seen_of_them() -> None:
    first, other = (Reply(row="a", images_sha256=name, tokens_sha256=None) for name in "ab")
    assert honesty.across_images(first, other) == []
    assert honesty.across_images(first, first) != []


def test_a_distance_of_fewer_images_has_their_number_in_its_name() -> None:
    def named(n: int) -> str:
        return score_label(replace(make_score("FID", 2.0, 0.1, n=n), weights_sha256="6726825d" + "0" * 56))

    assert [named(n) for n in (5_000, 10_000, 49_999, 50_000)] == ["FID-5000", "FID-10000", "FID-49999", "FID"]


def test_distances_of_few_and_of_many_images_on_one_page_are_kept_apart_and_said() -> None:
    records = [*full_records(images=10_000), *full_records(images=50_000), make_record(images=50_000)]
    blocks = blocks_of(records)
    assert len(blocks) == 2
    (notice,) = across_blocks(blocks)
    assert "10,000 and 50,000 images" in notice.text and "--images 50000" in (notice.next_command or "")
    assert across_blocks(blocks_of(full_records())) == []


def test_names_of_classes_stand_beside_the_samples() -> None:
    record = full_records()[0]
    assert record.samples is not None
    named = replace(record, samples=replace(record.samples, classes=("tench", "goldfish")))
    (grid,) = grids_of(blocks_of([named])[0])
    assert grid.classes == "tench, goldfish"


def test_official_classes_have_the_names_of_their_numbers() -> None:
    names = imagenet_classes()
    assert len(names) == 1000 and (names[0], names[207], names[360]) == ("tench", "golden retriever", "otter")


def test_a_tokenizer_changes_what_it_made_itself_less_than_other_images() -> None:
    """What tells a reference of reconstructions from one of photographs."""
    pipe = load_pipeline("tiny")
    data = Shapes(side=32)
    real = data.images(data.test[:64])

    def through(images: np.ndarray) -> np.ndarray:
        return to_uint8(pipe.decode(pipe.encode(images.astype("float32") / 127.5 - 1)))

    def change(images: np.ndarray) -> float:
        return float(np.square(through(images).astype(int) - images).mean())

    def ratio(images: np.ndarray) -> float:
        return change(images) / change(through(images))

    assert ratio(through(real)) < pitfalls.REBUILT < ratio(real)
