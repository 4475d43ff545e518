"""Training state on disk: saved in the background every so many steps, the last few kept, resumed exactly.

Thin on purpose: Orbax's ``CheckpointManager`` does the work, on one process or many. A save that was cut off is
never seen again, since a step's directory gets its name only when it is complete.
"""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

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
    return ocp.CheckpointManager(path if "://" in str(directory) else path.absolute(), options=options)


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
    try:
        state = manager.restore(step, args=ocp.args.StandardRestore(abstract_state))  # type: ignore[call-arg]
        jax.tree.map(_check, abstract_state, state)
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the training state in {manager.directory}/{step} does not fit this config: "
            f"use the config it was saved with, or another --workdir ({reason})"
        ) from error
    return state, step


def _check(wanted: Any, leaf: Any) -> None:
    if wanted.shape != leaf.shape:
        raise ValueError(f"a saved array has shape {leaf.shape}, expected {wanted.shape}")
