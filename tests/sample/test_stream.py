"""Codes are decoded in pieces, and written as they come."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.sample import stream


def test_pieces_are_the_whole(source) -> None:
    variables, model = source.load("vqvae"), VQVAE(source.vqvae)
    codes = np.random.default_rng(1).integers(0, 12, (1, 300)).astype(np.int32)
    whole = jax.jit(lambda codes: model.apply(variables, codes, 1, method="decode"))(jnp.asarray(codes))
    pieces = np.concatenate(list(stream.decode(source, variables, codes, 1)), axis=1)
    np.testing.assert_allclose(pieces, np.asarray(whole)[..., 0], rtol=1e-5, atol=1e-5)


def test_files_have_every_sample(tmp_path: Path) -> None:
    audio = np.linspace(-2, 2, 40_000).astype(np.float32)
    stream.write_audio(np.array_split(audio[None], 7, axis=1), 44_100, len(audio), [tmp_path / "level_0" / "item_3"])
    read, rate = soundfile.read(tmp_path / "level_0" / "item_3.wav", dtype="float32")
    assert rate == 44_100 and {p.name for p in (tmp_path / "level_0").iterdir()} == {
        "item_3.wav",
        "item_3.mp3",
        "item_3.png",
    }
    np.testing.assert_allclose(read, np.clip(audio, -1, 1), atol=1e-4)
    assert abs(soundfile.info(tmp_path / "level_0" / "item_3.mp3").frames - len(audio)) < 3000


def test_odd_rates_are_compressed_too(tmp_path: Path) -> None:
    stream.write_audio([np.zeros((1, 500), np.float32)], 7000, 500, [tmp_path / "item_0"])
    assert soundfile.info(tmp_path / "item_0.ogg").samplerate == 7000
