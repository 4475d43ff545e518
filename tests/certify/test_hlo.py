"""Counting compiled programs: texts of the TPU compiler whose answers are known by arithmetic, then rule by rule.

``tests/golden/hlo`` holds what jax 0.10.2 and libtpu 0.0.52 made for v5e (backend configurations cut away).
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jukebox_jax.certify import hlo
from jukebox_jax.certify.hlo_bytes import Bytes
from jukebox_jax.certify.hlo_text import HloError, parse, shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "hlo"
MIB = 2**20


def golden(name: str) -> hlo.Program:
    return hlo.analyse((GOLDEN / f"{name}_v5e.hlo").read_text())


def big(program: hlo.Program) -> int:
    """HBM bytes without the scalars of loop counters."""
    return sum(o.hbm.total * o.executions for o in program.operations if o.hbm.total > 1024)


def test_layers_scan_kernel_and_cache():
    """Five layers: three products [8192 256] x [256 256], a kernel, a cache row; the stream stays in VMEM."""
    program = golden("layers")
    assert [(l.trips, l.executions, l.loops) for l in program.loops] == [(5, 1, 0), (3, 5, 1)]
    (kernel,) = program.kernels
    assert kernel.flops == 4 * 8192 * 64 * 256 and kernel.executions == 5
    assert program.flops == 5 * (3 * 2 * 8192 * 256 * 256 + kernel.flops)
    stream, weights, cache_row = 8192 * 256 * 2, 256 * 256 * 2, 8 * 256 * 2
    assert big(program) == 2 * stream + 5 * (weights + cache_row)
    assert kernel.declared == 4 * stream == kernel.logical.total
    assert kernel.hbm == Bytes(0, 0) and 0 < kernel.vmem < MIB
    assert program.donated == 5 * 4096 * 256 * 2


def test_gathered_weights():
    """Six layers [4096 2048] x [2048 8192] and back on eight chips: one gather overlapped, one not."""
    program = golden("gathers")
    assert program.flops == 6 * 2 * 2 * 4096 * 2048 * 8192
    hidden, shard, stream = 4096 * 8192 * 2, 2048 * 8192 * 2 // 8, 4096 * 2048 * 2
    assert big(program) == 6 * (2 * hidden + 2 * shard) + stream
    gathers = [c for c in program.collectives if c.kind == "all-gather"]
    assert [(c.executions, c.operand_bytes, c.result_bytes, c.group_size) for c in gathers] == [
        (6, shard, 8 * shard, 8)
    ] * 2
    assert sorted(c.overlapped for c in gathers) == [False, True]
    assert program.collective_bytes("all-gather", in_loop=True, overlapped=True) == 6 * 8 * shard
    assert program.collective_bytes("all-gather", in_loop=False) == 0
    assert gathers[0].wire_bytes == 7 * shard
    (loss,) = (c for c in program.collectives if c.kind == "all-reduce")
    assert (loss.loops, loss.bytes, loss.wire_bytes) == (0, 4, 7)


def test_gathered_and_scattered_weights():
    """Six layers [4096 2400] x [2400 4800] and back, and their gradients, under shard_map: channels are shared."""
    program = golden("scatters")
    product, weight = 2 * 4096 * 2400 * 4800, 2400 * 4800 * 2
    assert program.flops == 6 * 8 * product  # forward, once more for the backward pass, and four there
    gathers = [c for c in program.collectives if c.kind == "all-gather"]
    assert [(c.executions, c.loops, c.operand_bytes, c.result_bytes) for c in gathers] == [
        (6, 1, weight // 8, weight)
    ] * 4
    assert sorted(c.overlapped for c in gathers) == [False, False, True, True]
    scatters = [c for c in program.collectives if c.kind == "reduce-scatter"]
    # Rows are padded to whole tiles on each device: 8 x 320 for 2400, 8 x 640 for 4800.
    assert sorted((c.executions, c.operand_bytes, c.result_bytes) for c in scatters) == [
        (6, 2560 * 4800 * 2, 320 * 4800 * 2), (6, 5120 * 2400 * 2, 640 * 2400 * 2)
    ]  # fmt: skip
    assert scatters[0].wire_bytes == 7 / 8 * scatters[0].bytes
    assert program.collective_bytes("all-reduce", in_loop=True) == 0


def test_windowed_product():
    """A gather turned into a loop of permutes whose counter moves by two: the FLOPs prove the trip count."""
    program = golden("windowed")
    assert [(l.trips, l.executions) for l in program.loops] == [(6, 1), (2, 6)]
    assert program.flops == 6 * 2 * 4096 * 2048 * 2048
    assert {c.kind for c in program.collectives} == {"collective-permute"}
    # Seven of eight shards arrive. The eighth, to close the circle, is part of the last step.
    assert sum(c.executions * c.bytes for c in program.collectives) == 6 * 9 * 2048 * 256 * 2


@pytest.mark.parametrize(
    ("text", "logical", "physical", "space"),
    [
        ("bf16[2,64,1200]{2,1,0:T(8,128)(2,1)}", 307200, 2 * 64 * 1280 * 2, 0),
        ("bf16[2,102,64]{1,2,0:T(8,128)(2,1)S(1)}", 26112, 2 * 64 * 128 * 2, 1),
        ("f32[]{:T(128)}", 4, 4, 0),
        ("s32[3]{0:T(128)S(6)}", 12, 512, 6),
        ("pred[5,7]{1,0}", 35, 35, 0),
        ("s4[8,128]{1,0:T(8,128)E(4)}", 512, 512, 0),
    ],
)
def test_shapes(text, logical, physical, space):
    (shape,) = shapes(text)
    assert (shape.logical, shape.physical, shape.space) == (logical, physical, space)


def test_tuples_are_flattened():
    assert [s.dims for s in shapes("(f32[2]{0}, (bf16[3,4]{1,0}, u32[]), /*index=5*/s8[5]{0})")] == [
        (2,),
        (3, 4),
        (),
        (5,),
    ]


def loop(start="0", limit="10", step="1", direction="LT", swap=False, body="%c2 = s32[] constant({step})") -> str:
    compare = "%l, %i" if swap else "%i, %l"
    return f"""HloModule m

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %p = (s32[], f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p), index=0
  %x = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%p), index=1
  {body.format(step=step)}
  %copy = s32[]{{:S(6)}} copy(%i.1)
  %next = s32[] add(%copy, %c2)
  %y = f32[8,128]{{1,0:T(8,128)}} tanh(%x)
  ROOT %t = (s32[], f32[8,128]{{1,0:T(8,128)}}) tuple(%next, %y)
}}

%condition (p.1: (s32[], f32[8,128])) -> pred[] {{
  %p.1 = (s32[], f32[8,128]{{1,0:T(8,128)}}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  %l = s32[] constant({limit})
  ROOT %less = pred[] compare({compare}), direction={direction}
}}

ENTRY %main (a: f32[8,128], n: s32[]) -> f32[8,128] {{
  %a = f32[8,128]{{1,0:T(8,128)}} parameter(0)
  %n = s32[] parameter(1)
  %s = s32[] constant({start})
  %init = (s32[], f32[8,128]{{1,0:T(8,128)}}) tuple({"%n" if start == "n" else "%s"}, %a)
  %while = (s32[], f32[8,128]{{1,0:T(8,128)}}) while(%init), condition=%condition, body=%body
  ROOT %r = f32[8,128]{{1,0:T(8,128)}} get-tuple-element(%while), index=1
}}
""".replace("constant(n)", "constant(0)")


@pytest.mark.parametrize(
    ("options", "trips"),
    [
        ({}, 10),
        ({"start": "3"}, 7),
        ({"step": "4"}, 3),
        ({"direction": "LE", "step": "5"}, 3),
        ({"direction": "NE", "step": "2"}, 5),
        ({"direction": "GT", "swap": True}, 10),
        ({"direction": "GT", "start": "10", "limit": "0", "step": "-1"}, 10),
        ({"direction": "GE", "start": "9", "limit": "0", "step": "-3"}, 4),
        ({"start": "12"}, 0),
    ],
)
def test_trip_counts(options, trips):
    program = hlo.analyse(loop(**options))
    assert [l.trips for l in program.loops] == [trips]
    assert sum(o.executions * o.hbm.total for o in program.operations if o.opcode == "tanh") == trips * 2 * 4096


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"start": "n"}, "constant start"),
        ({"direction": "GT"}, "away"),
        ({"body": "%c2 = s32[] multiply(%i.1, %i.1)"}, "counter"),
        ({"direction": "EQ"}, "comparison"),
    ],
)
def test_unknown_trip_counts_are_refused(options, part):
    with pytest.raises(HloError, match=part):
        hlo.analyse(loop(**options))


def test_counts_a_loop_of_this_backend():
    """The CPU compiler writes known_trip_count; nested scans multiply."""

    def f(w, x):
        step = lambda x, _: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.scan(lambda x, _: jax.lax.scan(step, x, length=3), x, length=4)[0]

    text = jax.jit(f).lower(jnp.zeros((256, 256)), jnp.zeros((128, 256))).compile().as_text()
    assert text is not None and hlo.analyse(text).flops == 12 * 2 * 128 * 256 * 256


def test_data_dependent_loops_of_this_backend_are_refused():
    text = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 9.0, lambda x: x * 1.5, x)).lower(1.0).compile().as_text()
    with pytest.raises(HloError, match="while"):
        hlo.analyse(text or "")


def entry(body: str, computations: str = "") -> hlo.Program:
    return hlo.analyse(f"HloModule m\n\n{computations}\nENTRY %main () -> f32[] {{\n{body}\n}}\n")


_TILE = "{1,0:T(8,128)}"


def test_copies_between_memories_count_on_the_side_of_hbm():
    program = entry(f"""
  %a = f32[8,128]{_TILE} parameter(0)
  %start = (f32[8,128]{{1,0:T(8,128)S(1)}}, f32[8,128]{_TILE}, u32[]{{:S(2)}}) copy-start(%a)
  %done = f32[8,128]{{1,0:T(8,128)S(1)}} copy-done(%start)
  ROOT %b = f32[8,128]{_TILE} negate(%done)""")
    assert {o.name: o.hbm for o in program.operations} == {"start": Bytes(4096, 0), "b": Bytes(0, 4096)}
    assert (program.hbm_read, program.hbm_written) == (4096, 4096)


def test_fusions_read_slices_and_write_updates():
    """A row of a stack read through a nested bitcast, a row of a cache updated in place."""
    computations = """
%inner (p: f32[9,8,128]) -> f32[9,8,128] {
  %p = f32[9,8,128]{2,1,0:T(8,128)} parameter(0)
  ROOT %bits = f32[9,8,128]{2,1,0:T(8,128)} bitcast(%p)
}

%fused (q: f32[9,8,128], cache: f32[9,8,128], i: s32[]) -> f32[9,8,128] {
  %q = f32[9,8,128]{2,1,0:T(8,128)} parameter(0)
  %cache = f32[9,8,128]{2,1,0:T(8,128)} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %same = f32[9,8,128]{2,1,0:T(8,128)} fusion(%q), kind=kLoop, calls=%inner
  %row = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%same, %i, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %update = f32[9,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%cache, %row, %i, %zero, %zero)
}
"""
    program = entry(
        """
  %a = f32[9,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = f32[9,8,128]{2,1,0:T(8,128)} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  ROOT %r = f32[9,8,128]{2,1,0:T(8,128)} fusion(%a, %b, %i), kind=kLoop, calls=%fused""",
        computations,
    )
    assert program.operations[0].hbm == Bytes(4096, 4096)
    assert program.operations[0].logical == Bytes(4096 + 4, 4096)


@pytest.mark.parametrize(("aliased", "order", "rows"), [(True, "2,1,0", 1), (False, "2,1,0", 9), (True, "2,0,1", 9)])
def test_a_stack_shown_in_other_tiles_is_read_by_the_slice(aliased, order, rows):
    """As 8-bit weights come to a product: in tiles of 8 rows where they lie in 32. A copy of its own is read whole."""
    aliasing = "output_to_operand_aliasing={{}: (0, {})}, " * aliased
    computations = f"""
%inner (p: s8[9,32,128]) -> s8[9,32,128] {{
  %p = s8[9,32,128]{{2,1,0:T(32,128)(4,1)}} parameter(0)
  ROOT %copy = s8[9,32,128]{{{order}:T(8,128)(4,1)}} copy(%p)
}}

%fused (q: s8[9,32,128], i: s32[]) -> s8[1,32,128] {{
  %q = s8[9,32,128]{{2,1,0:T(32,128)(4,1)}} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %tiles = s8[9,32,128]{{{order}:T(8,128)(4,1)}} fusion(%q), kind=kLoop, {aliasing}calls=%inner
  ROOT %row = s8[1,32,128]{{2,1,0:T(8,128)(4,1)}} dynamic-slice(%tiles, %i, %zero, %zero)
}}
"""
    program = entry(
        """
  %a = s8[9,32,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  ROOT %r = s8[1,32,128]{2,1,0:T(8,128)(4,1)S(1)} fusion(%a, %i), kind=kLoop, calls=%fused""",
        computations,
    )
    assert program.operations[0].hbm == Bytes(rows * 32 * 128, 0)


def test_convolutions_count_the_taps_that_fall_on_inputs():
    """A batched product [7: 8 x 32 x 16] as the TPU compiler writes it: the batch is a spatial dimension, dilated."""
    program = entry("""
  %a = bf16[7,8,32]{2,1,0} parameter(0)
  %b = bf16[7,32,16]{2,1,0} parameter(1)
  ROOT %c = bf16[7,8,16]{2,1,0} convolution(%a, %b), window={size=7 stride=6 lhs_dilate=7}, dim_labels=0bf_0io->0bf
  %d = bf16[7,8,32]{2,1,0} convolution(%a, %e), window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf
  %e = bf16[3,32,32]{2,1,0} parameter(2)""")
    flops = {o.name: o.flops for o in program.operations}
    assert flops["c"] == 7 * 2 * 8 * 32 * 16
    assert flops["d"] == (3 * 7 - 2) * 2 * 8 * 32 * 32


def test_the_branch_that_moves_most_counts():
    branch = "%b{n} (p{n}: f32[8,128]) -> f32[8,128] {{\n  %p{n} = f32[8,128]{t} parameter(0)\n{body}\n}}\n"
    one = branch.format(n=0, t=_TILE, body=f"  ROOT %x = f32[8,128]{_TILE} negate(%p0)")
    two = branch.format(
        n=1, t=_TILE, body=f"  %y = f32[8,128]{_TILE} negate(%p1)\n  ROOT %z = f32[8,128]{_TILE} negate(%y)"
    )
    program = entry(
        f"""
  %i = s32[] parameter(0)
  %a = f32[8,128]{_TILE} parameter(1)
  ROOT %r = f32[8,128]{_TILE} conditional(%i, %a, %a), branch_computations={{%b0, %b1}}""",
        one + two,
    )
    assert program.hbm_bytes == 2 * 2 * 4096


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
    ],
)
def test_replica_groups(groups, size):
    program = entry(f"""
  %a = f32[8,128]{_TILE} parameter(0)
  ROOT %r = f32[8,128]{_TILE} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add""")
    (reduce,) = program.collectives
    assert (reduce.group_size, reduce.wire_bytes) == (size, 2 * 4096 * (size - 1) / size)


def test_replica_groups_are_not_guessed():
    with pytest.raises(HloError, match="replica groups"):
        test_replica_groups("mesh['a'=8] {'a':(1)2}", 2)


def test_kernels_read_blocks_twice_where_they_say_so():
    call = """
  %a = f32[8,100]{1,0:T(8,128)} parameter(0)
  %b = f32[8,100]{1,0:T(8,128)S(1)} copy(%a)
  ROOT %k = f32[8,100]{1,0:T(8,128)} custom-call(%a, %b), custom_call_target="tpu_custom_call", backend_config="""
    config = (
        '{"scoped_memory_configs":[{"memory_space":"1","offset":"64","size":"9"}],"custom_call_config":{"cost_estimate":'
        '{"flops":"77","bytes_accessed":"12800"}},"used_scoped_memory_configs":[{"offset":"0","size":"100"}]}'
    )
    (kernel,) = entry(call + config).kernels
    assert (kernel.flops, kernel.declared, kernel.vmem) == (77, 12800, 36)
    assert kernel.logical == Bytes(2 * 3200 + 3200, 3200)  # 3200 more than each array once
    assert kernel.hbm == Bytes(4096 + 2048, 4096)  # half of the operands lies in HBM, padded to 128 lanes
    with pytest.raises(HloError, match="CostEstimate"):
        entry(call + '{"custom_call_config":{}}')


def test_what_is_no_program_is_refused():
    with pytest.raises(HloError, match="ENTRY"):
        parse("nothing")
    with pytest.raises(HloError, match="element type"):
        entry("  ROOT %a = q7[4]{0} iota(), iota_dimension=0")
