"""Architectures: what a model is. Experiments (batch size, learning rate, mesh) live in ``configs/``.

Every model of the paper and of the original's README is here, with the exact sizes of the released checkpoints
(models.md of the specification; parameter counts are tested in ``tests/models/test_presets.py``). No jax is imported.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, replace

from jukebox_jax.types import UserError, choose


@dataclass(frozen=True)
class VQVAE:
    """Independent encoder, codebook and decoder per level (paper section 3). Lengths are in samples."""

    sample_rate: int = 44_100
    down_depths: tuple[int, ...] = (3, 2, 2)  # strided convolutions a level adds
    strides: tuple[int, ...] = (2, 2, 2)
    width: int = 32
    depth: int = 4  # residual blocks after each strided convolution
    multipliers: tuple[int, ...] | None = (2, 1, 1)  # of width and depth, per level
    hidden_ratio: float = 1.0
    dilation_growth: int = 3
    dilation_cycle: int | None = None
    reverse_decoder_dilation: bool = True
    codebook_size: int = 2048
    codebook_dim: int = 64
    use_bottleneck: bool = True
    # training
    codebook_decay: float = 0.99
    revival_threshold: float = 1.0
    commitment_weight: float = 0.02
    spectral_weight: float = 0.0
    multispectral_weight: float = 1.0
    loss: str = "lmix"  # l1, l2, linf, lmix
    lmix_l1: float = 0.0
    lmix_l2: float = 1.0
    lmix_linf: float = 0.02
    linf_k: int = 2048
    nonrelative_spectral: bool = True
    resolutions: tuple[tuple[int, int, int], ...] = (
        (2048, 240, 1200),
        (1024, 120, 600),
        (512, 50, 240),
    )  # fft, hop, window

    @property
    def levels(self) -> int:
        return len(self.down_depths)

    @property
    def downsampling(self) -> tuple[int, ...]:
        """Length ratio between a level and the one below it (level 0: the audio)."""
        return tuple(s**d for s, d in zip(self.strides, self.down_depths, strict=True))

    @property
    def hop_lengths(self) -> tuple[int, ...]:
        """Audio samples per code, per level: (8, 32, 128) for the released model."""
        return tuple(math.prod(self.downsampling[: level + 1]) for level in range(self.levels))

    def level_width_depth(self, level: int) -> tuple[int, int]:
        factor = self.multipliers[level] if self.multipliers else 1
        return self.width * factor, self.depth * factor


@dataclass(frozen=True)
class Transformer:
    """The autoregressive core (spec/prior.md sections 2-5). ``length`` counts every position, lyrics included."""

    length: int
    width: int
    depth: int
    num_heads: int = 1
    num_blocks: int | None = None
    pattern: str = "dense"  # a key of models/pattern.py:PATTERNS
    attention_ratio: float = 0.25  # heads x head_dim / width
    mlp_ratio: float = 1.0
    spread: int | None = None
    residual_scale: bool = False  # scale each layer's contribution by 1 / depth
    init_scale: float = 1.0
    zero_init: bool = False

    @property
    def attention_width(self) -> int:
        return int(self.attention_ratio * self.width)

    @property
    def head_dim(self) -> int:
        return self.attention_width // self.num_heads

    @property
    def mlp_dim(self) -> int:
        return int(self.mlp_ratio * self.width)

    @property
    def block_length(self) -> int:
        return self.length // self.num_blocks if self.num_blocks else self.length


@dataclass(frozen=True)
class Conditioner:
    """WaveNet-like upsampler of the level above (spec/prior.md section 6)."""

    width: int = 1024
    depth: int = 16  # residual blocks per upsampling stage
    down_depth: int = 2  # upsampling stages
    stride: int = 2
    hidden_ratio: float = 1.0
    dilation_growth: int = 3
    dilation_cycle: int | None = 8
    residual_scale: bool = False  # 1 / sqrt(depth) per residual block
    zero_init: bool = False


@dataclass(frozen=True)
class Labels:
    """Artist, genre and timing labels (spec/labels.md). Durations in seconds."""

    version: str = "v2"  # v2: normalised words, several genres; v3: names as written, one genre
    num_artists: int = 4111
    num_genres: int = 120
    max_genres: int = 5
    num_lyric_tokens: int = 0
    time_bins: int = 128
    min_duration: float | None = None
    max_duration: float | None = None
    sample_rate: int = 44_100  # scales the timing bins

    @property
    def columns(self) -> int:
        """Length of a label row: total length, offset, length, artist, genres, lyric tokens."""
        return 4 + self.max_genres + self.num_lyric_tokens


@dataclass(frozen=True)
class Lyrics:
    """How lyrics enter: ``separate`` (own causal encoder and cross attention) or ``merged`` (one sequence)."""

    kind: str
    num_tokens: int
    vocab_size: int
    loss_fraction: float = 0.4
    encoder: Transformer | None = None  # separate only

    def __post_init__(self) -> None:
        choose("kind of lyrics", self.kind, ("separate", "merged"))
        if (self.encoder is None) == (self.kind == "separate"):
            raise UserError("separate lyrics need an encoder, merged lyrics have none")


@dataclass(frozen=True)
class Prior:
    """One level's prior: transformer, and what it is conditioned on. ``context_length`` counts music codes."""

    level: int
    context_length: int
    codebook_size: int
    hop_length: int  # audio samples per code of this level
    transformer: Transformer
    tied_output: bool = True  # share the embedding with the output, and add the conditioning again before it
    upsampling: int | None = None  # codes of this level per code of the level above; None at the top
    conditioner: Conditioner | None = None
    labels: Labels | None = None
    lyrics: Lyrics | None = None
    alignment_layer: int | None = None
    alignment_head: int | None = None

    @property
    def merged_lyrics(self) -> int:
        """Lyric positions in front of the music in the one sequence (0 unless merged)."""
        return self.lyrics.num_tokens if self.lyrics and self.lyrics.kind == "merged" else 0

    @property
    def separate_lyrics(self) -> typing.Any:
        """The lyrics, if they have an encoder of their own; else None."""
        return self.lyrics if self.lyrics and self.lyrics.kind == "separate" else None

    @property
    def num_lyrics(self) -> int:
        """Lyric encodings that cross attention reads (0 unless separate)."""
        return self.separate_lyrics.num_tokens if self.separate_lyrics else 0

    @property
    def lyric_vocabulary(self) -> int:
        """Lyric ids in front of the music's in a merged vocabulary (0 unless merged)."""
        return self.lyrics.vocab_size if self.lyrics and self.merged_lyrics else 0

    @property
    def vocab_size(self) -> int:
        return self.codebook_size + self.lyric_vocabulary

    @property
    def window_samples(self) -> int:
        """Audio samples that one context covers."""
        return self.context_length * self.hop_length


def from_dict(cls: type, values: dict) -> typing.Any:
    """Rebuild a preset from ``dataclasses.asdict`` (or JSON: lists become tuples). Unknown keys raise."""
    hints = typing.get_type_hints(cls)
    for key in values:
        choose(f"{cls.__name__} field", key, hints)
    return cls(**{k: _convert(hints[k], v) for k, v in values.items()})


def _convert(hint: typing.Any, value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        for option in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(option):
                return from_dict(typing.cast(type, option), value)
        raise UserError(f"unexpected table {value!r}")
    if isinstance(value, (list, tuple)):
        return tuple(_convert(None, v) for v in value)
    return value


RELEASED_VQVAE = VQVAE()
SMALL_VQVAE = VQVAE(
    sample_rate=22_050, down_depths=(5, 3), strides=(2, 2), codebook_size=1024, multipliers=None, loss="l2"
)

_V2 = Labels()
_V3 = Labels("v3", 7898, 604, 1, 384, 64, 17.84, 600.0)
_SMALL_LABELS = Labels("v3", 100, 10, 1, 0, 64, 60.0, 600.0)

_UPSAMPLER = Prior(
    level=0, context_length=8192, codebook_size=2048, hop_length=8, upsampling=4, labels=_V2, conditioner=Conditioner(),
    transformer=Transformer(8192, 1920, 72, 1, 128, "factored", init_scale=0.4),
)  # fmt: skip
UPSAMPLER_LEVEL_0 = _UPSAMPLER
UPSAMPLER_LEVEL_1 = replace(_UPSAMPLER, level=1, hop_length=32, conditioner=Conditioner(residual_scale=True))
PRIOR_5B = Prior(
    level=2, context_length=8192, codebook_size=2048, hop_length=128, tied_output=False,
    labels=replace(_V2, min_duration=60.0, max_duration=600.0),
    transformer=Transformer(8192, 4800, 72, 8, 128, "factored", init_scale=0.1),
)  # fmt: skip
PRIOR_5B_LYRICS = replace(
    PRIOR_5B,
    labels=replace(_V2, min_duration=23.8, max_duration=600.0, num_lyric_tokens=512),
    transformer=Transformer(8192, 4800, 79, 8, 128, "factored_lyrics", init_scale=0.1),
    lyrics=Lyrics("separate", 512, 80, 0.4, Transformer(512, 1280, 18, 4, 32, "factored", init_scale=0.7)),
    alignment_layer=68, alignment_head=2,
)  # fmt: skip
PRIOR_1B_LYRICS = Prior(
    level=2, context_length=6144, codebook_size=2048, hop_length=128, labels=_V3,
    transformer=Transformer(6528, 2048, 72, 2, 64, "factored_prime", init_scale=0.2),
    lyrics=Lyrics("merged", 384, 79, 0.4), alignment_layer=63, alignment_head=0,
)  # fmt: skip

SMALL_PRIOR = Prior(
    level=1, context_length=8192, codebook_size=1024, hop_length=256,
    transformer=Transformer(8192, 1024, 48, 1, 64, "factored", init_scale=0.7),
)  # fmt: skip
SMALL_UPSAMPLER = replace(
    SMALL_PRIOR, level=0, hop_length=32, upsampling=8, conditioner=Conditioner(width=512, down_depth=3)
)
SMALL_LABELLED_PRIOR = replace(SMALL_PRIOR, level=2, codebook_size=2048, hop_length=128, labels=_SMALL_LABELS)
_SMALL_LYRIC_LABELS = replace(_SMALL_LABELS, num_lyric_tokens=384)
SMALL_SINGLE_ENC_DEC_PRIOR = replace(
    SMALL_LABELLED_PRIOR, context_length=6144, labels=_SMALL_LYRIC_LABELS, lyrics=Lyrics("merged", 384, 79, 0.4),
    transformer=Transformer(6528, 1024, 48, 2, 64, "factored_prime", init_scale=0.7),
)  # fmt: skip
SMALL_SEP_ENC_DEC_PRIOR = replace(
    SMALL_LABELLED_PRIOR, context_length=6144, labels=_SMALL_LYRIC_LABELS,
    transformer=Transformer(6144, 1024, 50, 2, 64, "factored_lyrics_10", init_scale=0.7),
    lyrics=Lyrics("separate", 384, 79, 0.4, Transformer(384, 256, 9, 2, 32, "factored", init_scale=0.7)),
)  # fmt: skip

VQVAES = {"vqvae": RELEASED_VQVAE, "small_vqvae": SMALL_VQVAE}
PRIORS = {
    "upsampler_level_0": UPSAMPLER_LEVEL_0,
    "upsampler_level_1": UPSAMPLER_LEVEL_1,
    "prior_5b": PRIOR_5B,
    "prior_5b_lyrics": PRIOR_5B_LYRICS,
    "prior_1b_lyrics": PRIOR_1B_LYRICS,
    "small_prior": SMALL_PRIOR,
    "small_labelled_prior": SMALL_LABELLED_PRIOR,
    "small_single_enc_dec_prior": SMALL_SINGLE_ENC_DEC_PRIOR,
    "small_sep_enc_dec_prior": SMALL_SEP_ENC_DEC_PRIOR,
    "small_upsampler": SMALL_UPSAMPLER,
}
