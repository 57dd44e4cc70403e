"""The kernels for GPUs where there is none: compiled for one, and against the plain forms in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@pytest.mark.slow
def test_kernels_agree_with_the_plain_forms() -> None:
    """Triton reads once, when it is imported, whether it interprets; so in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("interpreted_kernels.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


FOR_D30 = {
    "_drawn": (["*fp32", "*fp32", "*i64", "i32", "i32", "fp32"], {"K": True, "P": True, "BLOCK": 4096}),
    "_lines": (["*fp32"] * 4 + ["i32"] * 4 + ["fp32"], {"PIECES": 128, "EACH": 8}),
    "_sums": (["*bf16", "*fp32", "i32", "i32", "i32"], {"PLACES": 32, "ROUNDS": 16, "BLOCK": 256}),
    "_along_lines": (["*bf16", "*fp32", "*bf16", "i32", "i32"], {"PLACES": 32, "BLOCK": 256, "SILU": True}),
    "_modulated": (["*fp32"] + ["*bf16"] * 5 + ["i32"] * 4 + ["fp32"], {"ADD": True, "BLOCK": 2048}),
    "_add_gated": (["*fp32", "*bf16", "*bf16", "i32", "i32", "i32"], {"BLOCK": 2048}),
    "_unit_queries_and_keys": (
        ["*bf16", "*fp32", "*bf16", "*bf16", "*bf16"] + ["i32"] * 5 + ["fp32"] * 2, {"SIZE": 64, "BLOCK": 32, "VALUES": True},
    ),
    "_put": (["*bf16", "*bf16"] + ["i32"] * 8, {"SIZE": 64, "BLOCK": 32}),
}  # fmt: skip


def test_every_kernel_is_compiled() -> None:
    from triton.runtime.jit import JITFunction

    from varbench.model import triton_drawing, triton_kernels

    known = {**vars(triton_kernels), **vars(triton_drawing)}
    kernels = {name for name, found in known.items() if isinstance(found, JITFunction)}
    assert kernels - {"_middle", "_narrowed"} == set(FOR_D30)  # these are parts of one


@pytest.mark.parametrize("name", FOR_D30)
def test_a_kernel_compiles_for_a_hopper_card(name: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from varbench.model import triton_drawing, triton_kernels

    kernel: Any = getattr(triton_drawing if name == "_drawn" else triton_kernels, name)
    types, constants = FOR_D30[name]
    given = iter(types)
    signature = {one.name: "constexpr" if one.name in constants else next(given) for one in kernel.params}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", 90, 32)
    )
    assert ".target sm_90" in made.asm["ptx"]
