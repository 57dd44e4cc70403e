"""Ends its process where the variable `DEADLY` says, without an exception; a method like others where it says nothing."""

import os
import signal
import traceback

from varbench.policies import CacheStrategy, Parameter, Settings, Study


def dies(where):
    if os.environ.get("DEADLY") == where:
        print(f"deadly: {where}", flush=True)
        os._exit(3) if where == "import" else os.kill(os.getpid(), signal.SIGSEGV)


dies("import")


class Last(CacheStrategy):
    def __init__(self, count):
        self.count = count

    def keeps(self, layer, written, reader, group):
        dies("policy")
        if any(frame.filename.endswith("making.py") for frame in traceback.extract_stack()):
            dies("load")
        return reader - written <= self.count


def varbench_settings(model):
    settings = (":count=4", ":count=9", ":count=4+variant@untrained/d8")
    return Settings(
        parameters={"count": Parameter(default=2, help="scales that are kept")},
        studies={"how_many": Study(title="How many", settings=settings, caption="Scales that are kept.")},
    )


def varbench_cache_strategy(setting, model):
    dies(f"count {setting.parameters['count']}")
    return Last(setting.parameters["count"])


def varbench_calibrate(setting, pipe):
    dies("calibrate")
    return {}
