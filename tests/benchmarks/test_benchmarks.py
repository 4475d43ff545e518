"""The benchmark scripts at tiny sizes: that they run and say what they measured. No time is asserted."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Import a script or a module of ``sides`` by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


ECHO = """
import sys
sys.path.insert(0, sys.argv[1].partition("=")[2])
from sides import measure

class Echo:
    def say(self, word):
        print("this is no answer")
        return word.upper()

measure.serve(Echo())
"""


def test_a_worker_answers_measures_its_memory_and_reports_errors(script, tmp_path):
    (tmp_path / "echo.py").write_text(ECHO)
    with script("sides.measure").workers(str(tmp_path / "echo.py"), {str(FOLDER): {}}) as sides:
        (worker,) = sides.values()
        assert worker("say", word="hello") == "HELLO"
        assert 1 < worker("memory") < 10_000
        with pytest.raises(RuntimeError, match="shout"):
            worker("shout")
        assert worker("say", word="still here") == "STILL HERE"


def test_sides_take_turns(script):
    order = []
    sides = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    assert script("sides.measure").alternate(sides, 3) == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert "".join(order) == "abbaab"


@pytest.mark.parametrize("case", ["train", "sample"])
def test_our_side_runs_every_kind_of_case(script, case, tmp_path):
    ours, sizes = script("sides.ours"), script("sides.sizes")
    ours.Maker().make(case, "tiny", str(tmp_path))
    side = ours.Ours()
    side.prepare(case, "tiny", str(tmp_path))
    side.output()
    outputs = np.load(tmp_path / "ours.npz")
    if case == "sample":
        size = sizes.SIZES["tiny"]
        assert outputs["primed"].shape == (1, size["context"])
        assert side.sample(2, 0, size["new"]) > 0
        assert all(seconds > 0 for seconds in side.first_and_last())
    else:
        assert side.time() > 0
    assert all(np.all(np.isfinite(outputs[name])) for name in outputs.files)
    assert list((tmp_path / "port").glob("*.safetensors"))


def test_sides_that_disagree_are_not_compared(script, tmp_path):
    peer = script("peer")
    audio = np.linspace(-1, 1, 100)
    np.savez(tmp_path / "ours.npz", codes=np.arange(1000), audio=audio)
    np.savez(tmp_path / "peer.npz", codes=np.arange(1000), audio=audio + 1e-5)
    assert peer.agreement(tmp_path)["codes"] == 1.0
    np.savez(tmp_path / "peer.npz", codes=np.arange(1000), audio=audio + 0.01)
    with pytest.raises(SystemExit, match="audio"):
        peer.agreement(tmp_path)
    np.savez(tmp_path / "peer.npz", codes=np.arange(1000) // 2, audio=audio)
    with pytest.raises(SystemExit, match="codes"):
        peer.agreement(tmp_path)


def test_the_report_has_every_row_with_its_ratio(script):
    peer, sizes = script("peer"), script("sides.sizes")
    limits = {"matrix_product_gflop_s": 200.0, "cached_matrix_vector_gb_s": 20.0}
    size = sizes.SIZES["full"]
    result = {"size": "full", "limits": limits, "floors": sizes.floors(limits, size), "cases": {}}
    for case in peer.CASES:
        rows = {
            key: row._asdict() | {"seconds": {"ours": [2.0, 1.0, 3.0], "peer": [5.0, 9.0, 1.0]}, "load": [0.5, 0.6]}
            for key, (row, _) in peer.rows_of(case, size).items()
        }
        memory = {"ours": 500.0, "peer": 1000.0}
        result["cases"][case] = {"rows": rows, "memory_mb": memory, "memory_with_compilation_mb": memory}
    result["cases"]["sample"]["last_over_first"] = {"ours": 1.0, "peer": 1.1}
    text = peer.report(result)
    assert text.count("2.50 |") == 9  # medians 2 and 5
    assert text.count("0.50 |") == 5
    # 12 layers of 4 x 512 x 128 + 2 x 512 x 512 weights and 2048 x 512 of the output, each read once per token
    assert result["floors"]["sample_1"] == pytest.approx(256 * 4 * (12 * 786_432 + 2048 * 512) / 20e9)


def test_scaling_says_which_power_and_how_straight(script, tmp_path):
    scaling = script("scaling")
    contexts = [1024, 2048, 4096]
    blocks = np.array(contexts) / scaling.BLOCK
    flops = {kind: [scaling.attention_flops(kind, t) for t in (256, 1024)] for kind in (*scaling.KINDS, "dense")}
    result = {
        "contexts": contexts,
        "seconds_per_token": {"block": [1e-3] * 3, "previous": [2e-3] * 3, "column": list(1e-3 + 1e-5 * blocks)},
        "factored_contexts": (256, 1024),
        "flops": flops,
    }
    result["summary"] = scaling.summary(result)
    assert result["summary"]["lines"]["column"]["b"] == pytest.approx(1e-5)
    assert result["summary"]["last_over_first"]["block"] == 1.0
    assert result["summary"]["powers"]["block"] == pytest.approx(1.5, abs=0.1)
    assert result["summary"]["powers"]["dense"] == pytest.approx(2.0, abs=0.1)
    scaling.figure(result, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size < 150_000


def test_a_decoder_of_one_kind_is_timed(script, monkeypatch):
    scaling = script("scaling")
    monkeypatch.setitem(scaling.pattern.PATTERNS, "column", ())  # the script's pattern does not outlive the test
    monkeypatch.setattr(scaling, "WIDTH", 16)
    monkeypatch.setattr(scaling, "DEPTH", 1)
    monkeypatch.setattr(scaling, "CHUNK", 2)
    (seconds,) = scaling.decode_times("column", [128], 1)
    assert seconds > 0


def test_the_port_agrees_with_us(script, tmp_path):
    if not importlib.util.find_spec("transformers"):  # to import it would import torch
        pytest.skip("the port is not installed (extra bench)")
    before = "torch" in sys.modules  # by another test
    result = script("peer").run_case("train", "tiny", 1)
    assert result["agreement"]["loss"] < 1e-5
    json.dumps(result)
    assert before or "torch" not in sys.modules  # the port runs in a process of its own
