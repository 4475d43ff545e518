"""A run leaves everything it promises, goes on where it stopped, and never overwrites another."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jukebox_jax.sample import prompts, run, sampler
from jukebox_jax.types import UserError

ABOUT = {"mode": "ancestral", "command": "jukebox sample <here>", "model_directory": "models/tiny"}


@pytest.fixture(scope="module")
def done(source, request_for, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    run.generate(source, request_for(), out, prompts.empty(2, 2), ABOUT)
    return out


def test_codes_and_sound_are_there(done, source) -> None:
    codes = prompts.load_codes(done / "codes.npz", 2, 12)
    assert [c.shape for c in codes] == [(2, 48), (2, 24)]
    for level in range(2):
        for item in range(2):
            info = soundfile.info(done / f"level_{level}" / f"item_{item}.wav")
            assert (info.frames, info.samplerate, info.subtype) == (192, 8000, "PCM_16")
            assert (done / f"level_{level}" / f"item_{item}.png").read_bytes().startswith(b"\x89PNG")
    assert not (done / "partial").exists() and not list(done.rglob("*.new")) and not list(done.rglob("*.part"))


def test_the_record_is_enough_to_repeat_it(done, source, request_for) -> None:
    record = json.loads((done / "run.json").read_text())
    assert record["status"] == "complete" and record["request"]["seed"] == 3
    assert record["request"]["metas"] == [dict(meta) for meta in request_for().metas]
    assert record["labels"]["level_1"] == source.labellers[1].batch(request_for().metas)[0].tolist()
    assert record["levels"]["1"]["drawn_codes"] == 48 and record["levels"]["0"]["draw_seconds"] > 0
    assert {"jax", "jukebox_jax", "python"} <= set(record["versions"])


def test_the_page_needs_nothing_else(done) -> None:
    page = (done / "index.html").read_text()
    assert page.count("data:audio/mpeg;base64,") == 4 and page.count("data:image/png;base64,") == 6
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(|https?://""", page)
    assert "jukebox sample &lt;here&gt;" in page and "Over the hills" in page and "{{" not in page


def test_order_and_segments_reach_the_run(done, source, request_for, tmp_path) -> None:
    """All levels at once give the same files; segments of the bottom level are reported."""
    request = dataclasses.replace(request_for(), order="wavefront")
    run.generate(source, request, tmp_path / "all", prompts.empty(2, 2), ABOUT)
    for mine, theirs in zip(prompts.load_codes(tmp_path / "all" / "codes.npz", 2, 12),
                            prompts.load_codes(done / "codes.npz", 2, 12), strict=True):  # fmt: skip
        np.testing.assert_array_equal(mine, theirs)
    levels = json.loads((tmp_path / "all" / "run.json").read_text())["levels"]
    assert [levels[level]["drawn_codes"] for level in "10"] == [48, 96] and levels["0"]["draw_seconds"] > 0
    request = dataclasses.replace(request_for(), segments=3)
    run.generate(source, request, tmp_path / "fast", prompts.empty(2, 2), ABOUT)
    levels = json.loads((tmp_path / "fast" / "run.json").read_text())["levels"]
    assert levels["0"]["seams"]["segments"] == 3 and "seams" not in levels["1"]


def test_lyrics_are_timed(done) -> None:
    timed = json.loads((done / "alignment" / "item_0.json").read_text())
    assert timed["lyrics"] == "Over the hills and far away" and len(timed["seconds"]) == len(timed["lyrics"])


@pytest.mark.parametrize("stop", [10, 60])  # codes: inside the top level, inside the bottom one
def test_an_interrupted_run_goes_on(done, source, request_for, tmp_path, monkeypatch, stop) -> None:
    draw, drawn = sampler.sample_window, []

    def interrupted(*args, **options):
        result = draw(*args, **options)
        drawn.append(result.raw.size)
        if sum(drawn) > stop:
            raise KeyboardInterrupt
        return result

    out = tmp_path / "out"
    monkeypatch.setattr(sampler, "sample_window", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.generate(source, request_for(), out, prompts.empty(2, 2), ABOUT)
    kept = prompts.load_codes(out / "codes.npz", 2, 12)
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert sum(codes.size for codes in kept) == sum(drawn[:-1])
    monkeypatch.setattr(sampler, "sample_window", draw)
    run.generate(source, request_for(), out, prompts.empty(2, 2), ABOUT)
    resumed, expected = (prompts.load_codes(folder / "codes.npz", 2, 12) for folder in (out, done))
    for level in range(2):
        np.testing.assert_array_equal(resumed[level], expected[level])
    assert json.loads((out / "run.json").read_text())["levels"]["1"]["drawn_codes"] == 48


def test_a_complete_run_is_not_drawn_again(done, source, request_for, monkeypatch) -> None:
    monkeypatch.setattr(sampler, "sample_window", None)
    run.generate(source, request_for(), done, prompts.empty(2, 2), ABOUT)


def test_another_run_is_not_overwritten_unless_asked(done, source, request_for) -> None:
    with pytest.raises(UserError, match=r"another run .request.seed is '3' there, '4' here.*--overwrite"):
        run.generate(source, request_for(seed=4), done, prompts.empty(2, 2), ABOUT)
    changed = dataclasses.replace(source, fingerprint="retrained")
    with pytest.raises(UserError, match="model.fingerprint"):
        run.generate(changed, request_for(), done, prompts.empty(2, 2), ABOUT)


def test_overwriting_begins_anew(source, request_for, tmp_path) -> None:
    one = request_for(levels=(1,))
    run.generate(source, one, tmp_path, prompts.empty(2, 2), ABOUT)
    other = dataclasses.replace(one, seed=4)
    run.generate(source, other, tmp_path, prompts.empty(2, 2), ABOUT, overwrite=True)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["request"]["seed"] == 4 and record["levels"]["1"]["drawn_codes"] == 48


def test_a_damaged_record_is_named(source, request_for, tmp_path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json is damaged"):
        run.generate(source, request_for(), tmp_path, prompts.empty(2, 2), ABOUT)


def test_a_full_disk_is_seen_before_drawing(tmp_path) -> None:
    run.require_free_space(tmp_path / "new" / "out", 1.0, 1, 3, 44100)
    with pytest.raises(UserError, match="GB free"):
        run.require_free_space(tmp_path / "new" / "out", 1e12, 1, 3, 44100)
