"""Our side of ``peer.py``."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sides import measure
from sides.sizes import RATE, SIZES, label_rows, music, presets_of

VQVAE_CASES = ("encode", "decode", "vqvae_train")


class Maker:
    """Makes weights and inputs, in a process that is gone before anything is measured."""

    def make(self, case: str, size: str, folder: str) -> None:
        """Write ``model`` (ours), ``port`` (the same weights in the port's layout) and ``inputs.npz``."""
        import jax

        from jukebox_jax.checkpoint import bundle
        from jukebox_jax.cli.convert import export_model
        from jukebox_jax.models.vqvae_loss import Bandwidth
        from jukebox_jax.train.task import prior_task, vqvae_task

        sizes, rng = SIZES[size], np.random.default_rng(0)
        vqvae, prior = presets_of(sizes)
        if case in VQVAE_CASES:
            component, preset = "vqvae", vqvae
            variables = jax.jit(vqvae_task(vqvae, Bandwidth()).init)(jax.random.key(0))
            # The same codebook at every level: the port's training forward gives level 0's latents to level 2's.
            codes = 0.1 * rng.standard_normal((vqvae.codebook_size, vqvae.codebook_dim)).astype(np.float32)
            for state in variables["codebook"].values():
                state.update(codebook=codes, sum=codes, count=np.ones(len(codes), np.float32))
            length = int(sizes["seconds"] * RATE) // 128 * 128
            audio = music(2, sizes["chunk"]) if case == "vqvae_train" else music(1, length)
            codes = rng.integers(vqvae.codebook_size, size=(1, length // 8)).astype(np.int32)
            inputs = {"audio": audio, "codes": codes}
        else:
            component, preset = "prior_level_2", prior
            variables = jax.jit(prior_task(prior).init)(jax.random.key(0))
            inputs = {"codes": rng.integers(prior.codebook_size, size=(16, prior.context_length)).astype(np.int32)}
        np.savez(Path(folder) / "inputs.npz", **inputs)  # pyright: ignore[reportArgumentType]
        bundle.save_component(Path(folder) / "model", component, variables, preset)
        export_model(str(Path(folder) / "model"), Path(folder) / "port", "transformers")


class Ours:
    """``prepare``, then each method is one thing to time."""

    run: Any
    outputs: Any

    def prepare(self, case: str, size: str, folder: str) -> dict[str, Any]:
        """Load what ``Maker`` left in the folder; then ``time``, ``sample`` and ``output`` work."""
        import jax

        from jukebox_jax.checkpoint import bundle

        self.jax, self.folder, self.size = jax, Path(folder), SIZES[size]
        self.vqvae, self.prior = presets_of(self.size)
        self.inputs = dict(np.load(self.folder / "inputs.npz"))
        component = "vqvae" if case in VQVAE_CASES else "prior_level_2"
        variables = bundle.load_component(self.folder / "model", component)
        getattr(self, f"_prepare_{component.partition('_')[0]}")(case, variables)
        return {"jax": jax.__version__}

    def _prepare_vqvae(self, case: str, variables: Any) -> None:
        from jukebox_jax.models.vqvae import VQVAE
        from jukebox_jax.models.vqvae_loss import Bandwidth
        from jukebox_jax.models.vqvae_stream import decode_long, encode_long
        from jukebox_jax.train.task import vqvae_task

        model, audio, codes = VQVAE(self.vqvae), self.inputs["audio"], self.inputs["codes"]
        if case == "encode":
            self.run = lambda: encode_long(model, variables, audio)  # what `jukebox encode` runs
            self.outputs = lambda: {f"codes_{i}": np.asarray(codes) for i, codes in enumerate(self.run())}
        elif case == "decode":
            self.run = lambda: np.concatenate(list(decode_long(model, variables, codes, 0)), axis=1)
            self.outputs = lambda: {"audio": np.asarray(self.run())}
        else:
            task = vqvae_task(self.vqvae, Bandwidth(l1=0.1, l2=0.02, spectral=400.0))
            self._train(task, variables, {"audio": audio}, self._experiment(self.vqvae, len(audio)))

    def _prepare_prior(self, case: str, variables: Any) -> None:
        from jukebox_jax.models.prior import Prior
        from jukebox_jax.sample.decode import weights
        from jukebox_jax.train.task import prior_task

        c, codes, rows = self.prior, self.inputs["codes"], self.size["batch"]
        if case == "train":
            experiment = self._experiment(c, rows)
            task = prior_task(c, remat=experiment.remat, loss_chunks=experiment.loss_chunks)
            batch = {"codes": codes[:rows], "y": label_rows(rows, c.window_samples)}
            return self._train(task, variables, batch, experiment)
        self.model, self.params, self.codes = Prior(c), variables["params"], codes
        self.prepared = weights(self.model, self.params)  # once for all windows, as the sampler does
        greedy = partial(self._sample, 1, 0, self.size["new"] // 2, top_k=1)
        self.outputs = lambda: {"greedy": greedy(), "primed": self._sample(1, c.context_length - 16, 16, top_k=1)}
        return None

    def _experiment(self, preset: Any, batch: int) -> Any:
        """What ``jukebox train`` would run by default."""
        from jukebox_jax import config
        from jukebox_jax.presets import Prior
        from jukebox_jax.train import experiment

        c = config.prior(preset) if isinstance(preset, Prior) else config.vqvae(preset)
        c.batch_size = batch
        if "window_samples" in c:
            c.window_samples = self.size["chunk"]
        return experiment.from_config(c.to_dict())

    def _train(self, task: Any, variables: Any, batch: Any, experiment: Any) -> None:
        from jukebox_jax.parallel.mesh import make_mesh, use
        from jukebox_jax.train import optimizer, state
        from jukebox_jax.train.step import jit_step

        jax, transform = self.jax, optimizer.adam(experiment.optimizer)
        mesh = make_mesh(dict(experiment.mesh), jax.devices()[:1])
        rng = jax.random.key(1)
        with use(mesh):
            where = state.placed(state.abstract(task.init, transform, rng), mesh, experiment.num_heads)
            self.state = state.from_variables(variables, transform, where)
            step = jit_step(task.loss, experiment, where, mesh, task.gradients)

        def run() -> dict[str, Any]:
            with use(mesh):
                self.state, metrics = step(self.state, task.frozen, batch, rng)
            return jax.block_until_ready(metrics)

        self.run = run
        self.outputs = lambda: {"loss": np.asarray(run()["loss"])}

    def output(self) -> None:
        np.savez(self.folder / "ours.npz", **self.outputs())  # pyright: ignore[reportArgumentType]

    def time(self) -> float:
        return measure.seconds(self.run)

    def _sample(self, batch: int, given: int, new: int, progress: Any = None, top_k: int = 0) -> np.ndarray:
        from jukebox_jax.ops.logits import Settings
        from jukebox_jax.sample.decode import sample_window

        keys = self.jax.random.split(self.jax.random.key(0), batch)
        y = label_rows(batch, self.prior.window_samples)
        drawn = sample_window(
            self.model, self.params, self.codes[:batch, :given], y, None, keys, start=0, num_steps=new,
            settings=Settings(top_k=top_k), progress=progress, prepared=self.prepared,
        )  # fmt: skip
        return np.asarray(drawn.codes)

    def sample(self, batch: int, given: int, new: int, chunk: int | None = None) -> float:
        """Seconds. ``chunk`` is the port's: a prompt is one forward here."""
        return measure.seconds(lambda: self._sample(batch, given, new))

    def first_and_last(self) -> list[float]:
        """Seconds of the first and of the last ``new`` tokens of a whole window."""
        marks = {0: time.perf_counter()}
        self._sample(1, 0, self.prior.context_length, lambda done: marks.update({done: time.perf_counter()}))
        new, end = self.size["new"], self.prior.context_length
        return [marks[new] - marks[0], marks[end] - marks[end - new]]
