"""What a run's images are scored with: networks that know a user's own classes, and none that does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from record_factory import make_score
from scripted import Script, a_run, scripted

from varbench.__main__ import main
from varbench.data.shapes import Shapes
from varbench.errors import UserError
from varbench.quality import Scoring
from varbench.record import Quality, Samples, Verdict
from varbench.record.options import Options
from varbench.run.defaults import filled_in
from varbench.run.findings import Findings, Seen
from varbench.run.kept_parts import KeptParts
from varbench.run.messages import Oddities, Scored
from varbench.run.scoring_networks import ScoringNetworks
from varbench.run.verdict import validity
from varbench.run.verify import other_contents

CLASSES = tuple(f"garment {place}" for place in range(10))


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of a user: other names than the shapes have, 300 images of 32 pixels."""
    shapes = Shapes()
    root = tmp_path_factory.mktemp("data") / "garments"
    indices = range(5000, 5300)
    for index, image, label in zip(indices, shapes.images(indices), shapes.labels(indices), strict=True):
        path = root / CLASSES[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return root


@pytest.fixture(scope="module")
def networks(garments: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `varbench train features` and `judge` make of the user's folder, in a few steps."""
    out = tmp_path_factory.mktemp("networks")
    for kind in ("features", "judge"):
        path = str(out / f"{kind}.safetensors")
        assert main(["train", kind, "--data", str(garments), "--steps", "3", "--out", path]) == 0
    return {kind: str(out / f"{kind}.safetensors") for kind in ("features", "judge")}


def found_for(**given: object) -> ScoringNetworks:
    return ScoringNetworks(Options(**filled_in({"model": "tiny", "images": 30, **given})), side=32, device="cpu")


def test_a_users_networks_look_and_name_the_score(garments: Path, networks: dict[str, str]) -> None:
    seen = found_for(data=str(garments), **networks)
    assert seen.extractor.distance_name == "FD-garments"
    assert seen.judge is not None
    assert seen.judge.config.classes == CLASSES
    assert "garments" in seen.reference.source, "scores are against the user's own held-out images"
    scoring = Scoring(seen.reference, seen.extractor, side=32, judge=seen.judge, second_opinion=False)
    others = seen.further_images()
    assert others is not None
    scoring.take(*others)
    scores = scoring.scores()
    assert scores.distance.name == "FD-garments"
    assert scores.class_accuracy.value is not None


def test_no_accuracy_without_a_judge_that_knows_the_classes(garments: Path, networks: dict[str, str]) -> None:
    seen = found_for(data=str(garments))
    assert seen.judge is None, "the shipped one knows shapes"
    assert seen.extractor.distance_name == "FD-shapes", "named after the network that looks"
    assert "garments" in seen.reference.source
    with pytest.raises(UserError, match=r"10 classes garment 0.*shapes has the 10 classes"):
        _ = found_for(judge=networks["judge"]).judge


def test_the_shipped_judge_looks_where_it_knows_the_classes() -> None:
    judge = found_for().judge
    assert judge is not None
    assert judge.config.classes == Shapes().classes


def test_a_preset_without_networks_is_scored_by_a_users(garments: Path, networks: dict[str, str]) -> None:
    assert not found_for(model="var-d16", data=str(garments)).scores
    seen = found_for(model="var-d16", data=str(garments), features=networks["features"])
    assert seen.scores
    assert seen.extractor.distance_name == "FD-garments"
    assert seen.judge is None


def test_floors_need_as_many_further_images_as_are_scored(garments: Path) -> None:
    found = found_for(data=str(garments)).further_images()
    assert found is not None
    images, labels = found
    assert images.shape == (30, 3, 32, 32)
    assert np.bincount(labels).tolist() == [3] * 10
    assert found_for(data=str(garments), images=60).further_images() is None


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted(monkeypatch) as one:
        yield one


@pytest.mark.parametrize("what", ["reference", "data", "features"])
def test_what_was_changed_before_images_were_scored_makes_the_row_invalid_with_both_hashes(
    what: str, garments: Path, networks: dict[str, str], tmp_path: Path, script: Script
) -> None:
    """Training may take hours in between. It is not kept for later runs either: they would find it under the old identity."""
    place = tmp_path / "given"
    if what == "features":
        shutil.copyfile(networks["features"], place)
    else:
        shutil.copytree(garments, place)
    run = a_run(tmp_path / "run", plugins="variant@d8", weights=None, images=30, **{what: str(place)})

    def seen() -> Seen:
        looking = found_for(**{what: str(place)})
        assert looking.reference.images is not None
        odd = Oddities(repeated=0, copied=None, undecoded=None)
        return Seen(
            scored=Scored(
                quality=Quality(scores=(make_score("FD-garments", 3.0, 0.1, n=30),)), distance=None, samples=Samples(),
                weights=looking.files(), oddities=odd, contents=looking.contents(),
            )
        )  # fmt: skip

    kept = KeptParts(run, tmp_path / "parts")
    assert other_contents(run, seen()) == []
    if what == "features":
        assert (
            main(["train", "features", "--data", str(garments), "--steps", "2", "--out", str(tmp_path / "other")]) == 0
        )
        shutil.copyfile(tmp_path / "other", place)
    else:
        next(place.rglob("*.png")).unlink()
    changed = seen()
    now, prepared = changed.scored.contents[what], run.contents[what]
    assert now != prepared
    told = validity(run, run.rows["variant@d8"], Findings(seen=changed), {}, complete=True)
    assert told.verdict is Verdict.INVALID
    assert f"images were scored with the {what} {now[:12]}, and {prepared[:12]} was prepared" in "; ".join(told.reasons)
    kept.write(changed, "variant@d8", trained=None)
    assert not [*(tmp_path / "parts").rglob("*.done.json")]
    unsaid = replace(changed, scored=replace(changed.scored, contents={}))
    assert any(f"images were scored with no {what}, and" in reason for reason in other_contents(run, unsaid))
