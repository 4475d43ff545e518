"""Parameters and caches in the form that one-token steps want, and the step itself.

A step reads every weight once, so its form is the backend's choice, made by ``transformer.scans`` alone: on a TPU
layers stay stacked and are scanned (three bodies compile instead of seventy-two, slices are free); on a CPU every layer
is a stack of one, taken apart before the token loop, where slices would be copies.

Queries, keys and values are one product, per head ``h 3 k``: so keys beside values is what a cache holds, and a mesh
that splits heads splits all three. Which matrices are turned over: ``step_products.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from jukebox_jax.models import cache as kv_cache
from jukebox_jax.models import int8, step_products
from jukebox_jax.models.conditioners import Timing, vectors_at
from jukebox_jax.models.layers import Layer, layer_norm, quick_gelu
from jukebox_jax.models.pattern import Kind, Segment, layer_kinds, segments
from jukebox_jax.models.prior import Conditioning, Prior
from jukebox_jax.models.step_products import dense, product
from jukebox_jax.models.transformer import scans
from jukebox_jax.ops import attention_xla
from jukebox_jax.parallel import lanes
from jukebox_jax.parallel.mesh import platform
from jukebox_jax.parallel.sharding import constrain, names_of, spec

# Logical axes of a leaf's last dimensions. Weights are whole along ``fsdp``: a step cannot wait for them.
_AXES: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("qkv", "rows"): ("qkv", None),
    ("qkv", "bias"): ("qkv",),
    ("qkv", "scale"): ("qkv",),
    ("output", "kernel"): ("qkv", None),
    ("output", "rows"): (None, "qkv"),
    ("in", "kernel"): (None, "mlp"),
    ("in", "rows"): ("mlp", None),
    ("in", "bias"): ("mlp",),
    ("in", "scale"): ("mlp",),
    ("out", "kernel"): ("mlp", None),
    ("out", "rows"): (None, "mlp"),
}
_TABLES: dict[str, tuple[str | None, ...]] = {
    "embedding": ("vocab", None),
    "table": ("vocab", None),
    "scale": ("vocab",),
    "position": (None, "mlp"),  # one row is read: every device reads its part of it
    **dict.fromkeys(Timing._fields, (None, "mlp")),
}


def scanned(model: Prior) -> bool:
    """Whether layers are scanned in stacks, or stand alone."""
    return scans(model.scan_layers)


def groups(model: Prior) -> tuple[Segment, ...]:
    """What the lists of weights and caches run over."""
    t = model.config.transformer
    if scanned(model):
        return segments(t.pattern, t.depth)
    return tuple(Segment((kind,), 1) for kind in layer_kinds(t.pattern, t.depth))


def regroup(model: Prior, tree: dict[str, Any]) -> list[tuple[Any, ...]]:
    """``segment_{i}/layer_{j}`` with stacked leaves, as ``Transformer`` has them: to one tuple per group."""
    t, out = model.config.transformer, []
    for i, (kinds, repeats) in enumerate(segments(t.pattern, t.depth)):
        places = tuple(tree[f"segment_{i}"][f"layer_{j}"] for j in range(len(kinds)))
        if scanned(model):
            out.append(places)
        else:
            out += [(jax.tree.map(lambda p, r=r: p[r : r + 1], place),) for r in range(repeats) for place in places]
    return out


def prepare(model: Prior, params: dict[str, Any]) -> dict[str, Any]:
    """Weights for ``step`` from a prior's parameters: a pure function. Leaves that need no change are the same arrays.

    Matrices are in the compute dtype, the output table too (on a TPU a product rounds to it anyway).
    """
    table = params["embedding"] if model.config.tied_output else params["output"]
    weights = {name: params[name] for name in ("embedding", "position", "start") if name in params}
    if model.config.labels is not None and model.config.conditioner is None:
        weights["timing"] = {name: params["labels"][name] for name in Timing._fields}
    stacks = zip(groups(model), regroup(model, params["transformer"]), strict=True)
    read = weights, table, params["transformer"]  # of the size that ``sample/decode.py`` finds here
    plain = model.dtype == jnp.float32 and not model.int8 and lanes.suit(read)
    turned = step_products.ALL[:1] if scanned(model) else () if plain else step_products.ALL
    layer = functools.partial(
        layer_weights, num_heads=model.config.transformer.num_heads, dtype=model.dtype, turned=turned
    )
    layers = [tuple(map(layer, group.kinds, places)) for group, places in stacks]
    if model.int8:
        layers = [tuple(map(step_products.eight_bits, group)) for group in layers]
        return weights | int8.matrix(table, "table", -2) | {"layers": layers}
    table = table.astype(model.dtype)
    return weights | ({"table": table} if turned else {"kernel": table.T}) | {"layers": layers}


def layer_weights(
    kind: Kind, params: dict[str, Any], num_heads: int, dtype: Any, turned: Collection[str]
) -> dict[str, Any]:
    """A (stacked) layer's weights. ``turned``: which of ``step_products.ALL`` have their matrices in ``rows``."""
    cast = lambda tree: jax.tree.map(lambda p: p.astype(dtype), tree)  # noqa: E731
    mlp = {"in": cast(params["mlp"]["in"]), "out": cast(params["mlp"]["out"])}
    norms = {"norm_0": params["norm_0"], "norm_1": params["norm_1"]}
    parts = attention_weights(kind, params["attention"], num_heads, dtype) | mlp
    return norms | {n: step_products.output_first(part) if n in turned else part for n, part in parts.items()}


def attention_weights(kind: Kind, params: dict[str, Any], num_heads: int, dtype: Any) -> dict[str, Any]:
    """Its attention's part. A LYRICS layer's keys and values are in its cache, so it has queries only."""
    names = ("query",) if kind is Kind.LYRICS else ("query", "key", "value")

    def fused(part: str) -> Array:
        heads = [params[n][part].reshape(*params[n][part].shape[:-1], num_heads, 1, -1) for n in names]
        return jnp.concatenate(heads, axis=-2).reshape(*heads[0].shape[:-3], -1).astype(dtype)

    qkv = {"kernel": fused("kernel"), "bias": fused("bias")}
    return {"qkv": qkv, "output": jax.tree.map(lambda p: p.astype(dtype), params["output"])}


def places(model: Prior, weights: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Where ``prepare``'s arrays belong on a mesh: heads, hidden units and vocabulary over ``tensor``.

    Attention's matrices are pinned to row order: where a chip's share has odd sizes, a TPU's default would put the
    layers of a stack into its tiles, and every slice would read its neighbours.
    """
    heads = model.config.transformer.num_heads

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        names = names_of(path)
        axes = _AXES.get(names[-2:], ()) if names[0] == "layers" else _TABLES.get(names[-1], ())
        axes = (None,) * (len(leaf.shape) - len(axes)) + axes
        where = NamedSharding(mesh, spec(axes, leaf.shape, mesh, heads))
        pinned = platform() == "tpu" and names[-2:] in (("qkv", "rows"), ("output", "kernel"))
        return Format(Layout(tuple(range(len(leaf.shape)))), where) if pinned else where

    return jax.tree_util.tree_map_with_path(place, weights)


def init_cache(model: Prior, params: Any, batch: int, cond: Conditioning) -> Any:
    """Caches before position 0, in the compute dtype; cross-attention layers are filled from the lyric encodings."""
    caches: Any = model.apply({"params": params}, batch, cond, method="init_cache")
    return _own_form(model, regroup(model, caches))


def prefill(model: Prior, params: Any, tokens: Int[Array, "b p"], cond: Conditioning, known, weights=None) -> Any:
    """Caches for a step at position ``known``; ``tokens`` are whole blocks of the sequence, padded at the end. Layers
    that stand alone take their matrices from ``prepare``'s ``weights``, if they are there: no slices of stacks."""
    if weights is not None and not scanned(model) and not model.int8:
        params = {**params, "transformer": _apart(model, params["transformer"], weights["layers"])}
    caches: Any = model.apply({"params": params}, tokens, cond, known, method="prefill")
    return _own_form(model, regroup(model, caches))


def _apart(model: Prior, stacks: dict[str, Any], layers: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The stacks, with the layers' own matrices in place of the large ones."""
    out, alone, t = {}, iter(layers), model.config.transformer
    for i, (kinds, repeats) in enumerate(segments(t.pattern, t.depth)):
        own = [[next(alone)[0] for _ in kinds] for _ in range(repeats)]
        for j, layer in enumerate(zip(*own, strict=True)):
            stack = stacks[f"segment_{i}"][f"layer_{j}"]
            parts = stack["mlp"] | {"output": stack["attention"]["output"]}
            parts = {n: p | {"kernel": tuple(step_products.kernel(w[n]) for w in layer)} for n, p in parts.items()}
            new = {"attention": stack["attention"] | {"output": parts.pop("output")}, "mlp": parts}
            out.setdefault(f"segment_{i}", {})[f"layer_{j}"] = stack | new
    return out


def cache_places(model: Prior, caches: Any, mesh: Any) -> Any:
    """The partition of every cache on a mesh: heads over ``tensor``, items over the rest."""
    heads = model.config.transformer.num_heads

    def place(kind: Kind, cache: Any) -> Any:
        leaves, tree = jax.tree.flatten(cache)
        axes = tree.flatten_up_to(kv_cache.axes(kind, cache))
        return tree.unflatten(spec(a, x.shape, mesh, heads) for a, x in zip(axes, leaves, strict=True))

    return [
        tuple(place(kind, cache) for kind, cache in zip(kinds, group, strict=True))
        for (kinds, _), group in zip(groups(model), caches, strict=True)
    ]


def _own_form(model: Prior, caches: Any) -> Any:
    """Stacked caches, or taken apart; in 8 bits, if the model wants them; pinned to the mesh in use."""

    def form(kind: Kind, cache: Array) -> Any:
        sizes = _layer(model, kind).sizes
        take = (lambda kv: kv) if scanned(model) else lambda kv: kv_cache.apart(kind, kv, sizes)
        if not model.int8:
            return take(cache)
        packed = int8.pack(kind, cache, sizes.num_heads)
        return packed | {"kv": take(packed["kv"])}

    caches = [tuple(map(form, kinds, group)) for (kinds, _), group in zip(groups(model), caches, strict=True)]
    mesh = jax.sharding.get_abstract_mesh()
    return caches if mesh.empty else jax.lax.with_sharding_constraint(caches, cache_places(model, caches, mesh))


def hold(model: Prior, caches: Any, t: Array) -> Any:
    """The caches with what all steps of position t's block read, where it is cheaper to choose it once; ``release``."""
    return [
        tuple(kv_cache.hold(kind, x, _layer(model, kind).sizes, t) for kind, x in zip(kinds, group, strict=True))
        for (kinds, _), group in zip(groups(model), caches, strict=True)
    ]


def release(caches: Any) -> Any:
    """The caches alone, after ``hold``."""
    return [tuple(map(kv_cache.release, group)) for group in caches]


def _layer(model: Prior, kind: Kind) -> Layer:
    c = model.config
    return Layer(c.transformer, kind, c.merged_lyrics, c.num_lyrics, model.dtype, parent=None)


def step(
    model: Prior, weights: Any, token: Int[Array, " b"], cond: Conditioning, caches: Any, t: Array
) -> tuple[Float[Array, "b v"], Any]:
    """Logits of position t of the sequence, given the token before it (any token at t = 0), float32; caches written."""
    start = cond.start if cond.start is not None else weights["start"]
    x = jnp.where(t == 0, start, weights["embedding"][token])
    x = x + jax.lax.dynamic_index_in_dim(weights["position"], t, keepdims=True)
    if (positions := cond.positions) is not None:
        lyrics = model.config.merged_lyrics
        positions = vectors_at(positions, weights.get("timing"), jnp.maximum(t - lyrics, 0))
        x = x + (positions := jnp.where(t < lyrics, 0.0, positions) if lyrics else positions)
    x, caches = _layers(model, weights["layers"], constrain(x, "batch", None).astype(model.dtype), caches, t)
    x = x.astype(jnp.float32)
    if model.config.tied_output and positions is not None:
        x = x + positions
    logits = int8.scaled(product(x.astype(model.dtype), weights, jnp.float32, "table"), weights)
    return constrain(constrain(logits, "batch", "vocab"), "batch", None), caches  # logits travel, not the table


def _layers(model: Prior, layers: Any, x: Float[Array, "b d"], caches: Any, t: Array) -> tuple[Array, Any]:
    out = []
    for (kinds, repeats), weights, cache in zip(groups(model), layers, caches, strict=True):
        bodies = [_layer(model, kind) for kind in kinds]

        def group(carry, inputs, bodies=bodies):
            (x, cache), (weights, index) = carry, inputs
            cache = list(cache)
            for j, layer in enumerate(bodies):
                x, cache[j] = layer_step(layer, weights[j], x, cache[j], index, t)
                x = constrain(x, "batch", None)
            return (x, tuple(cache)), None

        if repeats > 1:
            (x, cache), _ = jax.lax.scan(group, (x, cache), (weights, jnp.arange(repeats)))
        else:
            (x, cache), _ = group((x, cache), (jax.tree.map(lambda p: p[0], weights), 0))
        out.append(cache)
    return x, out


def layer_step(
    layer: Layer, weights: Any, x: Float[Array, "b d"], cache: kv_cache.Cache, index, t
) -> tuple[Float[Array, "b d"], kv_cache.Cache]:
    """One position through a layer. Returns its output and the cache with position t of repeat ``index`` written."""
    a, cache = mix_step(layer, weights, layer_norm(x, weights["norm_0"]), cache, index, t)
    m = dense(quick_gelu(dense(layer_norm(x + a, weights["norm_1"]), weights["in"])), weights["out"])
    return layer.add(x, a, m), cache


def mix_step(
    layer: Layer, weights: Any, h: Float[Array, "b d"], cache: kv_cache.Cache, index, t
) -> tuple[Float[Array, "b d"], kv_cache.Cache]:
    """``Layer.mix`` of one position, and the cache."""
    c, kind, sizes, qkv = layer.config, layer.kind, layer.sizes, weights["qkv"]
    y = dense(h, qkv).reshape(h.shape[0], c.num_heads, -1, c.head_dim)
    if kind is not Kind.LYRICS:
        cache = int8.write(kind, cache, y[:, :, 1:], sizes, index, t)
    k, v, scale = int8.read(kind, cache, sizes, index, t)
    k, v = k.astype(h.dtype), v.astype(h.dtype)
    q = jnp.pad(y[:, :, 0], ((0, 0), (0, 0), (0, k.shape[-1] - c.head_dim)))  # beside interleaved keys: no values
    scores = jnp.einsum("bhk,bhsk->bhs", q, k, preferred_element_type=jnp.float32) * c.head_dim**-0.5
    if scale is not None:
        scores = scores * scale[0]
    mask = kv_cache.visible(kind, sizes, t, k.shape[2])
    p = jax.nn.softmax(jnp.where(mask[None, None], scores, attention_xla.MASKED), axis=-1)
    p = p if scale is None else p * scale[1]
    o = jnp.einsum("bhs,bhsk->bhk", p.astype(v.dtype), v)[..., -c.head_dim :].reshape(h.shape[0], -1)
    if kind is Kind.PREVIOUS:  # zero keys and values before the first block
        o = o * (t >= sizes.block_length).astype(o.dtype)
    return dense(o, weights["output"]), cache
