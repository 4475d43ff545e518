"""A prior: codes of one level, conditioned on labels, timing, lyrics and the level above (spec/prior.md).

Three wirings share the class. An *upsampler* adds the upsampled codes of the level above at every position. A *top*
prior adds timing vectors; its lyrics either pass through an encoder of their own and cross attention (``separate``),
or stand in front of the music in one sequence with one vocabulary (``merged``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jukebox_jax import presets
from jukebox_jax.models.conditioners import LabelEmbedding, Timing, UpperCodes, timing_bins, timing_vectors
from jukebox_jax.models.layers import Dtype, LayerNorm
from jukebox_jax.models.transformer import Transformer
from jukebox_jax.parallel.sharding import constrain
from jukebox_jax.types import UserError

POSITIONS = ("batch", None, "mlp")  # how conditioning vectors lie: every device has its part of a row


class Conditioning(NamedTuple):
    """All that a window's codes are conditioned on. ``positions`` are those of the codes, without merged lyrics."""

    start: Any  # Float[Array, "b d"], takes the place of the embedding before position 0; None without labels
    positions: Any  # what is added there: of upsamplers Float[Array, "b t d"], of others with labels Timing; or None
    lyrics: Any = None  # Float[Array, "b l d"]: separate lyrics, encoded
    lyric_tokens: Any = None  # Int[Array, "b l"]


class Embedding(nn.Module):
    """Token and position tables of one autoregressive core, and its start vector where labels give none."""

    config: presets.Transformer
    vocab_size: int
    has_start: bool

    def setup(self):
        c = self.config
        table = lambda name, rows, std: self.param(name, nn.initializers.normal(std * c.init_scale), (rows, c.width))  # noqa: E731
        self.embedding = table("embedding", self.vocab_size, 0.02)
        self.position = table("position", c.length, 0.01)
        if self.has_start:
            self.start = table("start", 1, 0.01)

    def stream(self, tokens: Int[Array, "b t"], start: Float[Array, "b d"] | None) -> Float[Array, "b t d"]:
        """Embeddings of the tokens before each position (the start vector before position 0), plus positions."""
        if start is None:
            start = jnp.broadcast_to(self.start, (tokens.shape[0], self.config.width))
        x = jnp.concatenate([start[:, None], self.embedding[tokens[:, :-1]]], axis=1)
        return x + self.position[None, : tokens.shape[1]]


class LyricsEncoder(nn.Module):
    """Causal transformer over the lyric tokens; output i has seen the tokens before i (spec/prior.md section 8)."""

    config: presets.Transformer
    vocab_size: int
    dtype: Dtype = jnp.float32
    remat: bool = False
    remat_layers: tuple[int, ...] = (1,)
    scan_layers: bool | None = None
    implementation: str = "auto"

    def setup(self):
        self.core = Embedding(self.config, self.vocab_size, has_start=True)
        nn.share_scope(self, self.core)
        self.transformer = Transformer(
            self.config, dtype=self.dtype, remat=self.remat, remat_layers=self.remat_layers,
            scan_layers=self.scan_layers, implementation=self.implementation,
        )  # fmt: skip

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l w"]:
        return self.transformer(self.core.stream(tokens, None))


class Prior(nn.Module):
    """See the module's text. Parameters are float32; the transformer computes in ``dtype``."""

    config: presets.Prior
    dtype: Dtype = jnp.float32
    remat: bool = False
    remat_layers: tuple[int, ...] = (1,)
    scan_layers: bool | None = None
    implementation: str = "auto"
    loss_chunks: int = 1  # pieces of the stream whose logits exist at one time
    int8: bool = False  # cached decoding with weights and caches of 8 bits (int8.py)

    def setup(self):
        c, t = self.config, self.config.transformer
        names = ("dtype", "remat", "remat_layers", "scan_layers", "implementation")
        options = {name: getattr(self, name) for name in names}
        self.core = Embedding(t, c.vocab_size, has_start=c.labels is None)
        nn.share_scope(self, self.core)
        separate = c.separate_lyrics
        self.transformer = Transformer(t, prime_length=c.merged_lyrics, num_lyrics=c.num_lyrics, **options)
        if not c.tied_output:
            bound = t.width**-0.5
            init = lambda rng, shape: jax.random.uniform(rng, shape, minval=-bound, maxval=bound)  # noqa: E731
            self.output = self.param("output", init, (c.vocab_size, t.width))
        if c.labels is not None:
            self.labels = LabelEmbedding(c.labels, t.width, t.init_scale, timing=c.conditioner is None)
        if c.conditioner is not None:
            self.conditioner = UpperCodes(c.conditioner, c.codebook_size, t.width, t.init_scale)
        if separate:
            encoder = separate.encoder
            self.lyrics_encoder = LyricsEncoder(encoder, separate.vocab_size, **options)
            normal = nn.initializers.normal
            self.lyrics_projection = nn.Dense(t.width, kernel_init=normal(0.02 * encoder.init_scale))
            self.lyrics_norm = LayerNorm()
            self.lyrics_output = self.param(
                "lyrics_output", normal(0.02 * t.init_scale), (separate.vocab_size, t.width)
            )

    def initialise(self):
        """Make every parameter without running the model: ``model.init(rng, method="initialise")``."""
        c = self.config
        touched = [self.core.embedding, self.transformer.stacks]
        if c.labels is not None:
            touched.append(self.labels.genre)
        if c.conditioner is not None:
            touched.append(self.conditioner(jnp.zeros((1, 1), jnp.int32)))
        if c.separate_lyrics:
            encoder = self.lyrics_encoder
            touched += [encoder.core.embedding, encoder.transformer.stacks]
            touched.append(self.lyrics_norm(self.lyrics_projection(jnp.zeros((1, encoder.config.width)))))
        return len(touched)

    # Conditioning

    def condition(self, y, upper_codes) -> Conditioning:
        """Everything that does not depend on this level's codes.

        Args:
            y: label rows (b, cols), int32 (spec/labels.md section 5); needed if the model has labels.
            upper_codes: codes (b, u) of the level above for exactly this window; needed by upsamplers.
        """
        c = self.config
        start = lyrics = tokens = None
        positions: Any = None
        if c.labels is not None:
            _expect("label rows", c.labels.columns, y)
            start = self.labels.start(y)
            if c.conditioner is None:
                positions = timing_bins(c.labels, y, c.context_length)
        if c.conditioner is not None:
            _expect("codes of the level above", c.context_length // (c.upsampling or 1), upper_codes)
            positions = self.conditioner(upper_codes)
        if c.lyrics is not None and y is not None:
            tokens = y[:, -c.lyrics.num_tokens :]
            if not c.merged_lyrics:
                lyrics = self.encode_lyrics(tokens)
        return Conditioning(start, positions, lyrics, tokens)

    def encode_lyrics(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Lyric encodings that cross attention reads (separate lyrics)."""
        return self.lyrics_norm(self.lyrics_projection(self.lyrics_encoder(tokens)))

    def sequence(self, codes: Int[Array, "b t"], cond: Conditioning) -> Int[Array, "b _"]:
        """The tokens of the transformer's sequence: merged lyrics in front, music ids behind the lyric ids."""
        if not self.config.merged_lyrics:
            return codes
        return jnp.concatenate([cond.lyric_tokens, codes + self.config.lyric_vocabulary], axis=1)

    def positions(self, cond: Conditioning) -> Any:
        """What is added at every position of the sequence (b, _, d), at merged lyrics nothing; or None."""
        x = cond.positions
        if isinstance(x, Timing):
            x = timing_vectors(self.labels.timing_tables, x)
        return None if x is None else jnp.pad(x, ((0, 0), (self.config.merged_lyrics, 0), (0, 0)))

    def _embed(self, tokens, cond: Conditioning, positions):
        x = self.core.stream(tokens, cond.start)
        return x if positions is None else x + positions[:, : tokens.shape[1]]

    def _conditioned(self, x, positions):
        """Before a tied output the conditioning is added once more."""
        return x + positions[:, : x.shape[1]] if self.config.tied_output and positions is not None else x

    def _output_table(self):
        return self.core.embedding if self.config.tied_output else self.output

    # Whole windows

    def hidden(
        self, codes: Int[Array, "b t"], cond: Conditioning, num_layers: int | None = None
    ) -> Float[Array, "b _ d"]:
        """Output of the transformer (or of its first ``num_layers``) over the whole sequence, float32."""
        x = self._embed(self.sequence(codes, cond), cond, self.positions(cond))
        return self.transformer(x, cond.lyrics, num_layers)

    def logits(self, codes: Int[Array, "b t"], cond: Conditioning) -> Float[Array, "b _ v"]:
        """Teacher-forced logits, float32; with merged lyrics those of the lyric positions come first."""
        return self._final(codes, cond) @ self._output_table().T

    def _final(self, codes, cond: Conditioning):
        positions = self.positions(cond)  # one array for both places
        x = self.transformer(self._embed(self.sequence(codes, cond), cond, positions), cond.lyrics)
        return self._conditioned(x, positions)

    def lyric_logits(self, cond: Conditioning) -> Float[Array, "b l v"]:
        """Logits of the lyric tokens from their own (shifted) encodings: separate lyrics' training signal."""
        return cond.lyrics @ self.lyrics_output.T

    def loss(self, codes, y=None, upper_codes=None):
        """Training loss in bits per token, and its parts (spec/prior.md section 10).

        Returns ``loss, {"bits_per_token", "gen_loss", "prime_loss"}``, all scalars.
        """
        c = self.config
        cond = self.condition(y, upper_codes)
        bits = cross_entropy(
            self._final(codes, cond), self._output_table(), self.sequence(codes, cond), self.loss_chunks
        )
        gen_loss = jnp.mean(bits[:, c.merged_lyrics :])
        if c.lyrics is None:
            return gen_loss, {"bits_per_token": gen_loss, "gen_loss": gen_loss}
        if c.merged_lyrics:
            prime_loss = jnp.mean(bits[:, : c.merged_lyrics])
        else:
            prime_loss = jnp.mean(cross_entropy(cond.lyrics, self.lyrics_output, cond.lyric_tokens, 1))
        total = c.lyrics.num_tokens + c.context_length
        loss = (c.lyrics.loss_fraction * c.lyrics.num_tokens * prime_loss + c.context_length * gen_loss) / total
        return loss, {"bits_per_token": gen_loss, "gen_loss": gen_loss, "prime_loss": prime_loss}

    def alignment(self, codes: Int[Array, "b t"], y, upper_codes=None) -> Float[Array, "b t l"]:
        """Attention of the alignment head from music positions to lyric positions (spec/sampling.md section 8)."""
        c = self.config
        if c.lyrics is None or c.alignment_layer is None or c.alignment_head is None:
            raise UserError("this prior has no alignment head: it needs lyrics, alignment_layer and alignment_head")
        cond = self.condition(y, upper_codes)
        x = self._embed(self.sequence(codes, cond), cond, self.positions(cond))
        p = self.transformer.attention_weights(x, cond.lyrics, c.alignment_layer, c.alignment_head)
        return p[:, c.merged_lyrics :, : c.lyrics.num_tokens]

    # Cached decoding

    def init_cache(self, batch: int, cond: Conditioning):
        """Caches for decoding ``batch`` rows from position 0."""
        return self.transformer.init_cache(batch, cond.lyrics)

    def prefill(self, tokens: Int[Array, "b p"], cond: Conditioning, known):
        """Caches for a step at position ``known``; ``tokens`` are whole blocks of the sequence, padded at the end."""
        positions = self.positions(cond)  # constrained, since the stream lies as they do (5B: 5 GB a chip less)
        x = self._embed(tokens, cond, None if positions is None else constrain(positions, *POSITIONS))
        return self.transformer.prefill(x, cond.lyrics, known)[1]


def _expect(what: str, count: int, array) -> None:
    if array is None or array.shape[-1] != count:
        found = "none" if array is None else array.shape[-1]
        raise UserError(f"this prior needs {count} columns of {what}, not {found}")


def cross_entropy(
    x: Float[Array, "b t d"], table: Float[Array, "v d"], targets: Int[Array, "b t"], chunks: int
) -> Float[Array, "b t"]:
    """Bits of each target under ``softmax(x @ table.T)``; at most t / chunks positions' logits exist at one time."""

    def bits(x, targets):
        logits = x @ table.T
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return (jax.nn.logsumexp(logits, axis=-1) - chosen) / np.log(2.0)

    if chunks == 1:
        return bits(x, targets)
    if x.shape[1] % chunks:
        raise UserError(f"loss_chunks must divide the {x.shape[1]} positions of the sequence, {chunks} does not")
    split = lambda y: jnp.moveaxis(y.reshape(y.shape[0], chunks, -1, *y.shape[2:]), 1, 0)  # noqa: E731
    pieces = jax.lax.map(jax.checkpoint(lambda piece: bits(*piece)), (split(x), split(targets)))
    return jnp.moveaxis(pieces, 0, 1).reshape(targets.shape)
