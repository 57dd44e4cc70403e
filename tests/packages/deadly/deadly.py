"""Ends its process where the variable `DEADLY` says, without an exception; a method like others where it says nothing."""

import os
import signal

from varbench.policies import CacheStrategy


def dies(where):
    if os.environ.get("DEADLY") == where:
        print(f"deadly: {where}", flush=True)
        os._exit(3) if where == "import" else os.kill(os.getpid(), signal.SIGSEGV)


dies("import")


class LastTwo(CacheStrategy):
    def keeps(self, layer, written, reader, group):
        dies("policy")
        return reader - written < 3


def varbench_cache_strategy(setting, model):
    return LastTwo()


def varbench_calibrate(setting, pipe):
    dies("calibrate")
    return {}
