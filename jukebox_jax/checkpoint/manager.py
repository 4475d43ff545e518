"""Training state on disk: saved in the background every so many steps, the last few kept, resumed exactly.

Thin on purpose: Orbax's ``CheckpointManager`` does the work, on one process or many. A save that was cut off is
never seen again, since a step's directory gets its name only when it is complete.
"""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from jukebox_jax.checkpoint.mismatch import Mismatch, mismatch
from jukebox_jax.types import UserError


def make_manager(
    directory: epath.PathLike, *, save_every: int, keep: int = 2, background: bool = True
) -> ocp.CheckpointManager:
    """A manager of ``directory/STEP``. Close it (or use ``with``) so that a save in the background completes.

    ``save_every``: steps between saves; ``keep``: how many of the latest to keep.
    """
    if save_every < 1 or keep < 1:
        raise UserError(f"checkpoints need save_every >= 1 and keep >= 1, not {save_every} and {keep}")
    path = epath.Path(directory)
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=save_every,
        max_to_keep=keep,
        enable_async_checkpointing=background,
        create=True,
    )
    path = path if "://" in str(directory) else path.absolute()
    return ocp.CheckpointManager(path, options=options, item_handlers=ocp.StandardCheckpointHandler())


def save(manager: ocp.CheckpointManager, step: int, state: Any, *, force: bool = False) -> bool:
    """Start saving ``state`` (any pytree of arrays) if ``step`` is due or ``force``; True if it did.

    Returns once the arrays are copied to the host, so the caller may donate them to the next step.
    """
    if step in manager.all_steps():
        return False
    return manager.save(step, args=ocp.args.StandardSave(state), force=force)  # type: ignore[call-arg]


def restore_latest(manager: ocp.CheckpointManager, abstract_state: Any) -> tuple[Any, int] | None:
    """``(state, step)`` of the latest save, or None if there is none yet.

    ``abstract_state``: ``jax.ShapeDtypeStruct`` leaves with the shardings to restore into. ``UserError`` if the saved
    state has another structure or other shapes: the config changed since.
    """
    step = manager.latest_step()
    if step is None:
        return None
    # Checked here: Orbax finds out in the middle of reading, with a traceback.
    found = {name: tuple(leaf.shape) for name, leaf in _flat(manager.item_metadata(step).tree).items()}
    expected = {name: _stored_shape(leaf) for name, leaf in _flat(abstract_state).items()}
    error = mismatch(f"the training state in {manager.directory}/{step}", found, expected)
    if error is not None:
        summary = f"{error.summary}: use the config it was saved with, or another --workdir"
        raise Mismatch(summary, error.table)
    return manager.restore(step, args=ocp.args.StandardRestore(abstract_state)), step  # type: ignore[call-arg]


def _flat(tree: Any) -> dict[str, Any]:
    return ocp.tree.to_flat_dict(tree, sep="/")


def _stored_shape(leaf: Any) -> tuple[int, ...]:
    """The shape on disk: a random key is stored as its integers."""
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return tuple(jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape)
