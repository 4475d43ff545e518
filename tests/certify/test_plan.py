"""Plans are held against counts by hand, and against what the compiler said of every certificate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jukebox_jax import __main__ as dispatcher
from jukebox_jax import presets
from jukebox_jax.certify.certificate import Certificate
from jukebox_jax.certify.limits import broken
from jukebox_jax.certify.plan import predict
from jukebox_jax.certify.programs import resolve
from jukebox_jax.certify.songs import plan_songs
from jukebox_jax.certify.topology import parse
from jukebox_jax.models.flops import layer_flops, repeated_flops, step_flops, vqvae_flops
from jukebox_jax.models.pattern import Kind
from jukebox_jax.types import UserError

CERTIFICATES = sorted((Path(__file__).parents[2] / "certificates").glob("*.json"))


@pytest.mark.parametrize(
    ("kind", "keys", "extra"),
    [
        (Kind.DENSE, 8192, {}),
        (Kind.BLOCK, 64, {}),
        (Kind.PREVIOUS, 64, {}),
        (Kind.COLUMN, 128, {}),
        (Kind.PRIME, 512, {"prefix": 512}),
        (Kind.LYRICS, 512, {"num_lyrics": 512}),
    ],
)
def test_one_layer_of_each_kind_by_hand(kind, keys, extra):
    """5B: 8192 positions, width 4800, 8 heads of 150, MLP of 4800. A multiply-add is two operations."""
    queries_and_output = 2 * (2 * 8192 * 4800 * 1200)
    keys_and_values = 2 * (2 * (512 if kind is Kind.LYRICS else 8192) * 4800 * 1200)
    scores_and_mix = 2 * (2 * 8 * 8192 * keys * 150)
    mlp = 2 * (2 * 8192 * 4800 * 4800)
    found = layer_flops(kind, presets.PRIOR_5B.transformer, **extra)
    assert found == queries_and_output + keys_and_values + scores_and_mix + mlp


def test_what_is_computed_twice_by_hand():
    """Each layer but for the second product of its MLP; the logits when the loss is cut into pieces."""
    c = presets.PRIOR_5B
    layers = 24 * sum(layer_flops(k, c.transformer) for k in (Kind.BLOCK, Kind.COLUMN, Kind.PREVIOUS))
    again = layers - 72 * 2 * 8192 * 4800 * 4800
    assert repeated_flops(c, True, 1) == again
    assert repeated_flops(c, True, 16) == again + 2 * 8192 * 4800 * 2048
    assert repeated_flops(c, False, 1) == 0


def test_one_decoded_position_by_hand():
    t = presets.PRIOR_5B.transformer
    weights = 72 * (4 * 4800 * 1200 + 2 * 4800 * 4800) + 4800 * 2048
    attention = 24 * (64 + 128 + 64) * 2 * 1200
    assert step_flops(presets.PRIOR_5B) == 2 * (weights + attention)
    assert t.attention_width == 1200


def test_a_vqvae_level_by_hand():
    """A narrow VQ-VAE: three convolutions of stride 2 and size 4, one residual block after each, one of size 3."""
    c = presets.VQVAE(
        down_depths=(3,), strides=(2,), width=8, depth=1, multipliers=None, codebook_dim=16, codebook_size=32
    )
    found = vqvae_flops(c, 1024, (0,))
    block = 2 * (3 * 8 * 8 + 8 * 8)  # per position
    down = 512 * 2 * 4 * 8 + 256 * 2 * 4 * 64 + 128 * 2 * 4 * 64
    assert found["encoder"] == down + (512 + 256 + 128) * block + 128 * 2 * 3 * 8 * 16
    assert found["distances"] == 2 * 128 * 16 * 32


def certificate(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", CERTIFICATES, ids=lambda path: path.stem)
def test_the_plan_of_every_certificate(path):
    """Peak within 5 % of memory_analysis; FLOPs within 5 % of those counted in the compiled text."""
    c = certificate(path)
    if c["plan"]["peak"] is not None:
        assert c["plan"]["peak"] == pytest.approx(c["memory"]["peak"], rel=0.05)
    if c["flops"] is not None and c["program"] == "train" and "vqvae" not in path.stem:
        assert c["plan"]["flops"] == pytest.approx(c["flops"], rel=0.05)


@pytest.mark.parametrize("path", CERTIFICATES, ids=lambda path: path.stem)
def test_every_certificate_keeps_its_limits(path):
    """The acceptance lines of pods: FLOPs, peak and gathers of 5B on v5e-256, bytes per decoded token."""
    found, plain = Certificate.from_json(certificate(path)), None
    if "_int8_" in path.stem:
        plain = Certificate.from_json(certificate(path.with_name(path.name.replace("_int8_", "_"))))
        assert (plain.batch_size, plain.mesh, plain.topology) == (found.batch_size, found.mesh, found.topology)
        assert "--int8" in found.overrides
    assert found.fits and broken(found, plain) == []


def test_four_programs_in_8_bits_are_certified():
    models = {c["config"] for c in map(certificate, CERTIFICATES) if "--int8" in c["overrides"]}
    assert {Path(m).stem for m in models} == {"prior_5b", "prior_5b_lyrics", "prior_1b_lyrics", "upsampler_level_0"}


@pytest.mark.parametrize("name", ["prior_1b_lyrics_decode_v5e-1", "prior_5b_decode_v5e-8"])
def test_certificates_hold_today_s_plan(name):
    c = certificate(next(path for path in CERTIFICATES if path.stem == name))
    where = parse(c["topology"], c["num_slices"])
    wanted = resolve(c["config"], c["program"], where.num_devices, batch_size=c["batch_size"], mesh=c["mesh"])
    found = predict(wanted, where)
    assert {"arguments": found.arguments, "peak": found.peak, "flops": found.flops} == c["plan"]


def test_songs():
    """Half a minute on one chip: the windows of the sampler, each level's codes once."""
    c = presets.SMALL_PRIOR
    levels = plan_songs(presets.SMALL_VQVAE, {1: c}, 3, 100.0, parse("v5e-1"), [0.5])
    (level,) = levels
    total = -(-100 * 22050 // 256)
    assert (level.windows, level.tokens, level.batch, level.batches) == (2, total, 3, 1)
    assert level.seconds == pytest.approx(level.prefill.roofline.seconds + total * level.decode.roofline.seconds)
    assert level.decode.fits and level.decode.roofline.bound == "HBM"


def run(capsys, *argv: str):
    code = dispatcher.main(["plan", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_training_run(capsys):
    small = [
        "--config=configs/small_prior.py",
        "--topology=v5e-8",
        "--batch_size=8",
        "--config.model.transformer.depth=3",
    ]
    code, out, _ = run(capsys, *small, "--tokens=655360", "--price_per_chip_hour=1")
    assert code == 0 and "fits: peak" in out and "10 steps" in out and "at 50% of the roofline" in out
    code, out, _ = run(capsys, *small, "--batch_size=4096", "--tokens=1e6")
    assert code == 1 and "DOES NOT FIT" in out


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--topology=v5e-8"], "--program=train needs --config, and no --model"),
        (["--topology=v5e-8", "--program=sample", "--model=6b"], "unknown model '6b'"),
        (["--topology=v5e-8", "--program=dream", "--model=5b"], "unknown program 'dream'"),
        (["--topology=v5e-8", "--config=configs/prior_5b.py", "--efficiency=2"], "a share of the roofline"),
        (["--topology=v5e-8", "--program=sample", "--model=5b", "--songs=0"], "must be above 0"),
    ],
)
def test_bad_plans(capsys, argv, part):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "") and part in err and err.count("\n") == 1


def test_programs_that_models_do_not_have():
    with pytest.raises(UserError, match="encode is a program of VQ-VAEs"):
        resolve("configs/prior_5b.py", "encode", 8)
    with pytest.raises(UserError, match="prefill is a program of priors"):
        resolve("configs/vqvae.py", "prefill", 8)


def test_the_mesh_of_a_config_gives_way():
    """64 does not fit eight devices; 256 does not divide the upsampler's width of 1920."""
    assert resolve("configs/prior_5b.py", "train", 8).mesh == {"data": 1, "fsdp": 8, "tensor": 1}
    wanted = resolve("configs/upsampler_level_0.py", "train", 256)
    assert wanted.mesh == {"data": 2, "fsdp": 128, "tensor": 1}
    assert wanted.experiment is not None and wanted.experiment.mesh_sizes(256) == wanted.mesh  # `train` takes it too
    assert resolve("configs/prior_5b.py", "decode", 16).mesh == {"data": 2, "fsdp": 1, "tensor": 8}
