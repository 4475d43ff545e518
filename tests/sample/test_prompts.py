"""Codes files and audio prompts: read back as written, refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox_jax.sample import prompts
from jukebox_jax.types import UserError

CODES = [np.arange(24, dtype=np.int32).reshape(2, 12) % 10, np.zeros((2, 6), np.int32), np.ones((2, 0), np.int32)]


def test_codes_come_back(tmp_path: Path) -> None:
    prompts.save_codes(tmp_path / "codes.npz", CODES, (0, 1))
    for found, codes in zip(prompts.load_codes(tmp_path / "codes.npz", 3, 10), CODES, strict=True):
        np.testing.assert_array_equal(found, codes)
    np.savez(tmp_path / "top.npz", codes_level_2=CODES[0])
    found = prompts.load_codes(tmp_path / "top.npz", 3, 10)
    assert [codes.shape for codes in found] == [(2, 0), (2, 0), (2, 12)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"codes_level_5": CODES[0]}, "has codes_level_5; this model has codes_level_0, codes_level_1"),
        ({"other": CODES[0]}, "has no codes"),
        ({"codes_level_0": CODES[0].astype(float)}, "must be integers"),
        ({"codes_level_0": CODES[0][0]}, "must be integers"),
        ({"codes_level_0": CODES[0], "codes_level_1": CODES[0][:1]}, "alike in items"),
        ({"codes_level_0": CODES[0] + 5}, "has codes 5 to 14; this model's are 0 to 9"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "codes.npz", **arrays)
    with pytest.raises(UserError, match=message):
        prompts.load_codes(tmp_path / "codes.npz", 3, 10)


@pytest.mark.parametrize("content", [b"", b"PK not a zip", b"hello"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "codes.npz").write_bytes(content)
    with pytest.raises(UserError, match="no codes file"):
        prompts.load_codes(tmp_path / "codes.npz", 3, 10)


def test_items_are_chosen_and_cut() -> None:
    chosen = prompts.select(CODES, (1,))
    np.testing.assert_array_equal(chosen[0], CODES[0][1:])
    assert [codes.shape for codes in prompts.cut(chosen, 64, (8, 32, 128))] == [(1, 8), (1, 2), (1, 0)]
    with pytest.raises(UserError, match="allowed are 0 to 1"):
        prompts.select(CODES, (2,))


def test_prompts_are_mono_at_the_models_rate(tmp_path: Path) -> None:
    ramp = np.linspace(-0.5, 0.5, 4000)
    soundfile.write(tmp_path / "a.wav", np.stack([ramp, np.zeros(4000)], axis=1), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", np.sin(np.arange(8000) / 20), 16000)
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    audio = prompts.read_prompts(paths, 3, 8000, 2000, 0.125)
    assert audio.shape == (3, 2000, 1) and audio.dtype == np.float32
    np.testing.assert_allclose(audio[0, :, 0], ramp[1000:3000] / 2, atol=1e-6)
    np.testing.assert_array_equal(audio[0], audio[2])
    np.testing.assert_allclose(audio[1, 100:-100, 0], np.sin((2000 + 2 * np.arange(100, 1900)) / 20), atol=1e-2)
    with pytest.raises(UserError, match="has 0.38 s of audio after 0.125 s; the prompt takes 0.50 s"):
        prompts.read_prompts(paths[:1], 1, 8000, 4000, 0.125)


def test_files_that_are_no_audio_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(UserError, match="cannot be read as audio"):
        prompts.read_prompts([str(tmp_path / "text.wav")], 1, 8000, 10)
    with pytest.raises(UserError, match="there is no such file"):
        prompts.read_prompts([str(tmp_path / "absent.wav")], 1, 8000, 10)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    with pytest.raises(UserError, match="no numbers"):
        prompts.read_prompts([str(tmp_path / "nan.wav")], 1, 8000, 100)
