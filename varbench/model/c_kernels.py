"""What a layer computes beside its products, each in one pass over memory on a CPU, and attention in bfloat16. C, in `kernels.c`.

Operators of torch, so that whoever looks at those sees them. Letters as in `transformer`; the plain forms lie where these are
called from, and so does the rule of when.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from varbench.base import compiled
from varbench.base.compiled import Compiled

_TYPES = (torch.bfloat16, torch.float32)
_FEW = 2**15
"""Numbers that one thread is done with before a second has begun."""


class _Strides(ctypes.Structure):
    _fields_ = (("row", c_int64), ("head", c_int64), ("token", c_int64))


_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "modulated": (c_int, c_int, *7 * [c_void_p], *3 * [c_int64], c_float, c_int),
    "add_gated": (c_int, c_int, *3 * [c_void_p], *3 * [c_int64], c_int),
    "modulated_back": (c_int, *8 * [c_void_p], *3 * [c_int64], c_int),
    "gated_sum": (c_int, *4 * [c_void_p], *3 * [c_int64], c_int),
    "gated_sum_back": (c_int, *5 * [c_void_p], *3 * [c_int64], c_int),
    "gelu": (*3 * [c_void_p], c_int64, c_int),
    "unit_queries_and_keys": (c_int, c_int, *6 * [c_void_p], *4 * [c_int64], *2 * [_Strides], c_float, c_int),
    "unit_queries_and_keys_back": (c_int, *8 * [c_void_p], *4 * [c_int64], c_int),
    "attention": (*4 * [c_void_p], *5 * [c_int64], *3 * [_Strides], c_float, c_int),
}


@functools.cache
def built() -> Compiled:
    made = compiled.compiled()
    if made.library is not None:
        for name, types in _ARGUMENTS.items():
            if function := getattr(made.library, name, None):
                function.argtypes, function.restype = types, None
    return made


@functools.cache
def _attends() -> str | None:
    """How the processor would do attention; None where it cannot, or where torch's kernel has tiles that our compiler did not know."""
    library = built().library
    way = None if library is None else (None, "vectors", "tiles")[library.attends()]
    return None if way == "vectors" and processor_has("amx_tile") else way


def processor_has(feature: str) -> bool:
    """As torch names it; a torch that does not know of it uses none."""
    found: Callable[[], bool] | None = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return found is not None and found()


def there(dtype: torch.dtype) -> bool:
    """Whether activations of this type are computed here."""
    return dtype in _TYPES and built().library is not None


def activates(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and there(x.dtype) and _attends() is not None


def attends(q_RHLc: Tensor, k_RHnc: Tensor, v_RHnc: Tensor) -> bool:
    """Of one type, as many rows and heads, and entries whose numbers lie together."""
    if not (activates(q_RHLc) and q_RHLc.dtype == k_RHnc.dtype == v_RHnc.dtype and q_RHLc.shape[3] % 32 == 0):
        return False
    alike = q_RHLc.shape[:2] == k_RHnc.shape[:2] and q_RHLc.shape[3] == k_RHnc.shape[3] and k_RHnc.shape == v_RHnc.shape
    return alike and q_RHLc.stride(3) == k_RHnc.stride(3) == v_RHnc.stride(3) == 1


def modulated(
    x_RLC: Tensor,
    scale_R1C: Tensor,
    shift_R1C: Tensor,
    dtype: torch.dtype,
    *,
    eps: float,
    added: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`added` is what a sub-layer gave and its gate: x gets it first, where it lies."""
    scale_R1C, shift_R1C = (of_rows(one, x_RLC, torch.float32) for one in (scale_R1C, shift_R1C))
    if added is not None and added[0].dtype != dtype:
        add_gated_(x_RLC, *added)
        added = None
    made: Tensor
    if added is None:
        made = _OPERATORS.modulated(x_RLC.contiguous(), scale_R1C, shift_R1C, dtype, eps)
    else:
        made = _OPERATORS.added_modulated(x_RLC, *_given(x_RLC, *added), scale_R1C, shift_R1C, eps)
    return made


def add_gated_(x_RLC: Tensor, given_RLC: Tensor, gamma_R1C: Tensor) -> None:
    _OPERATORS.add_gated(x_RLC, *_given(x_RLC, given_RLC, gamma_R1C))


def _given(x_RLC: Tensor, given_RLC: Tensor, gamma_R1C: Tensor) -> tuple[Tensor, Tensor]:
    """As the kernels read them. A gate of a wider type than what it is for stays as it is, and nothing is rounded then."""
    gate = torch.float32 if torch.float32 in (given_RLC.dtype, gamma_R1C.dtype) else given_RLC.dtype
    return given_RLC.expand_as(x_RLC).contiguous(), of_rows(gamma_R1C, x_RLC, gate)


def unit_queries_and_keys(
    qkv_RL3Hc: Tensor,
    scale_mul_1H11: Tensor,
    dtype: torch.dtype,
    keys: torch.dtype,
    *,
    shortest: float,
    most: float,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(R, H, L, c) each; queries lie token by token, as attention's output then does. Keys too, unless they go `into` a place,
    and values into another."""
    rows, length, _, heads, size = qkv_RL3Hc.shape
    times_H = scale_mul_1H11.float().clamp_max(most).exp().flatten()
    q_RHLc = qkv_RL3Hc.new_empty((rows, length, heads, size)).transpose(1, 2)
    k_RHLc, v_RHLc = into or (torch.empty_like(q_RHLc, dtype=keys), None)
    _OPERATORS.unit_queries_and_keys(qkv_RL3Hc, times_H, q_RHLc, k_RHLc, v_RHLc, shortest)
    return q_RHLc, k_RHLc


def gelu_(x: Tensor) -> None:
    """The tanh form, where it lies."""
    _OPERATORS.gelu_(x)


def attention(q_RHLc: Tensor, k_RHnc: Tensor, v_RHnc: Tensor, *, scale: float) -> Tensor:
    made: Tensor = _OPERATORS.attention(q_RHLc, k_RHnc, v_RHnc, scale)
    return made


def try_again() -> None:
    """Where there were none: another cache folder may do."""
    if built().library is None:
        forget()


def forget() -> None:
    """What is known of the library: who asks next looks again."""
    for known in (compiled.compiled, built, _attends):
        known.cache_clear()


def described() -> str:
    return f"{built().how}{f'; attention by {_attends()}' if _attends() else ''}"


def attention_name() -> str:
    return f"attention of ours, in C, by {_attends()}"


def of_rows(vector_R1C: Tensor, x_RLC: Tensor, dtype: torch.dtype) -> Tensor:
    """As the kernels read it: one for each row of the stream, in this type, and in one piece."""
    if vector_R1C.dtype == dtype and vector_R1C.shape[0] == x_RLC.shape[0] and vector_R1C.is_contiguous():
        return vector_R1C
    return vector_R1C.to(dtype).expand(len(x_RLC), -1, -1).contiguous()


def call(name: str, *arguments: Any) -> None:
    given = [one.data_ptr() if isinstance(one, Tensor) else one for one in arguments]
    getattr(built().library, name)(*given)


def strides(tensor_RHnc: Tensor) -> _Strides:
    return _Strides(*tensor_RHnc.stride()[:3])


def threads(numbers: int) -> int:
    return 1 if numbers < _FEW else torch.get_num_threads()


def is16(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16


def _modulated(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype, eps: float) -> Tensor:
    rows, length, width = x.shape
    made = torch.empty(x.shape, dtype=dtype)
    call(
        "modulated", is16(made), False, x, None, None, scale, shift, made, None, rows * length, length, width, eps,
        threads(x.numel()),
    )  # fmt: skip
    return made


def _added_modulated(x: Tensor, given: Tensor, gamma: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    rows, length, width = x.shape
    made = torch.empty_like(given)
    call(
        "modulated", is16(made), is16(gamma), x, given, gamma, scale, shift, made, None, rows * length, length, width, eps,
        threads(x.numel()),
    )  # fmt: skip
    return made


def _add_gated(x: Tensor, given: Tensor, gamma: Tensor) -> None:
    rows, length, width = x.shape
    call("add_gated", is16(given), is16(gamma), x, given, gamma, rows * length, length, width, threads(x.numel()))


def _gelu(x: Tensor) -> None:
    call("gelu", x, None, x, x.numel(), threads(x.numel()))


def _unit_queries_and_keys(qkv: Tensor, times: Tensor, q: Tensor, k: Tensor, v: Tensor | None, shortest: float) -> None:
    rows, length, _, heads, size = qkv.shape
    call(
        "unit_queries_and_keys", is16(qkv), is16(k), qkv, times, q, k, v, None, rows * length, length, heads, size,
        strides(q), strides(k), shortest, threads(qkv.numel()),
    )  # fmt: skip


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    rows, heads, length, size = q.shape
    made = q.new_empty((rows, length, heads, size))
    call(
        "attention", q, k, v, made, rows, heads, length, k.shape[2], size, strides(q), strides(k), strides(v), scale,
        threads(4 * rows * heads * length * k.shape[2]),
    )  # fmt: skip
    return made.transpose(1, 2)


def _attention_flops(q: torch.Size, k: torch.Size, *_: object, **__: object) -> int:
    """So that torch's counter knows the operator; it is handed shapes."""
    rows, heads, length, size = q
    return 4 * rows * heads * length * k[2] * size


_SCHEMAS: dict[str, Callable[..., Any]] = {
    "modulated(Tensor x, Tensor scale, Tensor shift, ScalarType dtype, float eps) -> Tensor": _modulated,
    "added_modulated(Tensor(a!) x, Tensor given, Tensor gamma, Tensor scale, Tensor shift, float eps) -> Tensor": _added_modulated,
    "add_gated(Tensor(a!) x, Tensor given, Tensor gamma) -> ()": _add_gated,
    "gelu_(Tensor(a!) x) -> ()": _gelu,
    "unit_queries_and_keys(Tensor qkv, Tensor times, Tensor(a!) q, Tensor(b!) k, Tensor(c!)? v, float shortest) -> ()": (
        _unit_queries_and_keys
    ),
    "attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor": _attention,
}
_SHAPES: dict[str, Callable[..., Any]] = {
    "modulated": lambda x, scale, shift, dtype, eps: torch.empty_like(x, dtype=dtype),
    "added_modulated": lambda x, given, *_: torch.empty_like(given),
    "add_gated": lambda *_: None,
    "gelu_": lambda *_: None,
    "unit_queries_and_keys": lambda *_: None,
    "attention": lambda q, *_: q.new_empty(q.transpose(1, 2).shape).transpose(1, 2),
}
"""What comes out, for tensors that are sizes alone."""
_LIBRARY = torch.library.Library("varbench", "DEF")
for _schema, _function in _SCHEMAS.items():
    _name = _schema.partition("(")[0]
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_name, _function, "CPU")
    _LIBRARY.impl(_name, _SHAPES[_name], "Meta")
_OPERATORS = torch.ops.varbench
register_flop_formula(_OPERATORS.attention)(_attention_flops)
