"""``jukebox verify`` must notice each of these mistakes, and say where."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jukebox_jax.cli import verify
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.models import conditioners, layers, resnet, vqvae
from jukebox_jax.ops import attention_xla, conv_stack, quantize

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def no_compiled_leftovers():
    """What was compiled before a mutation must not hide it, nor the mutation live on."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def failures(name: str, *needed: str) -> list[str]:
    """Arrays of a case that do not agree; only ``needed`` of them are compared, if any are named."""
    case = Case(GOLDEN / name, None)
    if needed:
        case.arrays = {key: value for key, value in case.arrays.items() if key in needed}
    report = verify.run(case, verify.family(case), exact_codes=True)
    assert not any(row.array == "case" for row in report.rows), report.rows[-1].note  # an error is no comparison
    return [row.array for row in report.rows if not row.passed]


def test_dilations_in_the_wrong_order(monkeypatch):
    right = resnet.dilations
    monkeypatch.setattr(
        resnet, "dilations", lambda depth, growth, cycle, reverse=False: right(depth, growth, cycle, not reverse)
    )
    assert {"latent_l0", "latent_l1"} <= set(failures("vqvae", "x", "latent_l0", "latent_l1"))


def test_scores_without_their_scale(monkeypatch):
    right = attention_xla.weights
    monkeypatch.setattr(attention_xla, "weights", lambda q, k, mask=None: right(q * q.shape[-1] ** 0.5, k, mask))
    assert {"f0_attn", "f1_attn", "f2_attn", "f3_attn", "f7_attn"} <= set(failures("attention"))


def test_previous_block_masked(monkeypatch):
    def masked(q, k, v, *, num_heads, num_blocks):
        q, k, v = (attention_xla.to_blocks(x, num_blocks) for x in (q, k, v))
        k, v = attention_xla.previous(k), attention_xla.previous(v)
        mask = attention_xla._causal(q.shape[2])
        return attention_xla.from_blocks(attention_xla._attend(q, k, v, num_heads, mask))

    monkeypatch.setattr(attention_xla, "previous_block", masked)
    wrong = failures("attention")
    assert "f3_attn" in wrong
    assert "f1_attn" not in wrong


def test_prime_attention_ends_with_the_lyrics(monkeypatch):
    monkeypatch.setattr(layers, "prime_prefix", lambda prime_length, num_blocks: prime_length)
    wrong = failures("attention")
    assert "f7_attn" in wrong
    assert "f0_attn" not in wrong


def test_genres_averaged(monkeypatch):
    def start(self, y):
        genres = y[:, 4 : 4 + self.config.max_genres]
        present = (genres >= 0)[..., None]
        rows = jnp.where(present, self.genre[jnp.maximum(genres, 0)], 0.0)
        return self.artist[y[:, 3]] + jnp.sum(rows, axis=1) / jnp.maximum(present.sum(axis=1), 1)

    monkeypatch.setattr(conditioners.LabelEmbedding, "start", start)
    assert "y_cond" in failures("prior_top_5b", "z", "y", "y_cond")


def test_relative_time_not_clamped(monkeypatch):
    right = conditioners._spread

    def unclamped(start, end, count, zero):
        step = jnp.where(end >= 1.0, 0.5, 0.0) * (end <= 1.0)  # what a clamp held back goes past the end again
        return right(start, end + step, count, zero)

    monkeypatch.setattr(conditioners, "_spread", unclamped)
    assert "x_cond" in failures("prior_top_end_of_song", "z", "y", "x_cond")


def test_dead_codes_not_restarted(monkeypatch):
    right = quantize.update

    def update(*args, **kwargs):
        names = ("state", "vectors", "codes", "candidates", "decay", "threshold")
        kwargs |= dict(zip(names, args, strict=False)) | {"threshold": -1.0}
        return right(**kwargs)

    monkeypatch.setattr(quantize, "update", update)
    monkeypatch.setattr(vqvae, "whole", conv_stack.whole)  # compiled in half the time
    wrong = failures("vqvae_train_restart")
    assert any("_k_l2" in name for name in wrong), wrong
