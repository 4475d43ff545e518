"""A config, checked once and frozen. Everything below ``cli`` takes this, never a ``ConfigDict``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jukebox_jax import presets
from jukebox_jax.parallel.mesh import axis_sizes, platform
from jukebox_jax.train.optimizer import Options, ema_decay
from jukebox_jax.types import UserError, choose

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Ema:
    """The weight average: ``decay`` 0 means 1 - batch_size / 8000; ``every``: steps between updates."""

    decay: float
    every: int


@dataclass(frozen=True)
class Experiment:
    """One training run. The fields and their defaults are described in ``config.py``."""

    name: str
    model: presets.VQVAE | presets.Prior
    dataset: str
    init_from: str
    seed: int
    steps: int
    batch_size: int
    accumulate: int
    window_samples: int
    shift: bool
    blend: bool
    passes: int
    mesh: Mapping[str, int]
    dtype: str
    optimizer: Options
    ema: Ema
    log_every: int
    save_every: int
    keep: int
    evaluate_every: int
    evaluate_batches: int
    sample_every: int
    vqvae: str = ""  # priors only, like the rest
    remat: bool = False
    remat_layers: tuple[int, ...] = (1,)
    loss_chunks: int = 1

    def __post_init__(self) -> None:
        choose("dtype", self.dtype, ("auto", *DTYPES))
        counts = "steps batch_size accumulate log_every save_every keep loss_chunks"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise UserError(f"config.{name} is {getattr(self, name)}: it must be at least 1")
        if not self.remat_layers or min(self.remat_layers) < 1:
            raise UserError(f"config.remat_layers is {self.remat_layers}: it must be numbers of layers, at least 1")
        if self.batch_size % self.accumulate:
            raise UserError(f"config.accumulate={self.accumulate} does not divide config.batch_size={self.batch_size}")
        for axis in self.mesh:
            choose("mesh axis", axis, ("data", "fsdp", "tensor"))
        if isinstance(self.model, presets.VQVAE):
            _check_window(self.model, self.window_samples)
        else:
            _check_prior(self.model)

    @property
    def component(self) -> str:
        """What is trained: ``vqvae`` or ``prior_level_{i}``."""
        return "vqvae" if isinstance(self.model, presets.VQVAE) else f"prior_level_{self.model.level}"

    @property
    def compute_dtype(self) -> Any:
        """What the model computes in; parameters are always float32."""
        if self.dtype == "auto":
            return jnp.float32 if platform() == "cpu" else jnp.bfloat16
        return DTYPES[self.dtype]

    @property
    def num_heads(self) -> int | None:
        """Heads of a prior's transformer."""
        return self.model.transformer.num_heads if isinstance(self.model, presets.Prior) else None

    @property
    def memory_options(self) -> dict[str, Any]:
        """What ``prior_task`` may do to need less memory."""
        return {name: getattr(self, name) for name in ("remat", "remat_layers", "loss_chunks")}

    def mesh_sizes(self, num_devices: int) -> dict[str, int]:
        """The mesh's axes. A prior's ``fsdp`` of -1 is the most that divides its width; ``data`` has the rest."""
        sizes = axis_sizes(self.mesh, num_devices)
        if isinstance(self.model, presets.Prior) and self.mesh.get("fsdp") == -1:
            fsdp = math.gcd(self.model.transformer.width, sizes["fsdp"])
            sizes |= {"data": sizes["data"] * sizes["fsdp"] // fsdp, "fsdp": fsdp}
        return sizes

    def check_mesh(self, mesh: Mesh | AbstractMesh) -> int:
        """How many devices share a batch; raises ``UserError`` unless they divide it, and ``fsdp`` the width."""
        shards, fsdp = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["fsdp"]
        width = self.model.transformer.width if isinstance(self.model, presets.Prior) else fsdp
        if width % fsdp:
            raise UserError(
                f"config.mesh.fsdp={fsdp} does not divide the width {width}, so every device would hold all weights:"
                f" use {math.gcd(width, fsdp)}, and -1 for config.mesh.data"
            )
        if self.batch_size % (shards * self.accumulate):
            parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
            raise UserError(
                f"config.batch_size={self.batch_size}{parts} does not divide over {shards} devices (data x fsdp):"
                f" use a multiple of {shards * self.accumulate}, or more of config.mesh.tensor"
            )
        return shards

    @property
    def last_step(self) -> int:
        """The number of steps to train: a linear decay ends the run when the rate reaches zero."""
        return int(min(self.steps, self.optimizer.last_step))

    @property
    def ema_decay(self) -> float:
        """Decay of the weight average."""
        return ema_decay(self.batch_size, self.ema.decay or None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``config.json``."""
        return dataclasses.asdict(self)


def from_config(values: Mapping[str, Any]) -> Experiment:
    """Freeze ``config.load(...).to_dict()``."""
    values = dict(values)
    cls = presets.VQVAE if "down_depths" in values["model"] else presets.Prior
    model = presets.from_dict(cls, values.pop("model"))
    if isinstance(model, presets.Prior):
        values["window_samples"] = model.window_samples
    options, ema = Options(**values.pop("optimizer")), Ema(**values.pop("ema"))
    return Experiment(model=model, optimizer=options, ema=ema, **values)


def _check_window(model: presets.VQVAE, samples: int) -> None:
    hop, longest = model.hop_lengths[-1], max(fft for fft, _, _ in model.resolutions)
    if samples % hop or samples < hop:
        raise UserError(f"config.window_samples={samples} is not a multiple of the top level's hop of {hop} samples")
    if samples < max(model.linf_k, longest // 2 + 1):
        least = -(-max(model.linf_k, longest // 2 + 1) // hop) * hop
        raise UserError(f"config.window_samples={samples} is too short for the losses: use at least {least}")


def _check_prior(model: presets.Prior) -> None:
    t = model.transformer
    if t.length != model.context_length + model.merged_lyrics:
        raise UserError(
            f"config.model.transformer.length is {t.length}, but the context has {model.context_length} codes"
            f" and {model.merged_lyrics} merged lyric tokens: set it to {model.context_length + model.merged_lyrics}"
        )
    if t.num_blocks and t.length % t.num_blocks:
        raise UserError(f"config.model.transformer.num_blocks={t.num_blocks} does not divide its length {t.length}")
    if t.attention_width % t.num_heads:
        raise UserError(
            f"config.model.transformer.num_heads={t.num_heads} does not divide the attention width {t.attention_width}"
        )
    if model.lyrics and (model.labels is None or model.labels.num_lyric_tokens != model.lyrics.num_tokens):
        raise UserError(
            f"config.model.lyrics has {model.lyrics.num_tokens} tokens:"
            " config.model.labels.num_lyric_tokens must be that too"
        )
    if (model.conditioner is None) != (model.upsampling is None):
        raise UserError("config.model.conditioner and config.model.upsampling go together: an upsampler has both")


def check_against_vqvae(model: presets.Prior, vqvae: presets.VQVAE, where: str) -> None:
    """Raise ``UserError`` unless the prior models the codes that this VQ-VAE makes."""
    choose(f"level of the VQ-VAE in {where}", model.level, range(vqvae.levels))
    top = model.level == vqvae.levels - 1
    ratio = None if top else vqvae.downsampling[model.level + 1]
    facts = {
        "codebook_size": (model.codebook_size, vqvae.codebook_size),
        "hop_length": (model.hop_length, vqvae.hop_lengths[model.level]),
        "upsampling": (model.upsampling, ratio),
    }
    for name, (ours, theirs) in facts.items():
        if ours != theirs:
            raise UserError(
                f"config.model.{name} is {ours}, but level {model.level} of the VQ-VAE in {where} has {theirs}:"
                f" set --config.model.{name}={theirs}"
            )
    c = model.conditioner
    if c is not None and c.stride**c.down_depth != ratio:
        raise UserError(
            f"config.model.conditioner upsamples by {c.stride}**{c.down_depth},"
            f" but the level above has one code per {ratio}"
        )
