"""Devices of a Ray cluster: an actor on each, which owns the whole device as long as the run lasts."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from varbench.errors import UserError
from varbench.record.options import Options
from varbench.run import identity
from varbench.run.spread.dispatch import Broken, Ended, Lost, Place
from varbench.run.spread.kinds import DeviceThere, device_here
from varbench.run.spread.portion import Errand, News, carry_out

PATIENCE = 30.0
"""Seconds that a cluster may take to answer, and its devices to be free once one is."""
FIRST = 120.0
"""Seconds until a first device has to be free, and to have loaded torch."""


class RayCluster:
    """As many places as the cluster has GPUs, or where rows run on processors, machines."""

    def __init__(self, options: Options, *, note: Callable[[str], None]) -> None:
        self._ray, self._note = _ray(), note
        self._gpu = options.device.startswith("cuda")
        self._code = identity.code_hash()
        _connect(self._ray, options.address)
        self._actors: dict[str, Any] = {}
        """By name of the place, also those that have not said what they are."""
        self._asked: dict[Any, str] = {}
        """What they are asked, until they answer."""
        self._unfit: dict[str, str] = {}
        """Why a place is left out, by its name."""
        self._places: dict[str, Place] = {}
        self._working: dict[str, Any] = {}
        self._looked = 0.0
        self._first()
        if not self._gpu and (idle := int(self._ray.cluster_resources().get("GPU", 0))):
            note(f"  rows run on processors; GPUs of the cluster, {idle} of them, are for --device cuda")

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()

    def _first(self) -> None:
        began = time.monotonic()
        self.places()
        while self._asked and time.monotonic() - began < (PATIENCE if self._places else FIRST):
            self._hear(seconds=1.0)
        if self._places:
            return
        what, nodes = "GPU" if self._gpu else "processor", len(self._ray.nodes())
        if self._unfit and not self._asked:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self._unfit.items())
            raise UserError(f"--executor ray: no {what} of the cluster can be used: {reasons}")
        raise UserError(
            f"--executor ray: no {what} of the cluster was free within {FIRST:.0f} s: "
            f"{nodes} nodes, of which {len(self._slots())} have any; see `ray status`"
        )

    def places(self) -> Sequence[Place]:
        if time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            for name, options in self._slots().items():
                if name not in self._actors and name not in self._unfit:
                    self._actors[name] = self._ray.remote(_Worker).options(**options).remote()
                    self._asked[self._actors[name].known.remote(self._gpu)] = name
        self._hear(seconds=0)
        return tuple(self._places.values())

    def _slots(self) -> dict[str, dict[str, Any]]:
        """What an actor asks for, by the name of its place: one GPU, or all processors of a machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        found: dict[str, dict[str, Any]] = {}
        for node in self._ray.nodes():
            has = node["Resources"]
            if not node["Alive"]:
                continue
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = f"{node['NodeManagerHostname']}-{node['NodeID'][:6]}"
            if self._gpu:
                share = max(0, int(has.get("CPU", 0) // max(1, has.get("GPU", 0))))
                for number in range(int(has.get("GPU", 0))):
                    found[f"{name}-gpu{number}"] = {"num_gpus": 1, "num_cpus": share, "scheduling_strategy": there}
            elif has.get("CPU", 0) >= 1:
                found[name] = {"num_cpus": int(has["CPU"]), "scheduling_strategy": there}
        return found

    def _hear(self, *, seconds: float) -> None:
        """What places say of themselves. One that cannot, or has other code, is left out."""
        if not self._asked:
            return
        ready, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=seconds)
        for answer in ready:
            name = self._asked.pop(answer)
            try:
                there, code = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                self._leave_out(name, _last_line(error))
                continue
            if code == self._code:
                self._places[name] = Place(name=name, kind=there.kind, free=there.free)
            else:
                self._leave_out(
                    name,
                    f"its code of varbench has the hash {code[:12]}, here it is {self._code[:12]}; install the same there",
                )

    def _leave_out(self, name: str, reason: str) -> None:
        self._unfit[name] = reason
        self._note(f"  {name} is left out: {reason}")
        self._ray.kill(self._actors.pop(name))

    def begin(self, place: Place, errand: Errand) -> None:
        self._working[place.name] = self._actors[place.name].carry_out.remote(errand)

    def news(self, *, seconds: float) -> Iterable[tuple[Place, News | Ended | Lost | Broken]]:
        while self._working:
            by_stream = {stream: name for name, stream in self._working.items()}
            ready, _ = self._ray.wait(list(by_stream), num_returns=1, timeout=seconds, fetch_local=False)
            if not ready:
                return
            seconds = 0.0
            for stream in ready:
                name = by_stream[stream]
                place, one = self._places[name], self._next(stream)
                if isinstance(one, Ended | Lost | Broken):
                    del self._working[name]
                if isinstance(one, Lost):
                    self._ray.kill(self._actors.pop(name))
                    del self._places[name]
                yield place, one
        time.sleep(seconds)

    def _next(self, stream: Any) -> News | Ended | Lost | Broken:
        errors = self._ray.exceptions
        try:
            one: News = self._ray.get(next(stream))
        except StopIteration:
            return Ended()
        except errors.RayTaskError as error:
            return Broken(reason=" ".join(str(error.cause).split())[:300] or type(error.cause).__name__)
        except errors.RayError as error:
            return Lost(reason=type(error).__name__)
        return one


class _Worker:
    """What runs on a device."""

    def known(self, gpu: bool) -> tuple[DeviceThere, str]:
        """What device it is, and the hash of the code that is installed there."""
        return device_here("cuda" if gpu else "cpu"), identity.code_hash()

    def carry_out(self, errand: Errand) -> Iterator[News]:
        yield from carry_out(errand)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs Ray: pip install 'varbench[ray]'") from error
    return ray


def _last_line(error: Exception) -> str:
    """Ray's errors end with the one that they come from."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _connect(ray: Any, address: str | None) -> None:
    """Ray waits long for who does not answer."""
    if address is not None and address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise UserError(
                f"--address {address}: nobody answers there ({error}); see `ray status` on its head"
            ) from error
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            started_here = {} if address else {"include_dashboard": False}
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **started_here)
        except (Exception, SystemExit) as error:
            failed.append(error)

    if address is None:
        before = signal.getsignal(signal.SIGTERM)
        connect()  # what Ray starts ends with the thread that it was started in
        signal.signal(signal.SIGTERM, before)
    else:
        trying = threading.Thread(target=connect, daemon=True)
        trying.start()
        trying.join(PATIENCE)
        if trying.is_alive():
            raise UserError(
                f"--address {address}: what listens there is no Ray head, or did not answer in {PATIENCE:.0f} s"
            )
    if failed:
        where = f"at {address}" if address else "on this machine"
        raise UserError(f"--executor ray: no cluster {where}: {' '.join(str(failed[0]).split())}") from failed[0]
