"""How the devices are arranged.

Axes: ``data`` replicates the model, ``fsdp`` shards parameters and the batch, ``tensor`` shards heads and hidden units.
With several slices ``data`` (or, if it is 1, ``fsdp``) runs across the slow network between them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from jukebox_jax.types import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(shape: dict[str, int] | None = None, devices: Sequence[Any] | None = None, num_slices: int = 1) -> Mesh:
    """A mesh over ``data``, ``fsdp`` and ``tensor``.

    Args:
        shape: sizes of the axes; missing ones are 1, and one may be -1: what the devices leave for it.
            Without a shape all devices go to ``fsdp``.
        devices: default all; may be those of an ahead-of-time topology.
        num_slices: TPU slices (joined by the data-centre network) that the devices come from.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = list(axis_sizes(shape, len(devices)).values())
    return Mesh(_arrange(devices, sizes, num_slices), AXES, axis_types=(AxisType.Auto,) * 3)


def parse_mesh(text: str | None) -> dict[str, int] | None:
    """``--mesh``'s text, such as ``data=4,fsdp=64``: sizes, 1 where an axis is not named."""
    if text is None:
        return None
    sizes: dict[str, int] = {axis: 1 for axis in AXES}
    for item in text.split(","):
        name, _, size = item.partition("=")
        if name not in sizes or not size.lstrip("-").isdigit():
            raise UserError(f"--mesh={text}: write sizes of data, fsdp and tensor such as data=4,fsdp=64")
        sizes[name] = int(size)
    return sizes


def axis_sizes(shape: Mapping[str, int] | None, count: int) -> dict[str, int]:
    """Sizes of all three axes for ``count`` devices; see ``make_mesh``."""
    shape = {"fsdp": -1} if shape is None else dict(shape)
    unknown = set(shape) - set(AXES)
    if unknown:
        raise UserError(f"unknown mesh axis {sorted(unknown)[0]!r}: allowed are {', '.join(AXES)}")
    sizes = [int(shape.get(axis, 1)) for axis in AXES]
    rest = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and rest > 0 and count % rest == 0:
        sizes = [count // rest if s == -1 else s for s in sizes]
    if min(sizes) < 1 or math.prod(sizes) != count:
        wanted = " x ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        raise UserError(f"mesh {wanted} does not fit {count} devices: the sizes must multiply to {count}")
    return dict(zip(AXES, sizes, strict=True))


def abstract_mesh(shape: Mapping[str, int] | None, count: int, platform: str) -> AbstractMesh:
    """A mesh of ``count`` devices of a platform that jax need not know here: enough to lower a program."""
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    sizes = tuple(axis_sizes(shape, count).values())
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


def _arrange(devices: list, sizes: list[int], num_slices: int) -> np.ndarray:
    if num_slices > 1:
        across = next((i for i in (0, 1) if sizes[i] % num_slices == 0), None)
        if across is None:
            raise UserError(
                f"{num_slices} slices need a data or fsdp axis that they divide, not {sizes[0]} and {sizes[1]}"
            )
        outer = [num_slices if i == across else 1 for i in range(3)]
        inner = [s // o for s, o in zip(sizes, outer, strict=True)]
        return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    if devices[0].platform == "tpu" and len(devices) > 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(sizes)


@contextlib.contextmanager
def use(mesh: Mesh | AbstractMesh):
    """Make ``mesh`` the one that ``sharding.constrain`` speaks of. An abstract one is enough to trace and lower."""
    with jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh):
        yield mesh


def platform() -> str:
    """``"tpu"``, ``"gpu"`` or ``"cpu"``: where a program traced now will run. That is the platform of the mesh in use,
    which may be one of an ahead-of-time topology; without a mesh, jax's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = device.platform if device else jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def alone() -> bool:
    """Whether a program traced now runs on one CPU: small steps, one after the other, then suit cache and memory."""
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1
