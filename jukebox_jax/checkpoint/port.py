"""The names of the transformers port, in terms of the original's (spec/models.md section 8).

Layouts of the tensors are the original's; only names differ: ``vqvae.`` and ``priors.N.`` in front, where N counts
from the top level down. A tied output may be left out of such files, since it is the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jukebox_jax.checkpoint.mapping import Entry, Tensor
from jukebox_jax.types import UserError

_RESIDUAL = r"(?:model|blocks)\.(\d+)\.model\.([13])\."
_RULES: tuple[tuple[str, str], ...] = (
    # encoder: strided convolution and residual stack of stage i, then the last convolution
    (rf"^(encoders\..*)\.model\.(\d+)\.1\.{_RESIDUAL}", "{0}.downsample_block.{odd}.resnet_block.{2}.conv1d_{conv}."),
    (r"^(encoders\..*)\.model\.(\d+)\.0\.", "{0}.downsample_block.{even}."),
    (r"^(encoders\..*)\.model\.(\d+)\.(?=weight|bias)", "{0}.proj_out."),
    # decoder and conditioner: the first convolution counts as stage 0
    (rf"^(.*)\.model\.(\d+)\.0\.{_RESIDUAL}", "{0}.upsample_block.{up}.resnet_block.{2}.conv1d_{conv}."),
    (r"^(.*)\.model\.(\d+)\.1\.", "{0}.upsample_block.{up_odd}."),
    (r"^(.*)\.model\.0\.(?=weight|bias)", "{0}.proj_in."),
)
_PLAIN: tuple[tuple[str, str], ...] = (
    (r"^conditioner_blocks\.0\.cond\.", "conditioner_blocks.upsampler."),
    (r"^conditioner_blocks\.0\.ln\.", "conditioner_blocks.layer_norm."),
    (r"^conditioner_blocks\.0\.", "conditioner_blocks."),
    (r"^y_emb\.(bow_genre|artist)_emb\.emb\.", r"metadata_embedding.\1_emb."),
    (r"^y_emb\.", "metadata_embedding."),
    (r"^prime_prior\.", "encoder."),
    (r"^prime_state_proj\.", "encoder.proj_in."),
    (r"^prime_state_ln\.", "encoder.final_layer_norm."),
    (r"^prime_x_out\.", "encoder.lm_head."),
    (r"^prior\.x_out\.", "prior.fc_proj_out."),
    (r"(^|\.)x_emb\.", r"\1embed_tokens."),
    (r"\.ln_([01])\.", r".layer_norm_\1."),
    (r"\.w$", ".weight"),
    (r"\.b$", ".bias"),
    (r"\.k$", ".codebook"),
)


def port_name(name: str) -> str:
    """An original tensor name -> the port's, without the component's prefix."""
    for pattern, template in _RULES:
        match = re.match(pattern, name)
        if match:
            groups = match.groups()
            index = int(groups[1]) if len(groups) > 1 else 0
            conv = {"1": 1, "3": 2}[groups[3]] if len(groups) > 3 else 0
            head = template.format(
                *groups, even=2 * index, odd=2 * index + 1, up=2 * index - 2, up_odd=2 * index - 1, conv=conv
            )
            name = head + name[match.end() :]
            break
    for pattern, replacement in _PLAIN:
        name = re.sub(pattern, replacement, name)
    return name


def prefix(component: str, levels: int) -> str:
    """``vqvae.`` or ``priors.N.`` of a component ("vqvae", "prior_level_2") in a model of ``levels`` levels."""
    if component == "vqvae":
        return "vqvae."
    return f"priors.{levels - 1 - int(component.rpartition('_')[2])}."


def is_port(names: Mapping[str, object]) -> bool:
    """Whether a file's tensor names are the port's."""
    return bool(names) and all(name.startswith(("vqvae.", "priors.")) for name in names)


def port_entries(entries: Sequence[Entry], head: str) -> list[Entry]:
    """The table of a component under the port's names. ``head``: see ``prefix``."""
    rename = lambda name: head + port_name(name)  # noqa: E731
    return [e._replace(name=rename(e.name), same_as=e.same_as and rename(e.same_as)) for e in entries]


def select(
    what: str, tensors: Mapping[str, Tensor], entries: Sequence[Entry], head: str
) -> tuple[dict[str, Tensor], list[Entry]]:
    """The tensors of one component of a port's file, and its entries, without tied outputs that the file leaves out."""
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(head)}
    if not found:
        raise UserError(f"{what} has no tensor named {head}*")
    renamed = port_entries(entries, head)
    return found, [entry for entry in renamed if entry.same_as is None or entry.name in found]
