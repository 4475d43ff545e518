"""Weight averages along a run, their checkpoints and Adam's moments: goldens ``train_ema*``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jukebox_jax import presets
from jukebox_jax.checkpoint import openai
from jukebox_jax.checkpoint.torch_reader import Checkpoint
from jukebox_jax.cli.verify_cases import steps
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.train.optimizer import Options, ema_decay, learning_rate, update_ema


class Tracks:
    """Follows a run: projections of the weights and of their averages after each step, and what was saved."""

    def __init__(
        self, case: Case, report: Report, preset: presets.VQVAE | presets.Prior, options: Options, residuals: str = ""
    ):
        self.case, self.report, self.preset, self.options = case, report, preset, options
        self.residuals = residuals
        self.wanted = any(name.startswith("ema_proj/") for name in case.arrays)
        self.rows: dict[str, dict[str, list[float]]] = {"raw": {}, "ema": {}, "cpu_ema": {}}
        self.cpu: Any = None
        self.states: list[Any] = []
        self.every = int(case.hps.get("cpu_ema_freq") or 1)
        self.decay = ema_decay(int(case.hps["bs"]), case.hps.get("mu"))

    def start(self, state: Any) -> None:
        """The initial weights, where the slow average starts too."""
        self.cpu = jax.tree.map(jnp.copy, state.ema)

    def add(self, state: Any) -> None:
        """The state after a step."""
        self.states.append(state)
        if not self.wanted:
            return
        trees = {"raw": state.params, "ema": state.ema}
        if self.cpu is not None:
            self.cpu = update_ema(self.cpu, state.params, state.optimizer.count, self.decay, self.every)
            trees["cpu_ema"] = self.cpu
        for kind, tree in trees.items():
            for name, values in self.named(tree, state).items():
                self.rows[kind].setdefault(name, []).append(steps.projection(values))

    def named(self, params: Any, state: Any) -> dict[str, Any]:
        return steps.named({"params": params, **state.model_state}, self.preset, self.residuals)

    def finish(self) -> None:
        """Compare everything that the case has of it."""
        if not self.wanted:
            return
        self._compare_table()
        step = self.options.learning_rate
        loose = steps.unsteady(self.preset)
        for kind, rows in self.rows.items():
            for name, values in rows.items():
                walk = np.arange(1, len(values) + 1) * step * _weight(self.report, name, loose)
                self.report.close(f"{kind}_proj/{name}", values, extra=float(walk[-1]))
        for kind, tree in (("raw", self.states[-1].params), ("cpu_ema", self.cpu)):
            for name, values in (self.named(tree, self.states[-1]) if tree is not None else {}).items():
                if self.case.has(array := f"end_{kind}/{name}"):
                    total = step * len(self.states)
                    steps.compare_weights(self.report, array, values, self.case.input(array), total, loose.get(name))

    def _compare_table(self) -> None:
        for row in self.case.hps.get("mu_table", ()):
            ours = ema_decay(row["bs"] * row["ngpus"], row["mu"])
            good = abs(ours - row["result"]) < 1e-12
            self.report.same(f"mu of {row['bs']} x {row['ngpus']}, {row['mu']}", row["result"] if good else ours,
                             row["result"])  # fmt: skip

    def saved(self) -> tuple[Checkpoint, Any] | None:
        """The last checkpoint that the trainer saved, and our state at that step."""
        found = sorted(self.case.folder.glob("checkpoint_latest.pth.tar")) or sorted(
            self.case.folder.glob("checkpoint_step_*.pth.tar")
        )
        if not found:
            return None
        every = int(self.case.hps["save_iters"])
        iteration = max(n for n in range(1, len(self.states) + 1) if n % every == 1 or every == 1)
        return self.case.checkpoint(found[-1].name.removesuffix(".pth.tar")), self.states[iteration - 1]

    def compare_saved(self) -> None:
        """Averaged weights, current buffers and the raw run's moments in the trainer's checkpoint."""
        saved = self.saved()
        if saved is None:
            return
        checkpoint, state = saved
        with self.report.part(checkpoint.path.name):
            ours = self.named(state.ema, state)
            step, loose = self.options.learning_rate * int(state.step), steps.unsteady(self.preset)
            for name, tensor in checkpoint.tensors.items():
                if name in ours:
                    steps.compare_weights(
                        self.report, f"saved {name}", ours[name], tensor.read(), step, loose.get(name)
                    )
            self.report.same("saved step", checkpoint.step, int(state.step))
            rate = float(learning_rate(self.options, state.optimizer.count))
            groups = (checkpoint.opt or {}).get("param_groups") or [{}]
            if "lr" in groups[0]:
                theirs = float(groups[0]["lr"])
                self.report.same("saved lr", theirs if np.isclose(rate, theirs, rtol=1e-5) else rate, theirs)
            compare_moments(self.report, checkpoint, self.preset, state, self.residuals, "saved")


def _weight(report: Report, name: str, loose: dict[str, slice]) -> float:
    """How far a projection moves when the unsteady columns of a parameter move by one."""
    end = f"end_raw/{name}"
    if name not in loose or end not in report.case.arrays:
        return 0.0
    return float(np.abs(steps.wave(report.case.arrays[end].size))[loose[name]].sum())


def compare_moments(
    report: Report,
    checkpoint: Checkpoint,
    preset: presets.VQVAE | presets.Prior,
    state: Any,
    residuals: str,
    prefix: str,
) -> None:
    """Adam's two moments of the original against ours, under the original's names."""
    if checkpoint.opt is None:
        return
    theirs = openai.import_moments(checkpoint, preset)
    report.same(f"{prefix} adam step", theirs["step"], int(state.optimizer.count))
    for kind, ours in (("exp_avg", state.optimizer.mean), ("exp_avg_sq", state.optimizer.variance)):
        mine = steps.named({"params": ours, **state.model_state}, preset, residuals)
        for name, expected in steps.named({**theirs[kind], **state.model_state}, preset, residuals).items():
            expected = np.asarray(expected, np.float64)
            allowed = 1e-4 * np.abs(expected) + 1e-4 * np.abs(expected).max(initial=0.0)
            report.compare(f"{prefix} {kind} {name}", mine[name], expected, allowed, "1e-04")
