"""What is sharded how: one table of logical axes, and one from parameter paths to them.

A parameter's last path entries name its axes (leading ``layers`` axes of stacked parameters are added); the rules map
these to mesh axes. An axis whose size the mesh axis does not divide stays whole. Optimiser moments and averages have
the paths of their parameters behind a prefix, so they follow the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Logical = tuple[str | None, ...]

# Logical axis -> mesh axes that shard it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": (),
    "embed": ("fsdp",),
    "qkv": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "codes": (),
    "layers": (),
}

# End of a parameter's path -> logical axes. The first match counts; anything else is replicated.
PARAMETERS: tuple[tuple[tuple[str, ...], Logical], ...] = (
    (("attention", "query", "kernel"), ("embed", "qkv")),
    (("attention", "key", "kernel"), ("embed", "qkv")),
    (("attention", "value", "kernel"), ("embed", "qkv")),
    (("attention", "query", "bias"), ("qkv",)),
    (("attention", "key", "bias"), ("qkv",)),
    (("attention", "value", "bias"), ("qkv",)),
    (("attention", "output", "kernel"), ("qkv", "embed")),
    (("mlp", "in", "kernel"), ("embed", "mlp")),
    (("mlp", "in", "bias"), ("mlp",)),
    (("mlp", "out", "kernel"), ("mlp", "embed")),
    (("embedding",), ("vocab", "embed")),
    (("output",), ("vocab", "embed")),
    (("lyrics_output",), ("vocab", "embed")),
    (("position",), ("length", "embed")),
    (("labels", "artist"), (None, "embed")),
    (("labels", "genre"), (None, "embed")),
    (("lyrics_projection", "kernel"), (None, "embed")),
)


def logical(path: tuple[str, ...], ndim: int) -> Logical:
    """Logical axes of the parameter at ``path``."""
    if "conditioner" in path and path[-1] == "kernel":  # convolutions: k in out
        return (None, None, "embed")
    for end, axes in PARAMETERS:
        if path[-len(end) :] == end and ndim >= len(axes):
            return ("layers",) * (ndim - len(axes)) + axes
    return (None,) * ndim


def spec(
    axes: Logical, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, num_heads: int | None = None
) -> PartitionSpec:
    """Logical axes to mesh axes, leaving whole what the mesh does not divide.

    A head is never split: where ``num_heads`` is not divisible by the ``tensor`` axis, ``qkv`` and ``heads`` stay whole
    and only the MLP and the vocabulary are sharded over it.
    """
    parts: list[Any] = []
    for axis, size in zip(axes, shape, strict=True):
        names = [n for n in RULES[axis] if mesh.shape.get(n, 1) > 1] if axis else []
        if axis in ("qkv", "heads") and num_heads is not None and num_heads % mesh.shape.get("tensor", 1):
            names = []
        count = 1
        for n in names:
            count *= mesh.shape[n]
        whole = not names or size % count != 0
        parts.append(None if whole else names[0] if len(names) == 1 else tuple(names))
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def shardings_of(tree: Any, mesh: Mesh, num_heads: int | None = None) -> Any:
    """One ``NamedSharding`` per leaf of a tree of (abstract) parameters, optimiser state or averages."""

    def leaf(path, x):
        names = tuple(_name(entry) for entry in path)
        return NamedSharding(mesh, spec(logical(names, len(x.shape)), tuple(x.shape), mesh, num_heads))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _name(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are split over ``data`` and ``fsdp`` on their first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None, num_heads: int | None = None) -> jax.Array:
    """Pin an activation's sharding to its logical axes; does nothing outside of a mesh (``mesh.use``)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh, num_heads))


def map_with_shardings(init: Callable, mesh: Mesh, *args: Any, num_heads: int | None = None) -> Any:
    """Run ``init(*args)`` so that every leaf of its result is made where it belongs."""
    shardings = shardings_of(jax.eval_shape(init, *args), mesh, num_heads)
    return jax.jit(init, out_shardings=shardings)(*args)
