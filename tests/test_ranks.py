"""A batch computed by several processes, or in pieces, trains what one process does at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import BUDGET, DATA, SPEC, fresh, trained, weights

from varbench.__main__ import main
from varbench.errors import UserError
from varbench.model.tokenizer import Tokenizer
from varbench.train.optimiser import RunningMean
from varbench.train.ranks import Ranks, Share, among_others, own_device
from varbench.train.state_parts import Numbers, latest, load_parts, save_parts
from varbench.train.token_folder import open_tokens
from varbench.train.tokens import TokenSet, tokens_of


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.for_model(SPEC).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> TokenSet:
    return tokens_of(DATA, tokenizer, model=SPEC, indices=DATA.training[:32])


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Adam turns the rounding of a sum into steps of some size where gradients are near zero."""
    moved = (other - weights(fresh())).norm()
    return bool((one - other).norm() < 0.02 * moved)


def test_shares_are_equal_and_together_the_whole() -> None:
    rows = np.arange(12)
    parts = [Share(place, 4).rows(rows) for place in range(4)]
    assert {len(part) for part in parts} == {3} and sorted(np.concatenate(parts)) == list(range(12))
    Ranks(count=2, parts=3).check(12)
    with pytest.raises(UserError, match="a batch of 12 cannot be split evenly over 5 processes. Change --batch"):
        Ranks(count=5).check(12)
    with pytest.raises(UserError, match="over 2 processes in 4 parts each"):
        Ranks(count=2, parts=4).check(12)
    with pytest.raises(UserError, match="over 16 processes"):
        Ranks(count=16).check(4)


def test_each_process_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [own_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


def test_who_loses_the_others_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection reset by peer")

    def ended(error: BaseException, *, rank: int, count: int) -> BaseException:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        with pytest.raises(BaseException) as caught, among_others():  # noqa: PT011
            raise error
        return caught.value

    first, second = (ended(lost, rank=rank, count=2) for rank in (0, 1))
    assert isinstance(first, UserError) and "the same command goes on from the last checkpoint" in str(first)
    assert isinstance(second, SystemExit) and second.code == 2, "the first has said it"
    assert isinstance(ended(torch.distributed.DistBackendError("nccl"), rank=0, count=2), UserError)
    other, alone = RuntimeError("CUDA out of memory"), KeyboardInterrupt()
    assert ended(other, rank=0, count=2) is other and ended(lost, rank=0, count=1) is lost
    assert ended(alone, rank=0, count=2) is alone and isinstance(ended(alone, rank=1, count=2), SystemExit)


@pytest.mark.parametrize("how", [{"parts": 2}, {"parts": 4}, {"recompute": True}, {"parts": 2, "recompute": True}])
def test_pieces_and_recomputed_activations_train_the_same(
    tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path, how: dict[str, Any]
) -> None:
    whole, told = trained(tokenizer, tokens, tmp_path / "whole")
    other, said = trained(tokenizer, tokens, tmp_path / "other", ranks=Ranks(**how))
    assert near(weights(other), weights(whole))
    if "parts" not in how:
        assert torch.equal(weights(other), weights(whole))
    for (step, loss), (same, near_loss) in zip(told["losses"]["full"], said["losses"]["full"], strict=True):
        assert step == same and loss == pytest.approx(near_loss, abs=2e-3)


def test_recomputed_activations_are_not_held(tokenizer: Tokenizer, tokens: TokenSet) -> None:
    from varbench.engine.teacher import TeacherPass
    from varbench.policies import MAIN
    from varbench.train.curriculum import attention_of
    from varbench.train.recipes import full_plan

    model = fresh().requires_grad_(True)
    features = tokenizer.teacher_input(torch.from_numpy(tokens.tokens_NL[:8].astype(np.int64)))
    held = []
    for recompute in (False, True):
        run = TeacherPass(full_plan(SPEC), MAIN, recompute=recompute)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run.logits(
                model, features, torch.zeros(8, dtype=torch.long), dtype=torch.float32,
                attend=attention_of(torch.device("cpu")),
            )  # fmt: skip
        held.append(sum(kept.values()))
    assert held[1] < 0.8 * held[0]


PAIRS = """
import json
import os
import signal
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training as t
import torch
from torch import distributed
from varbench.train.ranks import join_ranks

torch.manual_seed(0)
tokenizer = t.Tokenizer.for_model(t.SPEC).eval().requires_grad_(False)
tokens = t.tokens_of(t.DATA, tokenizer, model=t.SPEC, indices=t.DATA.training[:32])


def train(folder, dies_at, dies, apart, how):
    ranks = join_ranks(**how)

    def progress(step, figures):
        if step == dies_at and ranks.rank == dies:
            os.kill(os.getpid(), signal.SIGKILL)

    state = folder / ("elsewhere" if apart and ranks.rank == 1 else ".")
    model, _ = t.trained(tokenizer, tokens, state, ranks=ranks, progress=progress)
    torch.save(t.weights(model), folder / f"rank{ranks.rank}")
    ranks.close()


def as_rank(rank, folder, *asked):
    pid = os.fork()
    if pid:
        return pid
    os.environ["RANK"] = str(rank)
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 1
    try:
        train(folder, *asked)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def both(folder, *asked):
    # Its store outlives both processes, as torchrun's does.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    started = [as_rank(rank, Path(folder), *asked) for rank in (0, 1)]
    statuses = []
    while started:
        pid, status = os.wait()
        started.remove(pid)
        statuses.append(status)
        if status:
            for other in started:
                os.kill(other, signal.SIGTERM)
    return not any(statuses)


for line in sys.stdin:
    print(json.dumps(both(*json.loads(line))), flush=True)
"""
"""Does for pairs of processes, one after the other, what torchrun does for one. They are copies of this one, so that torch is
loaded and tokens are made once."""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def two() -> Iterator[Callable[..., bool]]:
    """Trains in two processes, and says whether both came to their end; one of them may die by a signal, or look for its state
    elsewhere. `how` is how each computes its part. What torchrun itself does is tried with the command line, below."""
    words, variables = [sys.executable, "-c", PAIRS, str(Path(__file__).parent)], {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pairs:
        assert pairs.stdin is not None and pairs.stdout is not None
        asked, answers = pairs.stdin, pairs.stdout

        def train(folder: Path, *, dies_at: int = 0, dies: int = 1, apart: bool = False, **how: Any) -> bool:
            folder.mkdir(exist_ok=True)
            print(json.dumps([str(folder), dies_at, dies, apart, how]), file=asked, flush=True)
            return bool(json.loads(answers.readline()))

        yield train


def ranks_of(folder: Path) -> list[torch.Tensor]:
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in (0, 1)]


def whole_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    found = latest(folder / "state")
    assert found is not None
    return found


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_that_is_killed_costs_nothing(
    two: Callable[..., bool], tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path
) -> None:
    assert two(tmp_path / "whole")
    first, second = ranks_of(tmp_path / "whole")
    assert torch.equal(first, second)
    alone, _ = trained(tokenizer, tokens, tmp_path / "one")
    assert near(first, weights(alone))

    for dies in (0, 1):
        killed = tmp_path / f"killed{dies}"
        assert not two(killed, dies_at=BUDGET.steps // 2, dies=dies)
        place, told = whole_state(killed)
        assert 0 < told["step"] < BUDGET.steps
        shares = sorted(place.glob("*.distcp"))
        sizes = [share.stat().st_size for share in shares]
        assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes), "each process writes a share"
        for name in ("fewer", "apart", "torn"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            shutil.copytree(killed, tmp_path / name)
        assert two(killed)
        assert torch.equal(ranks_of(killed)[0], first), "it goes on to the same weights"

    torn = tmp_path / "torn" / "state.parts" / str(BUDGET.steps)
    torn.mkdir()
    (torn / "__0_0.distcp").write_bytes(b"half")
    assert whole_state(tmp_path / "torn")[1] == told, "a state that was never whole is not read"

    fewer, said = trained(tokenizer, tokens, tmp_path / "fewer")
    assert near(weights(fewer), first), "and on another number of processes, but for rounding"
    assert said["losses"]["full"][: told["step"]] == told["losses"]["full"], "from where those were"

    before = {path: path.read_bytes() for path in (tmp_path / "apart" / "state.parts").rglob("*") if path.is_file()}
    assert not two(tmp_path / "apart", apart=True)
    assert {path: path.read_bytes() for path in before} == before
    words = (tmp_path / "apart" / "said").read_text()
    said = re.findall(r"UserError: process 0 finds step (\d) .*, and process 1 step (\d) .* see the same files", words)
    assert [(int(mine) > 0, int(theirs)) for mine, theirs in said] == [(True, 0)], "once"


@pytest.mark.slow
def test_two_processes_that_compute_in_pieces_and_again_train_what_one_does_at_once(
    two: Callable[..., bool], tokenizer: Tokenizer, tokens: TokenSet, tmp_path: Path
) -> None:
    """As the published recipes run."""
    assert two(tmp_path / "two", parts=2, recompute=True), (tmp_path / "two" / "said").read_text()
    first, second = ranks_of(tmp_path / "two")
    assert torch.equal(first, second)
    alone, _ = trained(tokenizer, tokens, tmp_path / "one")
    assert near(first, weights(alone))


def test_a_state_in_parts_that_cannot_be_written_or_read_is_a_line_and_the_one_before_stays(tmp_path: Path) -> None:
    model, path = fresh(), tmp_path / "state"
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters())
    numbers = Numbers(model, optimizer, RunningMean(model, decay=0.9))
    before = weights(model).clone()
    save_parts(path, numbers, {"step": 1}, ranks=Ranks())
    (tmp_path / "state.parts" / "2").write_text("no folder")
    with pytest.raises(
        UserError, match=r"state.parts/2 cannot be written \(FileExistsError: .*\)\. The state before it is kept"
    ):
        save_parts(path, numbers, {"step": 2}, ranks=Ranks())
    for tensor in (*model.parameters(), *numbers.mean.state()):
        tensor.data.zero_()
    found = latest(path)
    assert found is not None and found[1] == {"step": 1}
    load_parts(found[0], numbers, ranks=Ranks())
    assert torch.equal(weights(model), before) and all(mean.any() for mean in numbers.mean.state()[:1])
    for share in found[0].glob("*.distcp"):
        os.truncate(share, share.stat().st_size // 2)
    with pytest.raises(UserError, match=r"cannot be read as a training state \([^\n]*\)\. Delete it to begin again"):
        load_parts(found[0], numbers, ranks=Ranks())


@pytest.mark.slow
def test_a_recipe_is_trained_by_two_processes(tmp_path: Path) -> None:
    def train(name: str, *launcher: str) -> Path:
        words = ["varbench", "train", "fixed_ratio@p05", "--steps", "3", "--dtype", "float32"]
        out = tmp_path / f"{name}-out"
        done = python("-m", *launcher, *words, "--out", str(out), XDG_CACHE_HOME=str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("fixed_ratio@p05") == 1, "the first process alone says and writes"
        return next(out.rglob("main.safetensors"))

    from safetensors.torch import load_file

    one = load_file(train("one"))
    two = load_file(train("two", *TORCHRUN, "-m"))
    base = load_file(train_start())
    for name, tensor in one.items():
        if tensor.is_floating_point() and name in base:
            moved = (tensor.float() - base[name].float()).norm()
            assert (tensor.float() - two[name].float()).norm() <= 0.1 * moved + 1e-6, name


AT_START = {
    "dies": "os.kill(os.getpid(), 9)",
    "sees another cache": "os.environ['XDG_CACHE_HOME'] += '-of-its-own'",
    "is one too many": "pass",
}
"""What happens to the second process before anything of varbench runs in it."""

CONTINUED = ("varbench", "train", "full_var@continued", "--steps", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with what one process has trained."""
    cache = tmp_path_factory.mktemp("continued")
    assert python("-m", *CONTINUED, "--batch", "4", XDG_CACHE_HOME=str(cache)).returncode == 0
    return cache


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "batch", "said"),
    [
        ("dies", "4", "Signal 9 (SIGKILL) received"),
        ("sees another cache", "4", "process 0 finds trained weights, and process 1 none, in"),
        ("is one too many", "1", "a batch of 1 cannot be split evenly over 2 processes. Change --batch"),
    ],
)
def test_what_is_wrong_with_a_process_at_its_start_is_said_once_and_nothing_is_lost(
    what: str, batch: str, said: str, continued: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    hook = f"import os\nif os.environ.get('RANK') == '1':\n    {AT_START[what]}\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(hook)
    cache = shutil.copytree(continued, tmp_path / "cache")
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    more = ["--seed", "1"] if what == "dies" else []  # which is not in the cache
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [*CONTINUED, "--batch", batch, *more]
    done = python("-m", *TORCHRUN, "-m", *words, XDG_CACHE_HOME=str(cache), PYTHONPATH=path)
    assert done.returncode != 0
    assert said in "\n".join(done.stderr.splitlines()[-4:]), "torchrun's own last lines"
    ours = [line for line in done.stderr.splitlines() if line.startswith("varbench train")]
    assert len(ours) == (what != "dies") and all(said in line for line in ours)
    assert {path: path.read_bytes() for path in before} == before


WHO = """
import os
import sys
def heard(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(".npy"):
        print("rank", os.environ["RANK"], "made", os.path.basename(arguments[1]), file=sys.stderr, flush=True)
if "RANK" in os.environ:
    sys.addaudithook(heard)
"""


@pytest.mark.slow
def test_two_processes_share_the_shards_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WHO)
    words = ("varbench", "tokens", "--images", "40", "--device", "cpu", "--out")
    done = python("-m", *TORCHRUN, "-m", *words, str(tmp_path / "two"), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{tmp_path / 'two'}  40 images of 10 classes in 1 crop"], "one speaks for all"
    made = sorted(line for line in done.stderr.splitlines() if line.startswith("rank "))
    assert made == ["rank 0 made 00000.npy", "rank 1 made 00001.npy"]
    assert main([*words[1:], str(tmp_path / "one")]) == 0
    two, one = (open_tokens(tmp_path / name) for name in ("two", "one"))
    assert (len(two.training), two.fingerprint) == (40, one.fingerprint)


def train_start() -> Path:
    from varbench.plan import presets

    return presets.shipped_files("tiny")["main"]
