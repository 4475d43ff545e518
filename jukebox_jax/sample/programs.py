"""What ``jukebox sample`` and ``jukebox encode`` run, as programs for devices that need not be here (``certify``)."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from jukebox_jax import presets
from jukebox_jax.models import decode_form, vqvae_stream
from jukebox_jax.models.flops import keys_per_query
from jukebox_jax.models.layers import prime_prefix
from jukebox_jax.models.pattern import Kind, layer_kinds
from jukebox_jax.models.prior import POSITIONS, Prior
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.ops import conv_stack
from jukebox_jax.ops.logits import Settings
from jukebox_jax.parallel.mesh import use
from jukebox_jax.parallel.program import Program
from jukebox_jax.parallel.sharding import batch_sharding, placed, replicated, shardings_of, spec
from jukebox_jax.sample import decode as decoding
from jukebox_jax.sample.source import stored
from jukebox_jax.types import UserError

AnyMesh = Mesh | AbstractMesh


def decode_program(
    preset: presets.Prior, batch: int, mesh: AnyMesh, dtype: Any = jnp.bfloat16, *, num_steps: int = decoding.CHUNK,
    int8: bool = False,
) -> Program:  # fmt: skip
    """The scan over ``num_steps`` tokens that ``sample_window`` repeats. Its caches, argument 1, are donated.

    ``extras``: ``steps``; ``tokens`` of one step (the batch); ``floor_bytes`` of one step on one device
    (``decode_floor_bytes``); ``cache_bytes`` on one device.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    model = Prior(preset, dtype, int8=int8)
    with use(_dividing(mesh, batch)):
        params, cond = _params(model, mesh), _conditioning(model, batch, mesh)
        weights = jax.eval_shape(functools.partial(decode_form.prepare, model), params)
        weights = placed(weights, decode_form.places(model, weights, mesh))
        cache = _cache(model, batch, mesh, params, cond)
    rows = batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    position = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    args = (weights, cache, cond, tokens, placed(keys, rows), tokens, position)
    extras = {
        "steps": num_steps,
        "tokens": batch,
        "floor_bytes": decode_floor_bytes(preset, batch, mesh, jnp.int8 if int8 else dtype),
        "cache_bytes": sum(map(_local_bytes, jax.tree.leaves(cache))),
    }
    fn = functools.partial(decoding.decode, model, num_steps, Settings(), False)
    return Program(jax.jit(fn, donate_argnums=1), args, mesh, extras)


def prefill_program(preset: presets.Prior, batch: int, mesh: AnyMesh, dtype: Any = jnp.bfloat16) -> Program:
    """The longest prefill: a forward over the whole context. ``extras``: ``tokens`` of the forward; ``cache_bytes``.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    model, rows = Prior(preset, dtype), batch_sharding(mesh)
    with use(_dividing(mesh, batch)):
        params, cond = _params(model, mesh), _conditioning(model, batch, mesh)
        cache = _cache(model, batch, mesh, params, cond)
    codes = jax.ShapeDtypeStruct((batch, preset.context_length), jnp.int32, sharding=rows)
    given = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    extras = {
        "tokens": batch * preset.transformer.length,
        "cache_bytes": sum(map(_local_bytes, jax.tree.leaves(cache))),
    }
    fn = jax.jit(functools.partial(decoding.prefill, model))
    return Program(fn, (params, codes, cond, given), mesh, extras)


def encode_program(vqvae: presets.VQVAE, batch: int, mesh: AnyMesh, dtype: Any = jnp.float32) -> Program:
    """One chunk of audio to codes of the top level, as ``encode_long`` runs it. ``extras``: ``samples`` of the chunk.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    return _stream_program(vqvae, batch, mesh, dtype, vqvae.levels - 1, decode=False)


def audio_program(vqvae: presets.VQVAE, batch: int, mesh: AnyMesh, dtype: Any = jnp.float32) -> Program:
    """One chunk of bottom codes to audio, as ``decode_long`` runs it. ``extras``: ``samples`` of the chunk.

    Raises:
        UserError: the mesh does not divide the batch.
    """
    return _stream_program(vqvae, batch, mesh, dtype, 0, decode=True)


def _stream_program(vqvae: presets.VQVAE, batch: int, mesh: AnyMesh, dtype: Any, level: int, decode: bool) -> Program:
    model, rows = VQVAE(vqvae, dtype), batch_sharding(_dividing(mesh, batch))
    hop = vqvae.hop_lengths[level]
    length = vqvae_stream.CHUNK // hop * (1 if decode else hop)

    def start(rng: jax.Array) -> Any:
        variables = model.init(rng, jnp.zeros((1, vqvae.hop_lengths[-1], 1)))
        stack: Any = model.apply(variables, level, method="decoder" if decode else "encoder")
        codebook = variables["codebook"][f"level_{level}"]["codebook"]
        return (stack, codebook), conv_stack.init_carry(stack, length, batch)

    weights, carry = jax.eval_shape(lambda: start(jax.random.key(0)))
    shape, kind = ((batch, length), jnp.int32) if decode else ((batch, length, 1), jnp.float32)
    piece = jax.ShapeDtypeStruct(shape, kind, sharding=rows)
    integer = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    fn = jax.jit(functools.partial(vqvae_stream.advance, decode=decode), donate_argnums=2)
    args = (*placed(weights, replicated(mesh)), placed(carry, rows), piece, integer, integer)
    return Program(fn, args, mesh, {"samples": batch * (length * hop if decode else length)})


def decode_floor_bytes(preset: presets.Prior, batch: int, mesh: AnyMesh, dtype: Any = jnp.bfloat16) -> int:
    """HBM bytes that one step must move on one device, at the end of the context: every weight once, of every cache
    the slots that the position may look at, and the logits. Plain arithmetic, no padding."""
    t, size, tensor = preset.transformer, jnp.dtype(dtype).itemsize, mesh.shape["tensor"]
    items = batch // (mesh.shape["data"] * mesh.shape["fsdp"])
    d, s, f = t.width, t.attention_width, t.mlp_dim
    share = lambda count: tensor if count % tensor == 0 else 1  # noqa: E731
    heads, total = share(t.num_heads), 0.0
    prefix = prime_prefix(preset.merged_lyrics, t.num_blocks)
    for kind in layer_kinds(t.pattern, t.depth):
        outputs = s if kind is Kind.LYRICS else 3 * s  # cross attention's keys and values are in its cache
        matrices = ((d + 1) * outputs + s * d) / heads + ((d + 1) * f + f * d) / share(f) + 2 * d
        keys = keys_per_query(kind, t, prefix, preset.num_lyrics)
        total += size * (matrices + items * keys * 2 * s / heads) + 4 * 4 * d  # norms in float32
    v = preset.vocab_size
    return round(total + size * v * d / share(v) + 4 * items * v)


def _dividing(mesh: AnyMesh, batch: int) -> AnyMesh:
    split = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % split:
        raise UserError(f"a batch of {batch} does not spread over data x fsdp = {split} devices: take a multiple")
    return mesh


def _params(model: Prior, mesh: AnyMesh) -> Any:
    params = stored(model.config, model.dtype)
    return placed(params, shardings_of(params, mesh, model.config.transformer.num_heads))


def _conditioning(model: Prior, batch: int, mesh: AnyMesh) -> Any:
    """What ``decode.condition`` gives."""
    preset, upper, y = model.config, None, None
    if preset.labels is not None:
        y = jax.ShapeDtypeStruct((batch, preset.labels.columns), jnp.int32)
    if preset.upsampling:
        upper = jax.ShapeDtypeStruct((batch, preset.context_length // preset.upsampling), jnp.int32)
    cond = jax.eval_shape(functools.partial(decoding.condition, model), stored(preset, model.dtype), y, upper)
    place = lambda x: spec(("batch", *(None,) * (x.ndim - 1)), x.shape, mesh)  # noqa: E731
    where = jax.tree.map(lambda x: NamedSharding(mesh, place(x)), cond)
    if preset.conditioner is not None:
        wide = spec(POSITIONS, cond.positions.shape, mesh)
        where = where._replace(positions=NamedSharding(mesh, wide))
    return placed(cond, where)


def _cache(model: Prior, batch: int, mesh: AnyMesh, params: Any, cond: Any) -> Any:
    cache = jax.eval_shape(lambda params, cond: decode_form.init_cache(model, params, batch, cond), params, cond)
    places = decode_form.cache_places(model, cache, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s)), cache, places
    )


def _local_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
