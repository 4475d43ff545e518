"""Convolutions against their definition, and stacks in chunks against stacks at once."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jukebox_jax.models import vqvae
from jukebox_jax.ops import conv_packed, conv_products, conv_stack, convolution
from jukebox_jax.ops.conv_stack import Layer, Stack

RNG = np.random.default_rng(0)


def array(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def residual(width: int, hidden: int, dilation: int, scale: float = 0.7) -> tuple[Layer, tuple[jax.Array, ...]]:
    arrays = array(3, width, hidden), array(hidden), array(1, hidden, width), array(width)
    return Layer("residual", dilation=dilation, scale=scale), arrays


def encoder(stride: int, stages: int, dilations: list[int]) -> Stack:
    layers, inputs = [], 1
    for _ in range(stages):
        layers.append((Layer("conv", 2 * stride, stride), (array(2 * stride, inputs, 4), array(4))))
        layers += [residual(4, 5, d) for d in dilations]
        inputs = 4
    return [*layers, (Layer("conv", 3), (array(3, 4, 3), array(3)))]


def decoder(stride: int, stages: int, dilations: list[int]) -> Stack:
    layers = [(Layer("conv", 3), (array(3, 3, 4), array(4)))]
    for _ in range(stages):
        layers += [residual(4, 5, d) for d in reversed(dilations)]
        layers.append((Layer("up", 2 * stride, stride), (array(2 * stride, 4, 4), array(4))))
    return [*layers, (Layer("conv", 3), (array(3, 4, 1), array(1)))]


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "padding"), [(3, 1, 1, 1), (4, 2, 1, 1), (3, 1, 9, 9), (3, 1, 30, 30)]
)
def test_conv_is_the_definition(size: int, stride: int, dilation: int, padding: int) -> None:
    x, kernel = array(2, 23, 3), array(size, 3, 5)
    padded = np.pad(np.asarray(x), ((0, 0), (padding, padding), (0, 0)))
    length = (23 + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    expected = sum(
        padded[:, i * dilation : i * dilation + (length - 1) * stride + 1 : stride] @ np.asarray(kernel[i])
        for i in range(size)
    )
    mine = convolution.conv(x, kernel, stride=stride, dilation=dilation, padding=padding)
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_transposed_conv_is_the_definition(stride: int) -> None:
    x, kernel = array(2, 7, 3), array(2 * stride, 3, 5)
    full = np.zeros((2, 8 * stride, 5))
    for i in range(7):
        full[:, i * stride : (i + 2) * stride] += np.einsum("bd,kdo->bko", x[:, i], kernel)
    mine = convolution.conv_transpose(x, kernel, stride=stride, padding=stride // 2)
    np.testing.assert_allclose(mine, full[:, stride // 2 : -(stride // 2)], rtol=1e-4, atol=1e-5)
    inner = convolution.windowed_conv_transpose(jnp.pad(x, ((0, 0), (1, 1), (0, 0))), kernel)
    np.testing.assert_allclose(inner, mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "stride", "stages", "dilations", "length"),
    [
        (encoder, 2, 2, [1, 3, 9], 501),  # lengths that no stride divides
        (encoder, 4, 1, [1, 2], 203),
        (decoder, 2, 2, [1, 3, 9], 117),
        (decoder, 6, 1, [1, 2, 1], 31),
    ],
)
def test_chunks_are_the_whole(make, stride: int, stages: int, dilations: list[int], length: int) -> None:
    stack = make(stride, stages, dilations)
    x = array(2, length, stack[0][1][0].shape[1])
    whole = jax.jit(conv_stack.whole)(stack, x)
    assert whole.shape[1] == conv_stack.out_length(stack, length)
    for limit in (1, 90):
        rows = conv_stack.chunk_rows(stack, limit)
        pieces = jax.jit(conv_stack.chunked, static_argnums=2)(stack, x, rows)
        np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-5)


advance, meet = jax.jit(conv_stack.advance), jax.jit(conv_stack.meet, static_argnums=3)


@pytest.mark.parametrize("length", [1, 501])
@pytest.mark.parametrize("make", [encoder, decoder])
def test_runs_from_both_ends_meet(make, length: int) -> None:
    stack = make(4, 2, [1, 9])
    x = array(2, length, stack[0][1][0].shape[1])
    rows = conv_stack.chunk_rows(stack, 40)
    chunks, last = -(-length // rows), conv_stack.timetable(stack, rows)[-1]
    before = chunks * rows - length
    ends = [(stack, x, 0, chunks // 2), (conv_stack.backward(stack), x[:, ::-1], before, chunks - chunks // 2)]
    kept, found = [], []
    for layers, signal, ahead, count in ends:
        signal = jnp.pad(signal, ((0, 0), (ahead, rows), (0, 0)), constant_values=jnp.nan)
        carry, pieces = conv_stack.init_carry(stack, rows, 2), [jnp.zeros((2, 0, stack[-1][1][0].shape[-1]))]
        for index in range(count):
            piece = signal[:, index * rows : (index + 1) * rows]
            carry, y = advance(layers, carry, piece, index, length, conv_stack.START, ahead)
            pieces.append(y)
        kept.append(carry)
        found.append(jnp.concatenate(pieces, axis=1))
    between = meet(stack, *kept, rows, chunks // 2, length)
    assert between.shape[1] == 2 * last.lag
    y = jnp.concatenate([found[0], between, found[1][:, ::-1]], axis=1)[:, last.lag :]
    whole = conv_stack.whole(stack, x)
    np.testing.assert_allclose(y[:, : whole.shape[1]], whole, rtol=1e-4, atol=1e-5)
    assert not y[:, whole.shape[1] :].any()


def test_accelerators_compute_windows_as_convolutions() -> None:
    stack, length, rows = encoder(2, 2, [1, 3]), 101, 32
    x = array(1, length, 1)
    in_convolutions = jax.jit(conv_stack._advance, static_argnames="products")
    carry, pieces = conv_stack.init_carry(stack, rows, 1), []
    padded = jnp.pad(x, ((0, 0), (0, 400), (0, 0)), constant_values=jnp.nan)
    for index in range(conv_stack.num_chunks(stack, rows, length)):
        piece = padded[:, index * rows : (index + 1) * rows]
        carry, y = in_convolutions(stack, carry, piece, index, length, products=False)  # NaN: beyond it nothing counts
        pieces.append(y)
    lag = conv_stack.timetable(stack, rows)[-1].lag
    expected = conv_stack.whole(stack, x)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1)[:, lag:][:, : expected.shape[1]], expected, atol=1e-5)


def test_a_long_signal_runs_in_chunks_on_a_cpu(monkeypatch) -> None:
    stack = encoder(2, 1, [1, 3])
    x = array(1, 400, 1)
    monkeypatch.setattr(conv_stack, "CACHE", 4 * 50)
    lowered = jax.jit(lambda x: conv_stack.forward(stack, 2 * x, lambda x: x / 2)).lower(x)
    assert "while" in lowered.as_text() and "convolution" not in lowered.as_text()
    np.testing.assert_allclose(lowered.compile()(x), conv_stack.whole(stack, x), rtol=1e-4, atol=1e-5)


def test_chunks_suit_strides_and_dilations() -> None:
    stack = [
        (Layer("conv", 4, 2), (jnp.zeros((4, 1, 4)),)),
        *[(Layer("residual", dilation=3**d), (jnp.zeros((3, 4, 4)),)) for d in range(8)],
        (Layer("conv", 4, 2), (jnp.zeros((4, 4, 4)),)),
    ]
    assert conv_stack.chunk_rows(stack, 10_000) % 4 == 0
    rows = conv_stack.chunk_rows(stack, 10_000)
    assert rows <= 10_000 and rows // 2 % (2 * 3**7) == 0
    assert conv_stack.chunk_rows(stack, 1) == 4


def same_gradients(stack: Stack, x: jax.Array, form) -> None:
    """``form`` against the definition: a scalar of its output, and the gradients of weights and signal."""
    layers, weights = zip(*stack, strict=True)

    def found(form):
        loss = lambda arrays: jnp.sum(jnp.sin(form(list(zip(layers, arrays[0], strict=True)), arrays[1])))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))((weights, x))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(jnp.max(jnp.abs(b)))),
        found(form), found(conv_stack.whole),
    )  # fmt: skip


@pytest.mark.parametrize(("make", "dilations", "length"), [(encoder, [1, 3, 300], 201), (decoder, [1, 2], 31)])
def test_products_have_the_gradients_of_the_definition(make, dilations: list[int], length: int) -> None:
    stack = make(2, 2, dilations)
    same_gradients(stack, array(2, length, stack[0][1][0].shape[1]), conv_products.whole)


@pytest.mark.parametrize(
    ("make", "stages", "length", "parts"), [(encoder, 2, 120, 2), (decoder, 1, 30, 3), (encoder, 0, 30, 1)]
)
def test_parts_side_by_side_have_the_gradients_of_the_definition(make, stages: int, length: int, parts: int) -> None:
    stack = make(2, stages, [1, 9])
    x = array(2, length, stack[0][1][0].shape[1])
    same_gradients(stack, x, partial(conv_packed.packed, parts=parts))
    whole = conv_stack.whole(stack, x)
    np.testing.assert_allclose(conv_packed.packed(stack, x, parts), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_tpu_has_its_lanes_filled(monkeypatch, batch: int) -> None:
    stack = encoder(2, 2, [9])
    x = array(batch, 144, 1)
    assert f"[{batch},72,4]" in str(jax.make_jaxpr(partial(vqvae.convolved, stack))(x))
    monkeypatch.setattr(vqvae, "platform", lambda: "tpu")
    monkeypatch.setattr(conv_packed, "LANES", 17)
    program = str(jax.make_jaxpr(partial(vqvae.convolved, stack))(x))
    assert "[1,18,16]" in program and "[1,9,16]" in program  # four parts of four channels
    assert f"[{batch},72,4]" not in program and ("scan" in program) == (batch > 1)
    same_gradients(stack, x, vqvae.convolved)


@pytest.mark.parametrize(
    ("width", "length", "parts"),
    [
        (32, 4096, 4), (64, 4096, 2), (40, 4608, 3), (100, 4096, 1), (200, 4096, 1),
        (32, 4094, 1),  # the stride would divide neither half
        (32, 4092, 3),
        (32, 216, 4), (32, 160, 2),  # a part has at least the rows that its neighbour needs
    ],
)  # fmt: skip
def test_parts_fill_the_lanes_and_suit_every_layer(width: int, length: int, parts: int) -> None:
    stack = [(Layer("conv", 4, 2), (array(4, 1, width), array(width))), residual(width, width, 27)]
    assert conv_packed.num_parts([*stack, (Layer("conv", 3), (array(3, width, 5), array(5)))], length) == parts
