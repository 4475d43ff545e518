"""Certificates from compiled text: what they say, what they refuse, and that their limits can be broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jukebox_jax.certify import compile, report
from jukebox_jax.certify.certificate import Certificate, Memory, Work, certify
from jukebox_jax.certify.limits import broken
from jukebox_jax.certify.topology import CHIPS, GIB, parse

TEXT = (Path(__file__).parents[1] / "golden" / "hlo" / "slices_v5e.hlo").read_text()
WEIGHT = 2048 * 2048 * 2
MODEL_FLOPS = 3 * 7 * 2 * 4096 * 2048 * 2048


def make(text: str | None = TEXT, **changes) -> Certificate:
    """Six layers on two slices of eight, as if it were the 5B prior."""
    work = Work("step", 1, 4096, 4096 / 344.5, float(MODEL_FLOPS), weight_bytes=6.0 * WEIGHT)
    facts = dict(
        config="configs/prior_5b.py", program="train", mesh={"data": 2, "fsdp": 8, "tensor": 1}, batch_size=512,
        overrides=[], versions={"jax": "0"}, fits=True, memory=Memory(16 * GIB, GIB, GIB, GIB, 2 * GIB, 3 * GIB),
        lower_seconds=1.0, compile_seconds=2.0,
    )  # fmt: skip
    return certify(text, None, parse("v5e:2x4", 2), work, **{**facts, **changes})


def test_counts_are_per_device_and_against_the_model():
    c = make()
    assert c.flops == MODEL_FLOPS / 16 and c.flops_ratio == 1.0 and c.sound
    assert c.kernels == {"distinct": 0, "calls": 0, "flops": 0}
    assert c.gathered == {"forward": 6 * WEIGHT, "backward": 5 * WEIGHT, "overlapped": 5 * WEIGHT}
    assert {(t.kind, t.network) for t in c.collectives} == {
        ("all-gather", "ici"), ("reduce-scatter", "ici"), ("all-reduce", "dcn")
    }  # fmt: skip


def test_json_and_back():
    c = make()
    values = c.to_json()
    assert Certificate.from_json(values) == c
    assert values["derived"]["flops_ratio"] == 1.0 and values["derived"]["bound"] == "DCN"


def test_an_unknown_trip_count_is_no_certificate():
    """The loop's limit comes from data: nothing is counted, and the command fails."""
    text = TEXT.replace("direction=LT", "direction=EQ")
    assert text != TEXT
    c = make(text)
    assert not c.sound and c.flops is None and c.uncounted
    assert any("unavailable" in line for line in report.lines(c, 1.2))
    assert broken(c) == [f"is not counted: {c.uncounted}"]


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO"
         " temporaries (51.05G) exceeds available HBM (15.75G). HLO module: jit_step.", int(51.05 * GIB)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.", 35 * GIB // 2),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. It should have fit.", None),
    ],
)  # fmt: skip
def test_refusals_say_how_much(message, needed):
    assert compile.refused(message, CHIPS["v5e"]).peak == needed


def limits(c: Certificate, plain: Certificate | None = None) -> str:
    return "; ".join(broken(c, plain))


def test_every_limit_of_training_can_break():
    """Held against the limits of 5B on v5e-256; the good one breaks none but overlap (the text is of six layers)."""
    good = replace(make(), topology="v5e:16x16", num_slices=1)
    gathered = {**(good.gathered or {}), "overlapped": 8.0 * WEIGHT}
    good = replace(good, gathered=gathered)
    scattered = [t._replace(bytes=6.0 * WEIGHT) if t.kind == "reduce-scatter" else t for t in good.collectives]
    good = replace(good, collectives=[t for t in scattered if t.network == "ici"])
    assert broken(good) == []
    assert "weights are gathered 2.00 times forward" in limits(
        replace(good, gathered={**gathered, "forward": 12.0 * WEIGHT})
    )
    assert "hidden" in limits(replace(good, gathered={**gathered, "overlapped": 1.0}))
    assert "1.300 x the model's" in limits(replace(good, flops=1.3 * MODEL_FLOPS / 16))
    assert "peak is 15.00 GiB" in limits(replace(good, memory=good.memory._replace(peak=15 * GIB)))
    reduced = [t._replace(kind="all-reduce") if t.kind == "reduce-scatter" else t for t in scattered]
    assert "reduced whole" in limits(replace(good, collectives=reduced))
    assert limits(replace(good, fits=False)).startswith("does not fit")


def test_every_limit_of_decoding_can_break():
    work = Work("token", 64, 16, 0.05, None, 1e9, 2 * GIB)
    memory = Memory(16 * GIB, 4 * GIB, 2 * GIB, 2 * GIB, GIB // 100, 4 * GIB)
    good = replace(
        make(), program="decode", topology="v5e:2x4", num_slices=1, batch_size=16, work=work, memory=memory,
        hbm_bytes=1.1e9,
    )  # fmt: skip
    assert broken(good) == [] and good.floor_ratio == pytest.approx(1.1)
    assert "1.200 x the floor" in limits(replace(good, hbm_bytes=1.2e9))
    assert "temporaries are 5.0% of the caches" in limits(replace(good, memory=memory._replace(temporaries=GIB // 10)))
    assert "in place" in limits(replace(good, memory=memory._replace(aliased=GIB)))
    assert broken(replace(good, batch_size=32, hbm_bytes=2e9)) == []
    assert broken(good, replace(good, hbm_bytes=1.1e9 / 0.6)) == []
    assert "0.611 x bfloat16's" in limits(good, replace(good, hbm_bytes=1.8e9))


@pytest.fixture
def certified(monkeypatch, capsys):
    """``jukebox certify`` with the compiler's answer given; returns (exit code, output)."""

    def run(c: Certificate, *argv: str):
        from jukebox_jax import __main__ as dispatcher

        monkeypatch.setattr(compile, "run", lambda request: {"certificate": c.to_json()})
        code = dispatcher.main(["certify", "--config=configs/prior_5b.py", "--topology=v5e:2x4", *argv])
        return code, capsys.readouterr().out

    return run


def test_the_table_and_the_file(certified, tmp_path):
    code, out = certified(make(), f"--json={tmp_path / 'c.json'}", "--price_per_chip_hour=2")
    assert code == 0
    for part in (
        "fits: peak 3.00 GiB of 16.00 GiB",
        "1.000 x the model's",
        "between slices",
        "bound by DCN",
        "at $2.00",
    ):
        assert part in out
    assert '"flops_ratio": 1.0' in (tmp_path / "c.json").read_text()


def test_what_does_not_fit_is_explained(certified):
    memory = Memory(16 * GIB, None, None, None, None, 50 * GIB)
    refusal = "RESOURCE_EXHAUSTED: Ran out of memory on HBM"
    c = replace(make(None), fits=False, uncounted="it does not fit", memory=memory, refusal=refusal)
    code, out = certified(c)
    assert code == 1
    assert "DOES NOT FIT: peak 50.00 GiB of 16.00 GiB" in out and refusal in out
    for knob in ("--batch_size", "--mesh", "--config.remat", "--config.accumulate", "--topology"):
        assert knob in out


def test_uncounted_programs_fail(certified):
    assert certified(make(TEXT.replace("direction=LT", "direction=EQ")))[0] == 1


def test_a_crash_of_the_compiler_is_told(monkeypatch, capsys):
    class Done:
        returncode, stdout, stderr = -6, "", "F0000 Check failed: something"

    monkeypatch.setattr(compile.subprocess, "run", lambda *args, **kwargs: Done)
    from jukebox_jax import __main__ as dispatcher

    assert dispatcher.main(["certify", "--config=configs/prior_5b.py", "--topology=cuda:8", "--platform=cuda"]) == 1
    assert "the compiler ended with -6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3e-7, "300 ns"), (2.5e-3, "2.5 ms"), (100, "100 s"), (2660, "44.3 min"), (72000, "20 h"), (3e8, "3,472 d")],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jukebox_jax\[tpu\]'"):
        compile.run(compile.Request("configs/prior_5b.py", "train", "v5e:2x4"))
