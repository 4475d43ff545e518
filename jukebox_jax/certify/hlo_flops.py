"""FLOPs of optimised HLO: multiplications and additions of matrix products and convolutions."""

from __future__ import annotations

import math
import re

import numpy as np

from jukebox_jax.certify.hlo_text import Computation, Instruction, Module


class FlopCounter:
    """FLOPs of one execution of an instruction, those inside fusions included."""

    def __init__(self, module: Module):
        self.module = module
        self.fused: dict[str, int] = {}

    def __call__(self, computation: Computation, instruction: Instruction) -> int:
        if instruction.opcode == "dot":
            return _dot_flops(computation, instruction)
        if instruction.opcode == "convolution":
            return _convolution_flops(computation, instruction)
        if instruction.opcode not in ("fusion", "async-start"):
            return 0
        fused = self.module.called(instruction)
        if fused.name not in self.fused:
            self.fused[fused.name] = sum(self(fused, inner) for inner in fused)
        return self.fused[fused.name]


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text or "")]


def _dot_flops(computation: Computation, instruction: Instruction) -> int:
    left = computation[instruction.operands[0]].shapes[0].dims
    contracted = [left[i] for i in _numbers(instruction.attribute("lhs_contracting_dims"))]
    return 2 * math.prod(instruction.shapes[0].dims) * math.prod(contracted)


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    """2 x batch x features out x features in x the taps that fall on an input, per spatial dimension.

    The TPU compiler writes matrix products as convolutions whose batch dimensions are spatial with dilations, where
    most taps fall between inputs.
    """
    out, (left, right) = instruction.shapes[0].dims, (computation[n].shapes[0].dims for n in instruction.operands[:2])
    label_left, label_right, label_out = re.split("_|->", instruction.attribute("dim_labels") or "")
    window = dict(pair.split("=") for pair in (instruction.attribute("window") or "{}").strip("{}").split())
    spatial = sorted(c for c in label_left if c.isdigit())

    def option(key: str, i: int, default: str) -> str:
        return window[key].split("x")[i] if key in window else default

    total = 2 * right[label_right.index("i")] * out[label_out.index("f")] * out[label_out.index("b")]
    for i, name in enumerate(spatial):
        size, taps, places = left[label_left.index(name)], right[label_right.index(name)], out[label_out.index(name)]
        stride, low = int(option("stride", i, "1")), int(option("pad", i, "0_0").split("_")[0])
        dilate_left, dilate_right = int(option("lhs_dilate", i, "1")), int(option("rhs_dilate", i, "1"))
        starts = np.arange(places, dtype=np.int64) * stride - low
        valid = 0
        for tap in range(taps):
            position = starts + tap * dilate_right
            inside = (position >= 0) & (position <= (size - 1) * dilate_left) & (position % dilate_left == 0)
            valid += int(inside.sum())
        total *= valid
    return total
