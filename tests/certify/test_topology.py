"""Names of slices, figures of chips, and prices."""

from __future__ import annotations

import json

import pytest

from jukebox_jax.certify import prices
from jukebox_jax.certify.topology import CHIPS, GIB, parse
from jukebox_jax.types import UserError


@pytest.mark.parametrize(
    ("text", "name", "chips", "devices"),
    [
        ("v5e:16x16", "v5e:16x16", 256, 256),
        ("v5e-8", "v5e:2x4", 8, 8),
        ("v5p-512", "v5p:4x8x8", 256, 256),  # 512 counts cores
        ("tpu7x:2x2x1", "tpu7x:2x2x1", 4, 8),
    ],
)
def test_names(text, name, chips, devices):
    topology = parse(text)
    assert (topology.name, topology.chips, topology.num_devices) == (name, chips, devices)


def test_slices_multiply():
    pod = parse("v5e-256", 2)
    assert (pod.chips, pod.name, pod.title) == (512, "v5e:16x16", "2 x v5e:16x16")


@pytest.mark.parametrize(
    ("text", "slices", "part"),
    [
        ("v5d:2x4", 1, "Did you mean 'v5"),
        ("v5e:2x4x4", 1, "write v5e:16x16, or one of v5e-1"),
        ("v5p:4x8", 1, "write v5p:4x4x4"),
        ("v5e-7", 1, "unknown topology 'v5e-7'"),
        ("v5e:2x4", 0, "--num_slices=0: it must be at least 1"),
    ],
)
def test_bad_names(text, slices, part):
    with pytest.raises(UserError, match=part):
        parse(text, slices)


def test_chips_are_ordered_as_their_makers_say():
    """A slip of a power of ten in the table would break one of these."""
    for chip in CHIPS.values():
        assert 1e14 < chip.flops < 1e16 and 5e11 < chip.hbm < 1e13
        assert chip.hbm > chip.ici > 10 * chip.dcn
        assert 15 * GIB < chip.hbm_limit < 96 * GIB


def test_a_price_of_one_s_own(tmp_path):
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"v5e": 0.5}))
    assert prices.price("v5e", str(file)) == 0.5
    assert prices.price("v6e", str(file)) == prices.PRICES["v6e"]
    assert prices.price("v5e", str(file), 0.25) == 0.25
    assert prices.price("tpu7x") is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is not JSON"),
        ("[1]", "should hold a table"),
        ('{"v5x": 1}', "unknown kind of chip 'v5x'"),
        ('{"v5e": "1"}', "the price of v5e is '1'"),
        ('{"v5e": 0}', "the price of v5e is 0"),
    ],
)
def test_bad_prices(tmp_path, text, part):
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(UserError, match=part):
        prices.load(str(file))
    with pytest.raises(UserError, match="must be above 0"):
        prices.price("v5e", None, -1.0)
