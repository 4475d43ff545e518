"""Collectives of two slices of eight chips, as jax 0.10.2 and libtpu 0.0.52 wrote them for v5e.

The program: the gradients of six layers [2048 2048] in a scan and of one after it, batch 4096 over data=2 (between the
slices) and fsdp=8.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from jukebox_jax.certify import hlo
from jukebox_jax.certify.certificate import gathers, summarise
from jukebox_jax.certify.hlo_text import HloError
from jukebox_jax.certify.roofline import roofline
from jukebox_jax.certify.topology import CHIPS

TEXT = (Path(__file__).parents[1] / "golden" / "hlo" / "slices_v5e.hlo").read_text()
WEIGHT = 2048 * 2048 * 2


@pytest.fixture(scope="module")
def program() -> hlo.Program:
    return hlo.analyse(TEXT)


def test_flops(program):
    assert program.flops == 3 * 7 * 2 * (4096 // 16) * 2048 * 2048


def test_gradients_are_reduce_scattered_within_a_slice(program):
    found = [c for c in program.collectives if c.kind == "reduce-scatter"]
    assert sum(c.executions for c in found) == 7
    assert {(c.operand_bytes, c.result_bytes, c.group_size) for c in found} == {(WEIGHT, WEIGHT // 8, 8)}
    assert {c.wire_bytes for c in found} == {WEIGHT * 7 / 8}


def test_shards_of_gradients_cross_between_slices(program):
    across = [c for c in program.collectives if c.between_slices]
    assert {c.kind for c in across} == {"all-reduce"} and {c.group_size for c in across} == {2}
    assert sum(c.bytes * c.executions for c in across) == 7 * WEIGHT // 8
    assert {c.kind for c in program.collectives if not c.between_slices} == {"all-gather", "reduce-scatter"}


def test_weights_are_gathered_once_each_way(program):
    """Of the backward pass, one of the six gathers stands before its loop."""
    found = gathers(program.collectives, 1)
    assert (found["forward"], found["backward"], found["overlapped"]) == (6 * WEIGHT, 5 * WEIGHT, 5 * WEIGHT)
    rows = {(t.kind, t.network, t.in_loop): t for t in summarise(program.collectives, 1)}
    assert rows["all-gather", "ici", True].bytes == 11 * WEIGHT
    assert rows["all-gather", "ici", True].overlapped_bytes == 5 * WEIGHT
    assert rows["all-gather", "ici", False].count == 2
    assert rows["all-reduce", "dcn", True].wire_bytes == 5 * WEIGHT / 8


def test_a_second_gather_is_noticed(program):
    """The same weights fetched twice show twice the bytes."""
    (forward,) = [c for c in program.collectives if c.loops and c.kind == "all-gather" and "transpose" not in c.op_name]
    assert gathers([*program.collectives, forward], 1)["forward"] == 2 * gathers(program.collectives, 1)["forward"]


def test_what_a_sparse_core_reduces_counts():
    """tpu7x: two products [256 2048 2048] in a scan of six over tensor=8, summed by an ``async-update``'s operands."""
    found = hlo.analyse((Path(__file__).parents[1] / "golden" / "hlo" / "sparsecore_tpu7x.hlo").read_text())
    assert found.flops == 6 * 2 * 2 * 256 * 2048 * 2048 // 8
    (reduced,) = found.collectives
    assert (reduced.kind, reduced.executions, reduced.group_size, reduced.overlapped) == ("all-reduce", 6, 8, False)
    assert reduced.operand_bytes == reduced.result_bytes == 256 * 2048 * 2


PART = """
%{mark}_{n} (part.{mark}{n}: bf16[8,64], rows.{mark}{n}: bf16[64,64]) -> (bf16[64,64], bf16[64,64]) {{
  %part.{mark}{n} = bf16[8,64]{{1,0}} parameter(0)
  %rows.{mark}{n} = bf16[64,64]{{1,0}} parameter(1)
  %all-gather.{mark}{n} = bf16[64,64]{{1,0}} all-gather(%part.{mark}{n}), channel_id=1, replica_groups=[1,8]<=[8], dimensions={{0}}
  %note.{mark}{n} = bf16[64,64]{{1,0}} custom-call(%all-gather.{mark}{n}), custom_call_target="AsyncCollective{mark}"
  %product.{mark}{n} = bf16[64,64]{{1,0}} {product}
  ROOT %both.{mark}{n} = (bf16[64,64]{{1,0}}, bf16[64,64]{{1,0}}) tuple(%note.{mark}{n}, %product.{mark}{n})
}}
"""  # noqa: E501


def test_a_gather_that_has_ended_takes_no_part_of_the_next():
    """The second product reads the first one's result, and the second gather goes on beside it."""
    dot = "dot(%rows.Step{n}, %rows.Step{n}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
    text, lines, rows = "HloModule m, is_scheduled=true\n", [], "%given"
    for n in (1, 2):
        for mark in ("Start", "Step", "Done"):
            kept = dot.format(n=n) if mark == "Step" else f"copy(%rows.{mark}{n})"
            text += PART.format(mark=mark, n=n, product=kept)
            kind = "(bf16[64,64]{1,0}, bf16[64,64]{1,0})"
            lines.append(f"%f.{mark}{n} = {kind} fusion(%part, {rows}), kind=kCustom, calls=%{mark}_{n}")
            lines.append(f"%g.{mark}{n} = bf16[64,64]{{1,0}} get-tuple-element(%f.{mark}{n}), index=1")
            rows = f"%g.{mark}{n}" if mark != "Done" else f"%g.Step{n}"
    text += "\nENTRY %main (part: bf16[8,64], given: bf16[64,64]) -> bf16[64,64] {\n"
    text += "  %part = bf16[8,64]{1,0} parameter(0)\n  %given = bf16[64,64]{1,0} parameter(1)\n"
    text += "".join(f"  {line}\n" for line in lines) + "  ROOT %end = bf16[64,64]{1,0} copy(%g.Done2)\n}\n"
    assert [c.overlapped for c in hlo.analyse(text).collectives] == [True, True]


def test_an_unknown_transfer_is_no_guess():
    with pytest.raises(HloError, match="not understood"):
        hlo.analyse(TEXT.replace('_xla_megascale_target="{1,2}x{0:7}"', '_xla_megascale_target="?"'))


def test_roofline_adds_what_nothing_hides(program):
    chip = CHIPS["v5e"]
    bound = roofline(chip, program.flops, program.hbm_bytes, program.collectives)
    assert bound.mxu == program.flops / 197e12 and bound.hbm == program.hbm_bytes / 819e9
    hidden = sum(c.wire_bytes * c.executions for c in program.collectives if c.overlapped and not c.between_slices)
    sent = sum(c.wire_bytes * c.executions for c in program.collectives if not c.between_slices)
    assert bound.ici == pytest.approx(sent / 200e9)
    assert bound.dcn == pytest.approx(7 * WEIGHT / 8 / (25e9 / 8))
    assert bound.exposed == pytest.approx((sent - hidden) / 200e9 + 2 * WEIGHT / 8 / (25e9 / 8))
    beside = max(bound.mxu, bound.hbm, bound.ici + bound.dcn - bound.exposed)
    assert bound.seconds == pytest.approx(beside + bound.exposed)
    assert bound.bound == "DCN"
    half = roofline(CHIPS["tpu7x"], 2307e12 / 2, 0)
    assert half.seconds == 1.0 and half.bound == "MXU"
