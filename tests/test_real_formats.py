"""`varbench run` on a user's own files, small ones in the published formats: official checkpoints, an ADM reference, Inception's
weights. And what it says of wrong ones: one line with both numbers, exit code 2, nothing left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import golden_files as golden
import models
import numpy as np
import pytest
import small_protocol
import torch
from PIL import Image
from safetensors.torch import save_file

import varbench
from varbench.base.hashing import file_hash
from varbench.data.folder import open_folder
from varbench.engine.pixels import to_uint8
from varbench.model.bundle import write_bundle
from varbench.model.state_files import read_state
from varbench.quality import extractors, libraries
from varbench.quality.second_opinion import TORCHSCRIPT_FILE
from varbench.record import Record, Status, load_records
from varbench.train.budgets import QUICK_STEPS

needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed"
)

Run = Callable[..., subprocess.CompletedProcess[str]]
SIDE = models.SPEC.image_side
LOOK = ("--images", "20", "--batch", "10", "--dtype", "float32", "--quick", "--budget", "0.01")
UNTIMED = ("--images", "20", "--batch", "10", "--dtype", "float32", "--rounds", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that the command lines below name."""
    folder = tmp_path_factory.mktemp("files")
    files = golden.save_checkpoints(folder, models.SPEC)
    golden.save_checkpoints(folder, models.NARROW, prefix="refiner", name="refiner")
    other_scales = dataclasses.replace(models.NARROW, sides=(1, 2, 4, 8))
    golden.save_checkpoints(folder, other_scales, prefix="refiner", name="other_scales")
    nested = {part: torch.load(files[name]) for part, name in (("var_wo_ddp", "var"), ("vae_local", "vae"))}
    torch.save({"trainer": nested, "epoch": 1}, folder / "trainer.pth")
    random = np.random.RandomState(0)
    np.savez(folder / "statistics.npz", mu=np.full(2048, 0.3), sigma=0.04 * np.eye(2048))
    pixels = random.randint(0, 256, (40, SIDE, SIDE, 3)).astype(np.uint8)
    np.savez(folder / "samples.npz", arr_0=pixels)
    np.savez(folder / "large.npz", arr_0=random.randint(0, 256, (40, 64, 64, 3)).astype(np.uint8))
    np.savez(folder / "other.npz", features=np.zeros(3))
    for name, count in (("images", 20), ("few", 7), ("torn", 20)):
        (folder / name).mkdir()
        for number in range(count):
            Image.fromarray(pixels[number]).save(folder / name / f"{number:03d}.png")
    torn = folder / "torn" / "011.png"
    torn.write_bytes(torn.read_bytes()[:300])
    for name, classes in (("ten", 10), ("eleven", 11)):
        for label in range(classes):
            (folder / name / str(label)).mkdir(parents=True)
            for number in range(10):
                Image.fromarray(pixels[number]).resize((32, 32)).save(folder / name / str(label) / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def inception(folder: Path) -> Path:
    """Random weights in the published file's format, under its name."""
    library = libraries.torch_fidelity()

    class Random(library.feature_extractor_inceptionv3.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:
            pass

    torch.save({}, folder / "empty.pth")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Random("random", ["2048"], feature_extractor_weights_path=folder / "empty.pth")
        for weight in network.parameters():
            if weight.dim() > 1:
                torch.nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), folder / extractors.INCEPTION_FILE)
    return folder / extractors.INCEPTION_FILE


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    """`varbench run ARGUMENTS --out` an empty folder; with `published`, that file passes for the published Inception, with `little`
    and with a small network in its place, and with `protocol` the files in that folder for the protocol's."""
    patch = (
        "import os, sys\n"
        "if start := os.environ.get('PUBLISHED_START'):\n"
        "    from varbench.quality import extractors, halves\n"
        "    extractors.INCEPTION_SHA256_START = start\n"
        "    halves._FEWER = 2\n"  # eigenvalues at 2,048 take a second each
        "if hash := os.environ.get('PUBLISHED_LITTLE'):\n"
        f"    sys.path.append({str(Path(__file__).parent)!r})\n"
        "    import small_protocol\n"
        "    small_protocol.look_with_little(hash)\n"
        "if files := os.environ.get('PUBLISHED_FILES'):\n"
        "    from pathlib import Path\n"
        f"    sys.path.append({str(Path(__file__).parent)!r})\n"
        "    import small_protocol\n"
        "    small_protocol.take(Path(files))\n"
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(patch)

    def run(
        *arguments: str, published: Path | None = None, little: bool = False, protocol: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        if published is not None or protocol is not None:
            environment["PYTHONPATH"] = str(tmp_path / "site")
        if protocol is not None:
            environment |= {"PUBLISHED_FILES": str(protocol), "TORCH_HOME": str(tmp_path / "torch")}
        if published is not None:
            sha256 = hashlib.sha256(published.read_bytes()).hexdigest()
            environment |= {"PUBLISHED_LITTLE": sha256} if little else {"PUBLISHED_START": sha256[:8]}
        return subprocess.run(
            [sys.executable, "-m", "varbench", "run", "--out", str(tmp_path / "run"), *arguments],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=800,
        )  # fmt: skip

    return run


def records(tmp_path: Path) -> dict[str, Record]:
    return {record.row.row: record for record in load_records([tmp_path / "run"]).records}


# What is right


@pytest.mark.slow
@needs_fidelity
def test_fid_of_official_checkpoints_against_adm_statistics(
    folder: Path, inception: Path, run: Run, tmp_path: Path
) -> None:
    files = ("--weights", "var.pth", "--vae", "vae.pth", "--reference", "statistics.npz", "--inception", inception.name)
    done = run("--plugins", "full_var", *files, *LOOK, "--second-opinion", published=inception)
    assert done.returncode == 0, done.stderr
    full = records(tmp_path)["full_var"]
    assert full.quality is not None
    assert full.model.spec == {**models.SPEC.to_json(), "name": "var-6x64-16px"} | {
        "sides": list(models.SPEC.sides), "tokenizer": full.model.spec["tokenizer"]
    }  # fmt: skip
    scores = {score.name: score for score in full.quality.scores}
    assert scores["FID"].weights_sha256 == hashlib.sha256(inception.read_bytes()).hexdigest()
    assert scores["FID"].reference == hashlib.sha256((folder / "statistics.npz").read_bytes()).hexdigest()
    assert scores["IS"].value is not None
    assert "holds only mu and sigma" in (scores["KID"].reason or "")
    assert TORCHSCRIPT_FILE in (scores["FID (clean-fid)"].reason or "")
    # The report knows the published hash by itself, so even now it does not say FID.
    assert "Fréchet distance" in done.stdout
    assert "FID" not in done.stdout

    pipe = varbench.load_pipeline(vae=folder / "vae.pth", var=folder / "var.pth")
    sampling = {"cfg": 1.5, "top_k": 64, "top_p": 0.96}
    batches = [pipe.generate(list(range(10)), first_image=first, **sampling).images for first in (0, 10)]
    network = libraries.torch_fidelity().utils.create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(inception), verbose=False
    )
    seen = network(torch.from_numpy(to_uint8(torch.cat(batches))))[0].double().numpy()
    # Against c times the identity the matrix root is that of the samples' own covariance, found here by its Gram matrix.
    centred = seen - seen.mean(0)
    eigenvalues = np.clip(np.linalg.eigvalsh(centred @ centred.T / (len(seen) - 1)), 0, None)
    expected = (
        ((seen.mean(0) - 0.3) ** 2).sum() + eigenvalues.sum() + 0.04 * 2048 - 2 * 0.2 * np.sqrt(eigenvalues).sum()
    )
    assert scores["FID"].value == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@needs_fidelity
def test_scores_of_a_trainers_file_against_adm_samples(inception: Path, run: Run, tmp_path: Path) -> None:
    files = ("--weights", "trainer.pth", "--vae", "trainer.pth", "--companion", "refiner=refiner.pth")
    against = ("--reference", "samples.npz", "--inception", inception.name)
    done = run("--plugins", "code@training_free/n4", *files, *against, *UNTIMED, published=inception, little=True)
    assert done.returncode == 0, done.stderr
    code = records(tmp_path)["code@training_free/n4"]
    assert code.quality is not None
    scores = {score.name: score.value for score in code.quality.scores}
    assert all(scores[name] is not None for name in ("FID", "KID", "IS", "precision", "recall"))
    assert code.distance is not None
    assert {weight.role for weight in code.weights} >= {"vae", "main", "refiner"}


@pytest.mark.slow
def test_recipes_are_trained_on_a_users_folder_of_classes(folder: Path, run: Run, tmp_path: Path) -> None:
    files = ("--weights", "var.pth", "--vae", "vae.pth", "--companion", "refiner=refiner.pth")
    done = run("--plugins", "variant@d3,code@n4", *files, "--data", "ten", *LOOK)
    assert done.returncode == 0, done.stderr
    trained = {name: record.training for name, record in records(tmp_path).items()}
    assert trained.pop("full_var") is None
    assert trained.pop("full_var:accounting=upstream") is None
    data = open_folder(folder / "ten", side=SIDE).fingerprint
    for name, training in trained.items():
        assert training is not None, name
        kept = json.loads((tmp_path / "cache" / "varbench" / "weights" / training.key / "record.json").read_text())
        assert (kept["data"], training.steps) == (data, QUICK_STEPS)
    assert len(trained) == 2
    again = run("--plugins", "variant@d3,code@n4", *files, "--data", "ten", *LOOK, "--resume")
    assert again.returncode == 0
    assert "4 of 4 rows are complete and unchanged" in again.stderr


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """Small files under the names that the protocol's are published by."""
    there = tmp_path / "checkpoints"
    there.mkdir()
    files = golden.save_checkpoints(there, small_protocol.SPEC)
    files["vae"].rename(there / "vae_ch160v4096z32.pth")
    files["var"].rename(there / "var_d16.pth")
    torch.save({}, there / extractors.INCEPTION_FILE)
    side = small_protocol.SPEC.image_side
    pixels = np.random.RandomState(1).randint(0, 256, (40, side, side, 3)).astype(np.uint8)
    seen = {"mu": np.full(small_protocol.SEEN, 0.5), "sigma": 0.04 * np.eye(small_protocol.SEEN)}
    np.savez(there / "VIRTUAL_imagenet256_labeled.npz", arr_0=pixels, **seen)
    return there


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_the_protocols_command_measures_what_is_published_or_was_trained(
    trained: bool, protocol: Path, run: Run, tmp_path: Path
) -> None:
    ours, given = {"vae": protocol / "vae_ch160v4096z32.pth", "main": protocol / "var_d16.pth"}, list[str]()
    if trained:
        published, ours = ours, {part: tmp_path / f"{part}.safetensors" for part in ours}
        vae, main = (read_state(path, part="") for path in published.values())
        save_file(vae, ours["vae"])
        save_file({**main, "head.bias": main["head.bias"] + 1}, ours["main"])
        packed = tmp_path / "v.varbench"
        write_bundle(packed, recipe="variant@progressive", model=small_protocol.SPEC, files=ours, record={})
        given = ["--weights", str(packed)]
        for path in published.values():
            path.unlink()
    files = ("--protocol", small_protocol.NAME, "--model", small_protocol.MODEL, "--checkpoints", str(protocol), *given)
    trial = ("--images", "40", "--batch", "20", "--dtype", "float32", "--rounds", "0")
    done = run("--plugins", "full_var,variant@d2", *files, *trial, protocol=protocol)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("as published") == (2 if trained else 4)
    found = records(tmp_path)
    for name in ("full_var", "variant@d2"):
        record = found[name]
        assert record.status == Status.COMPLETE and record.quality is not None
        assert (record.protocol.cfg, record.protocol.top_k, record.protocol.top_p) == (1.5, 900, 0.96)
        scored = {score.name for score in record.quality.scores if score.value is not None}
        assert scored >= {"FID", "KID", "IS", "precision", "recall"}
        hashes = {weight.role: weight.sha256 for weight in record.weights}
        assert hashes.items() >= {part: file_hash(path) for part, path in ours.items()}.items()
        warned = "\n".join(notice.text for notice in record.warnings)
        assert "not as imagenet256-50k has it: images 40, there 50000" in warned
        assert ("trained for variant@progressive" in warned) == (name == "full_var" and trained)
        assert ("nothing was trained for progressive" in warned) == (name != "full_var" and not trained)


# What is wrong

OWN = ("--weights", "var.pth", "--vae", "vae.pth")
INCEPTION = ("--inception", extractors.INCEPTION_FILE)


WRONG = [
    (
        (*OWN, "--model", "var-d16"),
        "6 layers of width 64 and scales (1, 2, 3, 4, 6, 8), but var-d16 has 16 of width 1024",
    ),
    (("--companion", "refiner=refiner.pth"), "refiner.pth: does not fit the model"),
    (("--reference", "large.npz"), "samples have 32 x 32 pixels, and the reference large.npz has 64 x 64"),
    (("--data", "eleven"), "--data eleven has 11 classes, and tiny knows 10"),
]
ALSO_WRONG = [
    (
        ("--weights", "vae.pth", "--vae", "var.pth"),
        "var.pth: tensor 'encoder.conv_in.weight' is missing; it holds a transformer",
    ),
    (("--vae", "vae.pth"), "--vae vae.pth, but no --weights are given"),
    (
        (*OWN, "--companion", "refiner=other_scales.pth"),
        "other_scales.pth: scales (1, 2, 4, 8) and 10 classes, but var.pth",
    ),
    (
        (*OWN, "--reference", "samples.npz"),
        "--reference samples.npz: scores against it need the published Inception weights",
    ),
    (("--reference", "statistics.npz"), "statistics.npz holds only mu and sigma of the published Inception"),
    (("--reference", "other.npz"), "other.npz holds features; a reference needs mu and sigma, or arr_0"),
    (("--reference", "few"), "the reference few has 7 images, and at least 20 are needed"),
    (("--reference", "torn"), "torn/011.png is not a readable image"),
    (("--features", "var.pth"), "var.pth is not a network written by `varbench train"),
    (("--judge", "var.pth"), "var.pth is not a network written by `varbench train"),
    (("--images", "7"), "7 images are too few to score; give --images 20 or more"),
    (("--data", "images"), "images has no sub-folders (20 images lie in it directly)"),
]
"""Each takes a process some seconds, so these are tried when asked for."""


@pytest.mark.parametrize(
    ("arguments", "message"), [*WRONG, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALSO_WRONG)]
)
def test_a_wrong_file_is_one_line_before_anything_runs(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run("--plugins", "full_var", *arguments)
    # Whole paths are told; which of them is meant is enough.
    assert message in re.sub(r"/\S*/files\d*/", "", done.stderr)
    assert (done.returncode, len(done.stderr.strip().splitlines()), done.stdout) == (2, 1, "")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@needs_fidelity
def test_other_weights_than_the_published_are_refused_with_both_hashes(
    inception: Path, run: Run, tmp_path: Path
) -> None:
    done = run("--plugins", "full_var", *OWN, "--reference", "statistics.npz", *INCEPTION)
    assert done.returncode == 2
    found = hashlib.sha256(inception.read_bytes()).hexdigest()[:8]
    assert f"sha256 that starts with {found}, and the published Inception weights start with 6726825d" in done.stderr
    assert not (tmp_path / "run").exists()
