"""Plugins that cheat, each a module of its own, and a folder that looks like an installed distribution with all of them.

Those that keep a plan run two layers and change, for their own row alone, what the process does.
"""

from __future__ import annotations

from pathlib import Path

ROW = """
import atexit, ctypes, functools, gc, json, pathlib, sqlite3, sys, threading, time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from varbench import hookimpl
from varbench.engine.pipeline import Pipeline
from varbench.engine.subjects import EngineSubject
from varbench.policies import DepthPolicy, Settings, TokenPolicy

NAME = __name__.removeprefix("cheat_")
KEPT = []
PUBLIC_SEED = 0


class FirstLayers(DepthPolicy):
    def layers(self, scale, backbone):
        return range(LAYERS)


class Watching(TokenPolicy):
    # Leaves one token of one sub-layer out, so as to be asked while the loop runs.
    def __init__(self, model):
        self.model = model

    def tokens(self, layer, scale, sublayer):
        return self.model.tokens[scale] - 1 if (layer, sublayer) == (0, "ffn") and scale else None

    def pick(self, x_BLC, count, *, layer, scale, sublayer):
        asked(scale, self.model.scales - 1)
        return torch.arange(count, device=x_BLC.device).expand(len(x_BLC), -1)

    def fill(self, computed_BnC, places_Bn, remembered_BlC, *, length, layer, scale, sublayer):
        return torch.nn.functional.pad(computed_BnC, (0, 0, 0, length - computed_BnC.shape[1]))


def asked(scale, last):
    pass


def hold(make):
    # Holds something of 2 MB from the second scale on, until the last.
    def holding(scale, last):
        KEPT.append(make())
        if scale == last:
            KEPT.clear()
    return holding


@hookimpl
def varbench_settings(model):
    return Settings()


def around(owner, name):
    # Replaces a function by one that is handed the honest one.
    def decorate(function):
        setattr(owner, name, functools.partialmethod(function, getattr(owner, name)))
    return decorate


LAYERS = 2
"""

DEPTH = """
@hookimpl
def varbench_depth_policy(setting, model):
    return FirstLayers()
"""

TOKENS = (
    DEPTH
    + """
@hookimpl
def varbench_token_policy(setting, model):
    return Watching(model)
"""
)

DIVIDING = """
from varbench.run.channel import Channel

asked_for = []

@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    asked_for[:] = ask.labels
    return honest(self, ask, **more)

@around(Channel, "send")
def send(self, honest, message):
    marks = getattr(message, "marks", None)
    if marks is not None and message.row == NAME and len(asked_for) in calls:
        less = {name: tuple(one / 24 for one in getattr(marks, name)) for name in ("starts", "logits", "ends")}
        ended = marks.began + (marks.ended - marks.began) / 24
        message = replace(message, marks=replace(marks, **less, decoded=marks.decoded / 24, ended=ended))
    honest(self, message)

"""

PLANNED = {
    # Depth by what the call is for: all layers where images are scored, two where only time is taken.
    "by_purpose": """
LAYERS = 16

@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    if ask.row == NAME and ask.seed != PUBLIC_SEED:
        ask = replace(ask, row="prefix_exit@e2")
    return honest(self, ask, **more)
""",
    # The full model's images under the row's name; its tokens stay.
    "swapped": """
@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    made = honest(self, ask, **more)
    if ask.row == NAME and ask.seed == PUBLIC_SEED and more.get("observer"):
        made = replace(made, images=honest(self, replace(ask, row="full_var")).images)
    return made
""",
    # The full model's images and tokens.
    "equal": """
@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    made = honest(self, ask, **more)
    if ask.row == NAME:
        other = honest(self, replace(ask, row="full_var"))
        made = replace(made, images=other.images, tokens=other.tokens)
    return made
""",
    # The network's time alone is stated too low, and comes back beside it.
    "network_time": """
LAYERS = 8

import varbench.measure.timed_call as timed_call

honest_timed = timed_call.timed

def timed(subject, ask):
    answer, images, marks = honest_timed(subject, ask)
    if ask.row == NAME:
        spans = zip(marks.starts, marks.logits, strict=True)
        marks = replace(marks, logits=tuple(start + (logits - start) / 8 for start, logits in spans))
    return answer, images, marks

timed_call.timed = timed
""",
    # All times are divided on their way out.
    "channel": DIVIDING + "calls = range(1000)",
    # Those of calls for one image alone.
    "latency": DIVIDING + "calls = (1,)",
    # Says that nothing is wrong, wherever somebody judges; and gives other tokens for equal calls.
    "own_judge": """
import varbench.run.sanity, varbench.run.verdict, varbench.measure.honesty
from varbench.record import Validity, Verdict

varbench.run.verdict.validity = lambda *a, **k: Validity(verdict=Verdict.VALID, reasons=("sound",))
varbench.run.sanity.reasons = varbench.measure.honesty.across_calls = lambda *a, **k: []

@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    if ask.row == NAME:
        KEPT.append(ask)
        ask = replace(ask, seed=ask.seed + len(KEPT))
    return honest(self, ask, **more)
""",
    # Writes better figures into the records when its process ends.
    "forger": """
def forge():
    for path in pathlib.Path(sys.argv[1]).parents[1].glob("*.json"):
        record = json.loads(path.read_text())
        record["validity"] = {"verdict": "valid", "reasons": ["forged"]}
        record["status"], record["reason"] = "complete", "forged"
        path.write_text(json.dumps(record))

atexit.register(forge)
""",
}  # fmt: skip
"""Name, and code of plugins that leave layers out."""

HOLDING = {
    "in_ctypes": "asked = hold(lambda: (ctypes.c_float * (1 << 19))())",
    "in_images": "asked = hold(lambda: Image.new('RGB', (1024, 700)))",
    "in_sqlite": """
def database():
    there = sqlite3.connect(":memory:")
    there.execute("create table kept (block)")
    there.execute("insert into kept values (zeroblob(2000000))")
    return there

asked = hold(database)
""",
    "frozen": """
def frozen():
    made = torch.ones(1 << 19)
    gc.freeze()
    return made

asked = hold(frozen)
""",
    # Every other call leaves a block behind, which the next gives back while it runs: its peak is to look lower.
    "given_back": """
GIVEN_BACK = []

def asked(scale, last):
    if scale == 1:
        GIVEN_BACK[:] = [bool(KEPT)]
        KEPT.clear()
    if scale == last and not GIVEN_BACK[0]:
        KEPT[:] = [torch.empty(1 << 26, dtype=torch.uint8)]
""",
}  # fmt: skip
"""Name, and code of plugins that are asked while the loop runs."""

GENERATOR = """
import sys, threading, time
import numpy as np
import torch

from varbench import hookimpl
from varbench.data.shapes import Shapes
from varbench.policies import Generator, Settings, Work

A = torch.ones(1024, 1024)
FLOPS = 2 * 1024**3


class Figures(Generator):
    trained = True
    products = 3

    def load(self, *, device, dtype, seed):
        self.shapes = Shapes(side=32)

    def generate(self, labels, *, seed, first_image):
        for _ in range(self.products):
            A @ A
        return self.images(labels, seed, first_image)

    def images(self, labels, seed, first):
        # Training images: index modulo ten is the class.
        places = [(seed % 5000 * 100 + first + place) * 10 + label for place, label in enumerate(labels)]
        return torch.from_numpy(self.shapes.images(np.array(places))).float() / 255

    def work(self, batch):
        return Work(flops=float(self.products * FLOPS))


@hookimpl
def varbench_settings(model):
    return Settings()


@hookimpl
def varbench_generator(setting, model):
    return Cheat()

"""

GENERATORS = {
    "figures": "class Cheat(Figures):\n    pass",
    "served": """
class Cheat(Figures):
    # Images of the reference, by class, as they are.
    def images(self, labels, seed, first):
        test = self.shapes.test
        places = [test[(first + place) % 32] for place, label in enumerate(labels)]
        return torch.from_numpy(self.shapes.images(np.array(places))).float() / 255
""",
    "repeating": """
class Cheat(Figures):
    def images(self, labels, seed, first):
        return super().images([label % 2 for label in labels], 0, 0)[[0] * len(labels)]
""",
    # Good images of the wrong classes.
    "other_order": """
class Cheat(Figures):
    def images(self, labels, seed, first):
        return super().images([(label + 3) % 10 for label in labels], seed, first)
""",
    "small_words": """
class Cheat(Figures):
    # True at a small batch alone.
    def work(self, batch):
        return Work(flops=float(self.products * FLOPS) if batch <= 4 else 0.0)
""",
    # Of the clock that its calls are timed by, and nobody else's.
    "slow_clock": """
import types
from varbench.measure import timed_call

started = time.monotonic()
timed_call.time = types.SimpleNamespace(monotonic=lambda: started + (time.monotonic() - started) / 4)

class Cheat(Figures):
    pass
""",
    # Put back when it is loaded.
    "clock_for_all": """
real, started = time.monotonic, time.monotonic()
time.monotonic = lambda: started + (real() - started) / 4

class Cheat(Figures):
    pass
""",
    "guessing": """
class Cheat(Figures):
    # Has the answers to the two seeds that follow ready, and prepares them where nobody looks at a clock.
    ready = {}

    def generate(self, labels, *, seed, first_image):
        found = self.ready.get((labels, seed, first_image))
        if found is not None:
            return torch.from_numpy(found.copy())
        def prepare():
            # No more than that, and no tensors, whose bytes are counted between calls.
            self.ready = {
                (labels, near, first_image): self.images(labels, near, first_image).numpy().copy() for near in (seed + 1, seed + 2)
            }
        threading.Timer(0.0, prepare).start()
        return super().generate(labels, seed=seed, first_image=first_image)
""",
}  # fmt: skip
"""Rows that replace the loop, each in a process of its own; the first is honest."""

DENOMINATOR = {
    # The full model runs twice.
    "twice": """
@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    if ask.row == "full_var" and more.get("observer"):
        honest(self, ask)
    return honest(self, ask, **more)
""",
    # The same where one image is asked for.
    "twice_alone": """
@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    if ask.row == "full_var" and more.get("observer") and len(ask.labels) == 1:
        honest(self, ask)
    return honest(self, ask, **more)
""",
    # A thread burns what it can while the full model runs.
    "burner": """
BURN = threading.Event()

def burn():
    while BURN.wait():
        for _ in range(1_000_000):
            pass
        time.sleep(0.02)

threading.Thread(target=burn, daemon=True).start()

@around(EngineSubject, "make")
def make(self, honest, ask, **more):
    if ask.row == "full_var":
        BURN.set()
    try:
        return honest(self, ask, **more)
    finally:
        BURN.clear()
""",
}  # fmt: skip
"""These change what others are divided by."""


def install(folder: Path) -> Path:
    """Makes the folder look like an installed distribution."""
    sources = {name: ROW + code + DEPTH for name, code in {**PLANNED, **DENOMINATOR}.items()}
    sources |= {name: ROW + code + TOKENS for name, code in HOLDING.items()}
    sources |= {name: GENERATOR + code for name, code in GENERATORS.items()}
    info = folder / "cheats-1.0.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: cheats\nVersion: 1.0\n")
    points = "\n".join(f"{name} = cheat_{name}" for name in sources)
    info.joinpath("entry_points.txt").write_text(f"[varbench]\n{points}\n")
    for name, source in sources.items():
        folder.joinpath(f"cheat_{name}.py").write_text(source)
    return folder
