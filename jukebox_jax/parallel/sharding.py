"""What is sharded how: one table of logical axes, and one from parameter paths to them.

A parameter's last path entries name its axes (leading ``layers`` axes of stacked parameters are added); the rules map
these to mesh axes. An axis whose size the mesh axis does not divide stays whole. Optimiser moments and averages have
the paths of their parameters behind a prefix, so they follow the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

Logical = tuple[str | None, ...]

# Logical axis -> mesh axes that shard it.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("tensor",),  # of the residual stream
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
    (("position",), (None, "embed")),
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
    manual = mesh.manual_axes if isinstance(mesh, AbstractMesh) else ()
    for axis, size in zip(axes, shape, strict=True):
        names = [n for n in RULES[axis] if mesh.shape.get(n, 1) > 1 and n not in manual] if axis else []
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


def shardings_of(tree: Any, mesh: Mesh | AbstractMesh, num_heads: int | None = None) -> Any:
    """One ``NamedSharding`` per leaf of a tree of (abstract) parameters, optimiser state or averages."""

    def leaf(path, x):
        return NamedSharding(mesh, spec(logical(names_of(path), len(x.shape)), tuple(x.shape), mesh, num_heads))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names on a path of ``jax.tree_util``, whatever the containers."""
    return tuple(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path)


def placed(tree: Any, where: Any) -> Any:
    """Abstract arrays that know their shardings: one for all, or a tree of them."""
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Batches are split over ``data`` and ``fsdp`` on their first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def row_groups() -> int:
    """Over how many devices of the mesh in use a batch is split; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]


def spread(tree: Any) -> Any:
    """Arrays put where rows belong on the mesh in use, if there is one; rows that it does not divide go everywhere.

    So every call of a compiled program finds its arguments where the first did.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tree
    place = lambda x: NamedSharding(mesh, spec(("batch", *(None,) * (x.ndim - 1)), x.shape, mesh))  # noqa: E731
    return put(tree, jax.tree.map(place, tree))


def put(tree: Any, where: Any) -> Any:
    """``jax.device_put``, also of what every process has alike onto devices of several processes."""
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    return jax.jit(lambda tree: tree, out_shardings=where)(tree)


def fetch(tree: Any) -> Any:
    """``jax.device_get``, also of arrays that are spread over several processes."""
    mesh = jax.sharding.get_mesh()
    if jax.process_count() > 1 and not mesh.empty:
        tree = put(tree, replicated(mesh))
    return jax.device_get(tree)


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that this process's devices need, in order: a share, or all if ``tensor`` spans processes."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for place in places if place for row in range(*place[0].indices(batch_size))})


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str | None, num_heads: int | None = None) -> jax.Array:
    """Pin an activation's sharding to its logical axes; does nothing outside of a mesh (``mesh.use``).

    Inside ``over_rows`` the rows are there already, and only the ``tensor`` axis is left to pin.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not _free(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh, num_heads))


def _free(mesh: AbstractMesh) -> set[str]:
    """Axes that the compiler still partitions by itself."""
    return set(mesh.axis_names) - set(mesh.manual_axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shard:
    """This device's part of a parameter (or of a stack of them), inside ``over_rows``; ``whole`` joins the parts."""

    value: jax.Array
    axis: int = field(metadata=dict(static=True))  # counted from the end


def whole(tree: Any, dtype: Any) -> Any:
    """The tree with every ``Shard`` gathered over ``fsdp`` in ``dtype``; its gradient is reduced and scattered back."""

    def gather(leaf):
        if not isinstance(leaf, Shard):
            return leaf
        value = leaf.value.astype(dtype)
        return jax.lax.all_gather(value, "fsdp", axis=value.ndim + leaf.axis, tiled=True)

    return jax.tree.map(gather, tree, is_leaf=lambda leaf: isinstance(leaf, Shard))


def over_rows(mean: Callable[[Any, Any], Any], params: Any, batch: Any, num_heads: int | None = None) -> Any:
    """``mean(params, batch)``, each device working on its own rows of the batch; the results are averaged.

    The compiler's own partitioning sums the gradient of every weight on all devices before it keeps a part, or keeps
    far too many activations. Here collectives are as written: stacked layers arrive as ``Shard``s, to be gathered by
    ``whole`` one at a time; the rest arrive whole. Heads and hidden units (``tensor``) are left to the compiler.
    Without a mesh, or with one row group, this is ``mean`` itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        return mean(params, batch)
    names = {"data", "fsdp"} if mesh.shape["tensor"] > 1 else set(mesh.axis_names)

    def place(path, x) -> PartitionSpec:
        full = spec(logical(names_of(path), x.ndim), x.shape, mesh, num_heads)
        return PartitionSpec(*("fsdp" if part == "fsdp" else None for part in full))

    places = jax.tree_util.tree_map_with_path(place, params)

    def local(params, batch):
        def arrive(path, x, spec):
            if "fsdp" not in spec:
                return x
            shard = Shard(x, tuple(spec).index("fsdp") - x.ndim)
            stacked = logical(names_of(path), x.ndim)[0] == "layers"
            return shard if stacked else whole(shard, x.dtype)

        params = jax.tree_util.tree_map_with_path(arrive, params, places)
        return jax.tree.map(lambda x: jax.lax.pmean(x, ("data", "fsdp")), mean(params, batch))

    rows = PartitionSpec(("data", "fsdp"))
    run = jax.shard_map(local, in_specs=(places, rows), out_specs=PartitionSpec(), axis_names=names, check_vma=False)
    return run(params, batch)


def on_rows(function: Callable[[Any, Any], Any], rows: Any, everywhere: Any = ()) -> Any:
    """``function(rows, everywhere)``, each device working on its own rows; its results have rows, too.

    Fourier transforms, the largest of many, and slices in a loop are not split by the compiler: it would gather all
    rows on every device. Without a mesh, or where it does not divide the rows, this is ``function`` itself.
    """
    mesh, groups = jax.sharding.get_abstract_mesh(), row_groups()
    if groups == 1 or any(x.shape[0] % groups for x in jax.tree.leaves(rows)) or not {"data", "fsdp"} <= _free(mesh):
        return function(rows, everywhere)
    names = {"data", "fsdp"} if mesh.shape["tensor"] > 1 else set(mesh.axis_names)
    specs = PartitionSpec(("data", "fsdp")), PartitionSpec()
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0], axis_names=names, check_vma=False)(
        rows, everywhere
    )


def per_device(attention: Callable, num_heads: int, *operands: jax.Array) -> jax.Array:
    """``attention(*operands, num_heads)`` on each device's rows and heads: kernels cannot be partitioned otherwise.

    Operands and result are ``b t S``; heads that ``tensor`` does not divide stay together, on every device alike.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set() if mesh.empty else _free(mesh)
    if not free or mesh.size == 1:
        return attention(*operands, num_heads)
    place = spec(("batch", None, "heads"), operands[0].shape, mesh, num_heads)
    parts = mesh.shape["tensor"] if "tensor" in place else 1
    run = jax.shard_map(
        lambda *operands: attention(*operands, num_heads // parts),
        in_specs=(place,) * len(operands), out_specs=place, axis_names=free, check_vma=False,
    )  # fmt: skip
    return run(*operands)


def map_with_shardings(init: Callable, mesh: Mesh, *args: Any, num_heads: int | None = None) -> Any:
    """Run ``init(*args)`` so that every leaf of its result is made where it belongs."""
    shardings = shardings_of(jax.eval_shape(init, *args), mesh, num_heads)
    return jax.jit(init, out_shardings=shardings)(*args)
