"""What the cost model knows of a device: data-sheet rates, and one efficiency per device and type. No torch."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varbench.errors import UserError, did_you_mean

SHARE = {"cpu": 0.6, "cuda": 0.93}
"""Of free memory: a machine that runs out of it takes its other work along; on a card some goes to the driver and to gaps."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Rates are the maker's dense figures, which predict a bound and no time, or what was measured of a device."""

    name: str
    tflops: Mapping[str, float]
    """Dense matrix rate by type, in TFLOP/s."""
    bandwidth_gbs: float
    memory_gb: float
    source: str
    device: str = "cuda"
    """Or "cpu", where the engine stores and fuses otherwise."""
    efficiency: Mapping[str, float] = field(default_factory=dict)
    """Share of the roofline that was reached, by type, where someone measured it; 1 elsewhere. Never per method."""
    operator_us: float = 0.0
    """Microseconds that the smallest operator takes; 0 where nobody measured it."""
    measured: bool = False
    """Whether rates and bandwidth are what products and copies reached on the device itself."""

    def rate(self, dtype: str) -> float:
        """FLOP/s for a type."""
        if dtype not in self.tflops:
            raise UserError(f"{self.name}: no rate for {dtype}; it has {', '.join(self.tflops)}")
        return self.tflops[dtype] * 1e12

    def reached(self, dtype: str) -> float:
        return self.efficiency.get(dtype, 1.0)

    def bounds(self, dtype: str) -> bool:
        """Whether what it predicts is a bound, since nobody measured what the device reaches."""
        return not self.measured and dtype not in self.efficiency


def _gpu(
    name: str,
    *,
    float32: float,
    half: float,
    int8: float,
    float8: float | None = None,
    bandwidth: float,
    memory: float,
    operator_us: float = 0.0,
    source: str,
) -> Hardware:
    rates = {"float32": float32, "bfloat16": half, "float16": half, "int8": int8}
    if float8 is not None:
        rates |= {"float8_e4m3fn": float8, "float8_e5m2": float8}
    return Hardware(
        name=name,
        tflops=rates,
        bandwidth_gbs=bandwidth,
        memory_gb=memory,
        operator_us=operator_us,
        source=source,
    )


_SHEET = "maker's data sheet, dense"
KNOWN = {
    device.name: device
    for device in (
        _gpu("H100-SXM", float32=66.9, half=989, int8=1979, float8=1979, bandwidth=3350, memory=80, source=_SHEET),
        _gpu(
            "H200-SXM",
            float32=66.9,
            half=989,
            int8=1979,
            float8=1979,
            bandwidth=4800,
            memory=141,
            # What the full model of d30 takes for one image beyond its bytes, by its operators: reports/h200.
            operator_us=3.75,
            source=f"{_SHEET}; operators as measured",
        ),
        _gpu("A100-SXM-80GB", float32=19.5, half=312, int8=624, bandwidth=2039, memory=80, source=_SHEET),
        _gpu("L20", float32=59.8, half=119.5, int8=239, float8=239, bandwidth=864, memory=48, source=_SHEET),
        _gpu("L40S", float32=91.6, half=362, int8=733, float8=733, bandwidth=864, memory=48, source=_SHEET),
        _gpu("RTX-4090", float32=82.6, half=165.2, int8=660.6, float8=330.3, bandwidth=1008, memory=24, source=_SHEET),
        Hardware(
            name="cpu-2-cores",
            tflops={"float32": 0.17, "bfloat16": 0.8, "float16": 0.17},
            device="cpu",
            bandwidth_gbs=20,
            memory_gb=24,
            source="matrix products measured on a two-core AVX512 machine; bandwidth assumed",
        ),
    )
}

CALLED = {
    "H100 80GB HBM3": "H100-SXM",
    "H200": "H200-SXM",
    "A100-SXM4-80GB": "A100-SXM-80GB",
    "L20": "L20",
    "L40S": "L40S",
    "GeForce RTX 4090": "RTX-4090",
}
"""What NVML and torch call a card, word for word: one of PCIe, of 40 GB, of a laptop, or a part of one (MIG) has other rates."""
SAME_MEMORY = 0.1
"""What a driver tells of a card's memory is off its data sheet by less: ECC takes 6 % of an L20's."""


def usable(free: int, *, device: str) -> int:
    """What of a device's free memory may be taken."""
    return round(free * SHARE[device.partition(":")[0]])


def hardware(name: str) -> Hardware:
    """A known device by name, in capitals or not."""
    for known, device in KNOWN.items():
        if known.lower() == name.lower():
            return device
    near = next((known for known in KNOWN if known.lower().startswith(name.lower())), name)
    raise UserError(f"no hardware {name!r}.{did_you_mean(near, KNOWN)} Or describe it: --hardware file.toml")


def sheet_of(device: str, *, cores: int, memory: int | None = None) -> Hardware | None:
    """What is known of the processor, or of a card by its driver's name for it; None where that or its memory is another card's."""
    if device == "cpu":
        return KNOWN.get(f"cpu-{cores}-cores")
    known = KNOWN.get(CALLED.get(device.removeprefix("NVIDIA "), ""))
    if known is None or (memory is not None and abs(memory / 2**30 / known.memory_gb - 1) > SAME_MEMORY):
        return None
    return known


_EXAMPLE = {
    "name": 'name = "mine"',
    "bandwidth_gbs": "bandwidth_gbs = 864",
    "memory_gb": "memory_gb = 48",
    "tflops": "[tflops] float32 = 59.8, bfloat16 = 119.5, float16 = 119.5",
    "efficiency": "[efficiency] bfloat16 = 0.6",
    "operator_us": "operator_us = 1.5",
    "source": 'source = "data sheet"',
    "device": 'device = "cpu"',
    "measured": "measured = true",
}
_OPTIONAL = ("efficiency", "operator_us", "source", "device", "measured")


def from_file(path: str | Path) -> Hardware:
    """A device from a TOML file: name, bandwidth_gbs, memory_gb, [tflops] by type, and perhaps [efficiency],
    operator_us, source, device and measured."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as hardware ({error})") from error
    for key in data:
        if key not in _EXAMPLE:
            raise UserError(f"{path}: no key {key!r}.{did_you_mean(key, _EXAMPLE)}")
    for key, example in _EXAMPLE.items():
        if key not in data and key not in _OPTIONAL:
            raise UserError(f"{path}: {key} is missing; give it, as in {example}")
        if key in data and (fault := _fault(key, data[key])):
            raise UserError(f"{path}: {fault}, as in {example}")
    for dtype in data.get("efficiency", {}):
        if dtype not in data["tflops"]:
            raise UserError(f"{path}: efficiency.{dtype} is a share of a rate that [tflops] does not give")
    return Hardware(**{"source": str(path), **data})


def as_toml(device: Hardware) -> str:
    """As `from_file` reads it."""
    whole = {"name", "source", "device", "bandwidth_gbs", "memory_gb", "operator_us", "measured"}
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in vars(device).items()
        if key in whole and value
    ]
    for table in ("tflops", "efficiency"):
        if rates := getattr(device, table):
            lines += ["", f"[{table}]", *(f"{dtype} = {rate}" for dtype, rate in rates.items())]
    return "\n".join(lines) + "\n"


def _fault(key: str, value: Any) -> str | None:
    """What is wrong with the value of a key, and what to give."""
    if key in ("name", "source"):
        return None if isinstance(value, str) and value else f"{key} is {value!r}; give a text"
    if key == "device":
        return None if value in ("cpu", "cuda") else f"{key} is {value!r}; give cpu or cuda"
    if key == "measured":
        return None if isinstance(value, bool) else f"measured is {value!r}; give true or false"
    if key in ("bandwidth_gbs", "memory_gb", "operator_us"):
        return None if _above_zero(value) else f"{key} is {value!r}; give a number above 0"
    if not isinstance(value, dict) or (key == "tflops" and not value):
        return f"{key} is {value!r}; give a table of numbers by type"
    most, wanted = (1.0, "a share above 0 and up to 1") if key == "efficiency" else (math.inf, "a number above 0")
    for dtype, number in value.items():
        if not _above_zero(number) or number > most:
            return f"{key}.{dtype} is {number!r}; give {wanted}"
    return None


def _above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
