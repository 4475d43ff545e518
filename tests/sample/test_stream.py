"""Long codes are decoded in pieces to the very same audio, and written as they come."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jukebox_jax import presets
from jukebox_jax.models.vqvae import VQVAE
from jukebox_jax.sample import stream


def test_the_reach_of_the_released_decoders() -> None:
    reaches = [stream.decoder_reach(presets.RELEASED_VQVAE, level) for level in range(3)]
    assert reaches == [5742, 80, 82]  # measured on the original: spec/quirks.md A25


@pytest.mark.parametrize("level", [0, 1])
def test_pieces_are_the_whole(source, monkeypatch, level: int) -> None:
    variables, hop, model = source.load("vqvae"), source.hop(level), VQVAE(source.vqvae)
    reach = stream.decoder_reach(source.vqvae, level)
    codes = np.random.default_rng(1).integers(0, 12, 11 * reach).astype(np.int32)
    whole = jax.jit(lambda codes: model.apply(variables, codes, level, method="decode"))(jnp.asarray(codes[None]))
    monkeypatch.setattr(stream, "PIECE", 1)
    pieces = list(stream.decode(source, variables, codes, level))
    assert len(pieces) > 2 and max(map(len, pieces)) <= 3 * reach * hop
    np.testing.assert_allclose(np.concatenate(pieces), np.asarray(whole)[0, :, 0], rtol=1e-5, atol=1e-5)


def test_the_reach_is_not_longer_than_needed(source) -> None:
    """The farthest code changes the audio, one farther does not."""
    level, variables, model = 1, source.load("vqvae"), VQVAE(source.vqvae)
    reach, hop = stream.decoder_reach(source.vqvae, level), source.hop(level)
    codes = np.zeros((3, 4 * reach), np.int32)
    codes[1, reach], codes[2, 3 * reach + 1] = 5, 5
    decode = jax.jit(lambda codes: model.apply(variables, codes, level, method="decode"))
    audio = np.asarray(decode(jnp.asarray(codes)))[:, 2 * reach * hop : (2 * reach + 1) * hop, 0]
    assert (audio[1] != audio[0]).any() and (audio[2] == audio[0]).all()


def test_files_have_every_sample(tmp_path: Path) -> None:
    audio = np.linspace(-2, 2, 40_000).astype(np.float32)
    stream.write_audio(np.array_split(audio, 7), 44_100, len(audio), tmp_path / "level_0" / "item_3")
    read, rate = soundfile.read(tmp_path / "level_0" / "item_3.wav", dtype="float32")
    assert rate == 44_100 and {p.name for p in (tmp_path / "level_0").iterdir()} == {
        "item_3.wav",
        "item_3.mp3",
        "item_3.png",
    }
    np.testing.assert_allclose(read, np.clip(audio, -1, 1), atol=1e-4)
    assert abs(soundfile.info(tmp_path / "level_0" / "item_3.mp3").frames - len(audio)) < 3000


def test_odd_rates_are_compressed_too(tmp_path: Path) -> None:
    stream.write_audio([np.zeros(500, np.float32)], 7000, 500, tmp_path / "item_0")
    assert soundfile.info(tmp_path / "item_0.ogg").samplerate == 7000
