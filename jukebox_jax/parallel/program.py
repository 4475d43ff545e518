"""A real program before there are arrays or devices for it: what `jukebox certify` compiles."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, Mesh

from jukebox_jax.parallel.mesh import use


class Program(NamedTuple):
    """A jitted function and abstract, sharded arguments. ``mesh`` may be over devices of an ahead-of-time topology."""

    fn: Any
    args: tuple[Any, ...]
    mesh: Mesh | AbstractMesh
    extras: dict[str, Any]  # numbers to judge it by: what they are is the maker's to say

    def lower(self, platform: str | None = None) -> Any:
        """Lowered for the mesh's devices (``.compile()`` it), or for another platform such as ``"cuda"``."""
        with use(self.mesh):
            traced = self.fn.trace(*self.args)
            return traced.lower(lowering_platforms=(platform,)) if platform else traced.lower()
