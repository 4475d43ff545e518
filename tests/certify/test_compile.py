"""The TPU compiler itself, on the smallest real programs: it needs libtpu and no TPU."""

from __future__ import annotations

import dataclasses
import io
import json
from importlib.util import find_spec

import pytest

from jukebox_jax.certify import compile
from jukebox_jax.certify.plan import predict
from jukebox_jax.certify.programs import resolve
from jukebox_jax.certify.topology import parse
from jukebox_jax.types import UserError

needs_compiler = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
SMALL = ("--config.model.transformer.depth=6",)


def small(**changes) -> compile.Request:
    values = dict(config="configs/small_prior.py", program="decode", topology="v5e:1x1", overrides=SMALL)
    return compile.Request(**{**values, **changes})


@needs_compiler
def test_a_small_decode():
    """Every weight and live cache once per token, caches in place; and the plan foresaw it."""
    c = compile.compile_here(small())
    assert c.sound and c.refusal is None and c.versions["libtpu"]
    assert c.memory.aliased is not None and c.memory.aliased >= (c.work.cache_bytes or 0) > 0
    assert c.floor_ratio is not None and 1.0 < c.floor_ratio < 3.0  # caches are small beside what surrounds the loop
    assert c.flops_ratio == pytest.approx(1.0, rel=0.1)
    where = parse("v5e:1x1")
    found = predict(resolve("configs/small_prior.py", "decode", 1, overrides=SMALL), where)
    assert found.peak == pytest.approx(c.memory.peak, rel=0.05)
    assert found.fits and found.roofline.bound == "HBM" == c.roofline.bound


@needs_compiler
def test_an_oversize_batch_is_refused():
    c = compile.compile_here(small(batch_size=16_384))
    assert not c.fits and not c.sound and c.flops is None
    assert c.memory.peak is not None and c.memory.peak > c.memory.limit
    assert "RESOURCE_EXHAUSTED" in (c.refusal or "")
    where = parse("v5e:1x1")
    wanted = resolve("configs/small_prior.py", "decode", 1, batch_size=16_384, overrides=SMALL)
    assert predict(wanted, where).fits is False


@needs_compiler
def test_a_slice_that_is_none():
    with pytest.raises(UserError, match="libtpu knows no slice v5e:2x5: try v5e:1x1"):
        compile.compile_here(small(topology="v5e:2x5"))


def test_gpus_are_lowered_for_in_a_process_of_their_own():
    answer = compile.run(small(platform="cuda", topology="cuda:8", batch_size=8))
    found = answer["lowered"]
    assert (found["devices"], found["mesh"]) == (8, {"data": 8, "fsdp": 1, "tensor": 1}) and found["lines"] > 100


def test_the_child_answers_bad_requests_in_one_line(monkeypatch, capsys):
    request = json.dumps(dataclasses.asdict(small(platform="cuda", topology="v5e:2x4")))
    monkeypatch.setattr("sys.stdin", io.StringIO(request))
    compile.main()
    assert "--topology=cuda:8" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"platform": "metal"}, "unknown platform 'metal'"), ({"batch_size": 0}, "--batch_size=0: it must be at least 1")],
)
def test_bad_requests(changes, part):
    with pytest.raises(UserError, match=part):
        small(**changes)


@pytest.mark.parametrize(("config", "program"), [("small_prior", "train"), ("vqvae", "decode")])
def test_only_the_decoding_of_a_prior_runs_in_8_bits(config, program):
    with pytest.raises(UserError, match="--int8 is for --program=decode of a prior"):
        small(config=f"configs/{config}.py", program=program, overrides=(), int8=True).resolve(1)
