"""Where sampling takes a model from: presets, labellers, and one component's weights at a time."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.models.prior import Prior
from jukebox_jax.parallel.sharding import replicated, shardings_of
from jukebox_jax.types import UserError


@dataclass(frozen=True)
class Source:
    """A model to sample from.

    Attributes:
      priors: one preset per level, bottom (0) to top.
      labellers: per level; makes the label rows of that level's prior.
      load: component name ("vqvae", "prior_level_0", ...) to its variables. Called when a level starts, and the result
        dropped when it ends, so that no two priors are in memory.
      dtype: what the priors compute in.
      fingerprint: changes when the model does.
    """

    name: str
    vqvae: presets.VQVAE
    priors: Mapping[int, presets.Prior]
    labellers: Mapping[int, Labeller]
    load: Callable[[str], Any]
    dtype: Any = jnp.float32
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if sorted(self.priors) != list(range(self.vqvae.levels)):
            have = ", ".join(map(str, sorted(self.priors))) or "no level"
            raise UserError(f"model {self.name!r} has priors of {have}, and a VQ-VAE of {self.vqvae.levels} levels: "
                            "sampling needs the prior of every level")  # fmt: skip

    @property
    def top(self) -> int:
        """The top level."""
        return self.vqvae.levels - 1

    def resident(self) -> Source:
        """The same model, every component loaded once and kept: for sessions that go back and forth."""
        return dataclasses.replace(self, load=functools.cache(self.load))

    def hop(self, level: int) -> int:
        """Audio samples per code."""
        return self.vqvae.hop_lengths[level]


def from_directory(
    directory: str | Path, *, strict: bool = True, compat: bool = False, dtype: Any = None, mesh: Mesh | None = None
) -> Source:
    """A model directory (checkpoint/bundle.py). ``strict`` and ``compat`` say how labels are looked up.

    The priors compute in ``dtype`` (None: ``default_dtype``), and their matrices are loaded in it. With a ``mesh``
    every array is read straight to where it belongs there; sample inside of ``mesh.use``.
    Where a lower level has other tables than the top (1b_lyrics), a name that only the top knows is unknown below.
    """
    description = bundle.load_description(directory)
    if description.vqvae is None:
        raise UserError(f"model {description.name!r} has no VQ-VAE: train or convert one into {directory}")
    dtype = default_dtype() if dtype is None else dtype
    tables = str(bundle.labels_dir(directory))
    versions = {p.labels.version for p in description.priors.values() if p.labels}
    vocabularies = {version: Vocabulary.load(tables, version) for version in versions}
    top = description.priors.get(max(description.priors, default=0))
    of_top = top.labels.version if top and top.labels else None
    labellers = {
        level: Labeller(
            prior.labels,
            vocabularies[prior.labels.version] if prior.labels else None,
            prior.window_samples,
            strict=strict and prior.labels is not None and prior.labels.version == of_top,
            compat=compat,
        )
        for level, prior in description.priors.items()
    }
    return Source(
        description.name,
        description.vqvae,
        dict(description.priors),
        labellers,
        lambda component: bundle.load_component(
            directory, component, _target(description, component, dtype), _places(description, component, mesh)
        ),
        dtype,
        hashlib.sha256((epath.Path(directory) / bundle.DESCRIPTION).read_bytes()).hexdigest()[:16],
    )


def _target(description: bundle.Description, component: str, dtype: Any) -> Any:
    """A prior's variables with the matrices of its layers in ``dtype``: half the memory, and no casts per step."""
    if component == bundle.VQVAE or dtype == jnp.float32:
        return None
    return {"params": stored(cast(presets.Prior, description.preset(component)), dtype)}


def _places(description: bundle.Description, component: str, mesh: Mesh | None) -> Any:
    """Shardings of a component's variables: a prior's by the table, the VQ-VAE everywhere."""
    if mesh is None or component == bundle.VQVAE:
        return mesh and replicated(mesh)
    preset = cast(presets.Prior, description.preset(component))
    return {"params": shardings_of(stored(preset, jnp.float32), mesh, preset.transformer.num_heads)}


def stored(preset: presets.Prior, dtype: Any) -> Any:
    """Abstract parameters of a prior as they are loaded: the matrices of its layers in ``dtype``."""
    rng = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(functools.partial(Prior(preset, dtype).init, method="initialise"), rng)

    def leaf(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path]
        in_layer = "transformer" in names and names[-1] == "kernel"
        return jax.ShapeDtypeStruct(x.shape, dtype if in_layer else x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, variables["params"])


def default_dtype() -> Any:
    """bfloat16 where a TPU or a GPU computes, float32 on a CPU."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
