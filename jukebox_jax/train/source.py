"""Where a run starts from: the VQ-VAE of a prior, and the model that is fine-tuned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jukebox_jax import presets
from jukebox_jax.checkpoint import bundle
from jukebox_jax.data.bandwidth import bandwidth
from jukebox_jax.models.vqvae_loss import Bandwidth
from jukebox_jax.ops import quantize
from jukebox_jax.train.experiment import Experiment, check_against_vqvae
from jukebox_jax.train.state import TrainState, variables
from jukebox_jax.types import UserError


def with_source(experiment: Experiment, workdir: Path) -> tuple[Experiment, presets.VQVAE]:
    """The experiment with the architecture of its ``init_from``, and the VQ-VAE that it trains or trains on."""
    if experiment.init_from:
        model = bundle.load_description(experiment.init_from).preset(experiment.component)
        experiment = dataclasses.replace(experiment, model=model)
    if isinstance(experiment.model, presets.VQVAE):
        return experiment, experiment.model
    where = vqvae_dir(experiment, workdir)
    if not bundle.is_model_dir(where):
        raise UserError(
            f"a prior needs a trained VQ-VAE, and {where} is no model directory: train the VQ-VAE with this --workdir"
            " first, or give --config.vqvae=MODEL_DIR"
        )
    vqvae = bundle.load_description(where).preset("vqvae")
    assert isinstance(vqvae, presets.VQVAE)
    check_against_vqvae(experiment.model, vqvae, str(where))
    return experiment, vqvae


def vqvae_dir(experiment: Experiment, workdir: Path) -> Path:
    """The model directory whose VQ-VAE a prior trains on."""
    return Path(experiment.vqvae or experiment.init_from or workdir)


def load_vqvae(experiment: Experiment, workdir: Path, mesh: Mesh) -> Any:
    """The frozen VQ-VAE's variables, a copy on every device."""
    return bundle.load_component(
        vqvae_dir(experiment, workdir), "vqvae", shardings=NamedSharding(mesh, PartitionSpec())
    )


def fine_tuned(experiment: Experiment, where: TrainState) -> Any:
    """The variables of ``init_from``, placed as in ``where``.

    Codebooks get the running sums of spec/vqvae.md section 2.6: an imported model has none.
    """
    abstract = variables(where)
    loaded = bundle.load_component(
        experiment.init_from, experiment.component, abstract, jax.tree.map(lambda leaf: leaf.sharding, abstract)
    )
    if not isinstance(experiment.model, presets.VQVAE):
        return loaded
    codebooks = {}
    for level, hop in enumerate(experiment.model.hop_lengths):
        old = loaded["codebook"][f"level_{level}"]
        state = quantize.restore_state(old["codebook"], experiment.window_samples // hop, jax.device_count())
        codebooks[f"level_{level}"] = state._asdict()
    return {**loaded, "codebook": codebooks}


def measured_bandwidth(experiment: Experiment, directory: Path) -> Bandwidth:
    """The normalisers of the VQ-VAE's losses: measured once per run, kept in ``directory/bandwidth.json``."""
    file = directory / "bandwidth.json"
    key = {"dataset": experiment.dataset, "window_samples": experiment.window_samples}
    known = json.loads(file.read_text()) if file.exists() else {}
    if {name: known.get(name) for name in key} != key:
        known = key | bandwidth(experiment.dataset, experiment.window_samples)
        if jax.process_index() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            staged = file.with_suffix(".new")  # other processes may be looking for it now
            staged.write_text(json.dumps(known, indent=1) + "\n")
            staged.replace(file)
    return Bandwidth(jnp.float32(known["l1"]), jnp.float32(known["l2"]), jnp.float32(known["spec"]))
