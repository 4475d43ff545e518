"""Decoding: exact where it can be, bounded, and clear about what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from jukebox_jax.data import audio


def noise(frames: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal((frames, channels))).astype(np.float32)


def decoded(path: Path, rate: int, **kwargs) -> tuple[np.ndarray, list[str]]:
    result = audio.decode(str(path), rate, **kwargs)
    with result.store:
        samples = np.concatenate(list(result.records(1000)))
    assert samples.shape == (result.total, result.channels)
    return samples, result.notes


@pytest.mark.parametrize("channels", [1, 2])
def test_16_bit_at_the_right_rate_passes_unchanged(tmp_path: Path, channels: int):
    samples = np.random.default_rng(0).integers(-32768, 32768, (5000, channels)).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 8000)
    result, notes = decoded(tmp_path / "x.wav", 8000)
    np.testing.assert_array_equal(result, samples)
    assert notes == []
    np.testing.assert_array_equal(audio.to_float(result) * 32768, samples.astype(np.float32))


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_resampling_in_blocks_is_resampling_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int):
    monkeypatch.setattr(audio, "BLOCK", 700)
    x = noise(9001)
    soundfile.write(tmp_path / "x.wav", x, rate, subtype="FLOAT")
    result, _ = decoded(tmp_path / "x.wav", 16000)
    expected = soxr.resample(x, rate, 16000, quality="HQ")
    assert len(result) == len(expected) == round(9001 * 16000 / rate)
    np.testing.assert_allclose(result / 32768, expected, atol=0.6 / 32768)


def test_long_songs_leave_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audio, "IN_MEMORY", 1000)
    soundfile.write(tmp_path / "x.wav", np.arange(4000, dtype=np.int16), 8000)
    result = audio.decode(str(tmp_path / "x.wav"), 8000)
    with result.store:
        assert result.store._rolled  # pyright: ignore
        np.testing.assert_array_equal(np.concatenate(list(result.records(900)))[:, 0], np.arange(4000))


@pytest.mark.parametrize("name", ["x.flac", "x.ogg", "x.mp3", "x.opus", "x.aiff"])
def test_formats_and_tags(tmp_path: Path, name: str):
    rate, path = 48000, tmp_path / name
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    kind = {"format": "OGG", "subtype": "OPUS"} if name.endswith("opus") else {}
    with soundfile.SoundFile(path, "w", rate, 1, **kind) as file:
        file.title = "Zoë"
        file.write(tone)
    header = audio.probe(str(path))
    assert (header["frames"], header["sample_rate"], header["channels"]) == (rate, rate, 1)
    assert header["tags"]["title"] == "Zoë"
    result, notes = decoded(path, 24000)
    assert len(result) == 24000 and result.shape[1] == 1 and notes == []
    spectrum = np.abs(np.fft.rfft(result[:, 0] * np.hanning(len(result))))
    assert abs(int(spectrum.argmax()) - 440) <= 1


@pytest.mark.parametrize("vorbis", [False, True])
@pytest.mark.parametrize("channels", range(3, 13))
def test_fold_down(channels: int, vorbis: bool):
    matrix = audio.downmix(channels, vorbis=vorbis)
    assert matrix is not None and matrix.shape == (channels, 2)
    np.testing.assert_allclose(matrix.sum(0), 1, rtol=1e-6)
    assert matrix[0, 0] > 0 and matrix[0, 1] == 0  # left leads, and stays left
    right = {3: 2, 5: 2, 6: 2, 7: 2, 8: 2}.get(channels, 1) if vorbis else 1
    assert matrix[right, 1] > 0 and matrix[right, 0] == 0
    if channels <= 8:  # a known layout, with nothing leaning to one side
        np.testing.assert_allclose(np.sort(matrix[:, 0]), np.sort(matrix[:, 1]))


def test_few_channels_stay():
    assert audio.downmix(1) is None and audio.downmix(2) is None


def test_many_channels(tmp_path: Path):
    x = np.zeros((4000, 6), np.float32)
    x[:, 3] = 0.9  # low frequencies: left out
    x[:, 5] = 0.5  # back right
    soundfile.write(tmp_path / "x.flac", x, 96000)
    result, notes = decoded(tmp_path / "x.flac", 96000)
    assert notes == ["6 channels mixed down to stereo"]
    assert not result[:, 0].any()
    np.testing.assert_allclose(result[:, 1] / 32768, 0.5 * 0.7071 / (1 + 2 * 0.7071), atol=1e-4)


def test_nan(tmp_path: Path):
    x = noise(10_000)
    x[50] = [np.nan, np.inf]
    soundfile.write(tmp_path / "x.wav", x, 8000, subtype="FLOAT")
    result, notes = decoded(tmp_path / "x.wav", 8000)
    assert notes == ["2 samples are NaN or infinite: silence in their place"]
    assert not result[50].any() and result[49].all()
    x[:3000] = np.nan
    soundfile.write(tmp_path / "x.wav", x, 8000, subtype="FLOAT")
    with pytest.raises(audio.Undecodable, match="30% of its samples are NaN"):
        audio.decode(str(tmp_path / "x.wav"), 8000)


def test_clipping(tmp_path: Path):
    soundfile.write(tmp_path / "x.wav", np.linspace(-2, 2, 8001), 8000, subtype="FLOAT")
    result, notes = decoded(tmp_path / "x.wav", 8000)
    assert result.min() == -32768 and result.max() == 32767 and (np.diff(result[:, 0].astype(int)) >= 0).all()
    assert len(notes) == 1 and "beyond full scale" in notes[0] and "50.0%" in notes[0]


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.mp3", "x.ogg"])
def test_truncated_files_are_kept_up_to_there(tmp_path: Path, name: str):
    rate, path = 44100, tmp_path / name
    soundfile.write(path, noise(6 * rate), rate)
    whole, notes = decoded(path, rate)
    assert len(whole) == 6 * rate and notes == []
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    half, notes = decoded(path, rate)
    assert 1 * rate < len(half) < 4 * rate
    assert len(notes) == 1 and ("truncated" in notes[0] or "damaged" in notes[0])
    keep = len(half) - 20_000 if name == "x.mp3" else len(half) - 5000  # an overlapping window may end differently
    np.testing.assert_array_equal(half[:keep], whole[:keep])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"not music at all\n" * 50, "not audio that libsndfile can read")],
)
def test_no_audio(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "x.wav").write_bytes(content)
    for read in (audio.probe, lambda path: audio.decode(path, 8000)):
        with pytest.raises(audio.Undecodable, match=reason):
            read(str(tmp_path / "x.wav"))


def test_nothing_in_it(tmp_path: Path):
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 8000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "short.wav", noise(1600), 8000)
    with pytest.raises(audio.Undecodable, match="no audio"):
        audio.probe(str(tmp_path / "none.wav"))
    with pytest.raises(audio.Undecodable, match="silent"):
        audio.decode(str(tmp_path / "silent.wav"), 8000)
    with pytest.raises(audio.Undecodable, match=r"0\.2 s long; the shortest allowed is 1 s"):
        audio.decode(str(tmp_path / "short.wav"), 44100, min_seconds=1.0)


def test_remote_files_are_copied_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Any path with a scheme goes through epath; here a stand-in for it that knows ``far://``."""
    soundfile.write(tmp_path / "x.wav", np.arange(100, dtype=np.int16), 8000)
    monkeypatch.setattr(audio.epath, "Path", lambda path: Path(str(path).replace("far://", f"{tmp_path}/")))
    monkeypatch.setattr(Path, "copy", lambda self, to, overwrite=False: Path(to).write_bytes(self.read_bytes()), False)
    assert audio.probe("far://x.wav")["frames"] == 100
    result = audio.decode("far://x.wav", 8000)
    with result.store:
        assert result.total == 100
