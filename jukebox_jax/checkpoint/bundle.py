"""A model directory: everything that sampling needs, one Orbax checkpoint per component.

::

    MODEL/model.json        {"format": 1, "name", "vqvae", "priors": {"level_0": ...}, "provenance": {...}}
    MODEL/vqvae/            Orbax PyTree checkpoint of {"params": ..., "codebook": ...}
    MODEL/prior_level_0/    Orbax PyTree checkpoint of {"params": ...}
    MODEL/labels/           artist and genre id files

Components are saved and restored one at a time, straight into the shardings asked for. ``model.json`` is replaced
atomically, and a component's directory only when the new one is complete.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from jukebox_jax import presets
from jukebox_jax.checkpoint.mismatch import require_match
from jukebox_jax.checkpoint.stream import StoredArray, StreamedArray, open_array, stream_checkpointer
from jukebox_jax.types import UserError, choose

FORMAT = 1
DESCRIPTION = "model.json"
VQVAE = "vqvae"
LABELS = "labels"


@dataclass(frozen=True)
class Description:
    """What ``model.json`` says. ``provenance`` is keyed by component name."""

    name: str
    vqvae: presets.VQVAE | None = None
    priors: Mapping[int, presets.Prior] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        return ((VQVAE,) if self.vqvae else ()) + tuple(prior_component(level) for level in sorted(self.priors))

    def preset(self, component: str) -> presets.VQVAE | presets.Prior:
        """The preset of a component; ``UserError`` if this model does not have it."""
        if component not in self.components:
            have = ", ".join(self.components) or "nothing yet"
            raise UserError(f"model {self.name!r} has no {component}: it has {have}")
        return self.priors[_level(component)] if component != VQVAE else typing.cast(presets.VQVAE, self.vqvae)


def prior_component(level: int) -> str:
    """The component name of the prior of ``level`` (0 = bottom)."""
    return f"prior_level_{level}"


def labels_dir(directory: epath.PathLike) -> epath.Path:
    """Where the artist and genre id files of a model are."""
    return epath.Path(directory) / LABELS


def is_model_dir(directory: epath.PathLike) -> bool:
    return (epath.Path(directory) / DESCRIPTION).exists()


def load_description(directory: epath.PathLike) -> Description:
    """Read ``model.json``. Raises ``UserError`` if ``directory`` is no model directory or the file is damaged."""
    file = epath.Path(directory) / DESCRIPTION
    if not file.exists():
        raise UserError(
            f"{directory} is not a model directory (it has no {DESCRIPTION}): "
            "make one with `jukebox convert` or `jukebox train`"
        )
    try:
        data = json.loads(file.read_text())
        if data["format"] != FORMAT:
            raise UserError(f"{file} has format {data['format']!r}; this version reads format {FORMAT}")
        priors = {int(k.removeprefix("level_")): presets.from_dict(presets.Prior, v) for k, v in data["priors"].items()}
        vqvae = presets.from_dict(presets.VQVAE, data["vqvae"]) if data["vqvae"] else None
        return Description(data["name"], vqvae, priors, data.get("provenance", {}))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def save_component(
    directory: epath.PathLike,
    component: str,
    variables: Any,
    preset: presets.VQVAE | presets.Prior,
    *,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write one component and its preset. All processes call it; the first one writes ``model.json``.

    ``variables`` is ``{"params": ...}`` (with ``"codebook"`` for the VQ-VAE) of jax or numpy arrays, or of
    ``StreamedArray`` alone, which are written piece by piece. ``provenance`` replaces what was known of this
    component's origin.
    """
    _check_component(component)
    kind = VQVAE if isinstance(preset, presets.VQVAE) else prior_component(preset.level)
    if component != kind:
        raise UserError(f"this preset describes {kind}: it cannot be saved as {component}")
    directory = epath.Path(directory).absolute() if "://" not in str(directory) else epath.Path(directory)
    if is_model_dir(directory):
        load_description(directory)  # refuse to touch a damaged or newer directory
    directory.mkdir(parents=True, exist_ok=True)
    target, staged = directory / component, directory / f"{component}.new"
    streamed = any(isinstance(leaf, StreamedArray) for leaf in jax.tree.leaves(variables))
    with stream_checkpointer() if streamed else _checkpointer() as checkpointer:
        checkpointer.save(staged, args=ocp.args.PyTreeSave(variables), force=True)  # type: ignore[call-arg]
    if jax.process_index() == 0:
        if target.exists():
            target.rmtree()
        staged.rename(target)
        _update_description(directory, component, preset, name, provenance)
    ocp.multihost.sync_global_processes(f"save_component:{component}")


def component_shapes(directory: epath.PathLike, component: str) -> Any:
    """The stored tree as ``jax.ShapeDtypeStruct``, without reading the arrays."""
    path = _component_path(directory, component)
    with _checkpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(path).item_metadata.tree
        except Exception as error:
            raise UserError(f"{path} is damaged: {_one_line(error)}") from error
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), metadata)


def load_component(
    directory: epath.PathLike,
    component: str,
    target: Any = None,
    shardings: Any = None,
    dtype: Any = None,
) -> Any:
    """Restore one component, each array straight into its sharding.

    Args:
      target: abstract variables (``jax.eval_shape`` of ``init``); a stored tree of other names or shapes is a
        ``UserError`` with a table. None takes whatever is stored.
      shardings: a tree like the variables, or one ``Sharding`` for all; None restores to the first local device.
      dtype: of the floating-point ``params`` (codebooks stay float32); None means the target's dtypes, or float32.
    Returns: ``{"params": ...}`` or ``{"params": ..., "codebook": ...}`` of ``jax.Array``.
    """
    stored = component_shapes(directory, component)
    path = _component_path(directory, component)
    if target is not None:
        require_match(f"{path}", _shapes(stored), _shapes(target))
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        sharding = shardings or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: sharding, stored)

    wanted = target if target is not None else jax.tree.map(_default_dtype, stored)
    if dtype is not None:
        wanted = {**wanted, "params": jax.tree.map(lambda leaf: _cast(leaf, dtype), wanted["params"])}
    item = jax.tree.map(lambda w, s: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=s), dict(wanted), shardings)
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    largest = max((leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(item)), default=0)
    with _checkpointer(in_flight=2 * largest) as checkpointer:
        try:
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item, restore_args=restore_args))  # type: ignore[call-arg]
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"{path} could not be read: {_one_line(error)}") from error


def open_component(directory: epath.PathLike, component: str) -> Any:
    """The component's tree with leaves that stay on disk: index one (``StoredArray``) to read that part."""
    stored, path = component_shapes(directory, component), _component_path(directory, component)
    context = ts.Context()

    def leaf(keys: Any, _: Any) -> StoredArray:
        return open_array(path, [str(key.key) for key in keys], context)

    return jax.tree_util.tree_map_with_path(leaf, stored)


def _default_dtype(leaf: Any) -> Any:
    return _cast(leaf, np.float32)


def _cast(leaf: Any, dtype: Any) -> Any:
    inexact = jax.numpy.issubdtype(leaf.dtype, np.inexact)
    return jax.ShapeDtypeStruct(leaf.shape, dtype if inexact else leaf.dtype)


def _checkpointer(in_flight: int = 0) -> ocp.Checkpointer:
    """``in_flight``: bytes that a restore may hold in host memory on their way to the devices."""
    limit = max(4, -(-in_flight // 10**9))
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(restore_concurrent_gb=limit))


def _component_path(directory: epath.PathLike, component: str) -> epath.Path:
    _check_component(component)
    load_description(directory).preset(component)
    path = epath.Path(directory) / component
    path = path if "://" in str(directory) else path.absolute()
    if not path.exists():
        complete = path.parent / f"{component}.new"  # a save that was cut off just before its last step
        if complete.exists():
            return complete
        raise UserError(f"{directory} lists {component} in {DESCRIPTION}, but {path} is missing")
    return path


def _check_component(component: str) -> None:
    if component != VQVAE and not re.fullmatch(r"prior_level_\d+", component):
        choose("component", component, [VQVAE, *map(prior_component, range(3))])


def _level(component: str) -> int:
    return int(component.rpartition("_")[2])


def _update_description(
    directory: epath.Path,
    component: str,
    preset: presets.VQVAE | presets.Prior,
    name: str | None,
    provenance: Mapping[str, Any] | None,
) -> None:
    if is_model_dir(directory):
        old = load_description(directory)
    else:
        old = Description(name or directory.name)
    priors, vqvae = dict(old.priors), old.vqvae
    origin = {k: v for k, v in old.provenance.items() if k != component}
    if provenance:
        origin[component] = dict(provenance)
    if isinstance(preset, presets.VQVAE):
        vqvae = preset
    else:
        priors[preset.level] = preset
    data = {
        "format": FORMAT,
        "name": name or old.name,
        "vqvae": dataclasses.asdict(vqvae) if vqvae else None,
        "priors": {f"level_{level}": dataclasses.asdict(priors[level]) for level in sorted(priors)},
        "provenance": origin,
    }
    staged = directory / f"{DESCRIPTION}.new"
    staged.write_text(json.dumps(data, indent=1) + "\n")
    staged.replace(directory / DESCRIPTION)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
