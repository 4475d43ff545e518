"""Arrays that are written to Orbax a piece at a time: bounded memory, and an ordinary checkpoint in the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jukebox_jax.checkpoint import bundle, openai, stream
from jukebox_jax.checkpoint.mapping import flatten
from jukebox_jax.checkpoint.openai_hps import prior_from_hps
from jukebox_jax.checkpoint.stream import Piece, StreamedArray
from jukebox_jax.checkpoint.torch_reader import open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"


class Made:
    """A tensor made when it is read."""

    def __init__(self, value: float, shape=(6, 4), dtype=np.float16):
        self.value, self.shape, self.dtype = value, shape, np.dtype(dtype)

    def read(self):
        return np.full(self.shape, self.value, self.dtype) + np.arange(self.shape[-1], dtype=self.dtype)


def leaf(count: int, **options) -> StreamedArray:
    return StreamedArray(tuple(Piece(Made(i), **options) for i in range(count)), stacked=True)


def test_a_piece_is_columns_turned():
    piece = Piece(Made(10), columns=(1, 3), axes=(1, 0))
    assert piece.shape == (2, 6)
    np.testing.assert_array_equal(piece.read(), np.repeat([[11], [12]], 6, axis=1))


def test_a_leaf_has_the_widest_type_of_its_pieces():
    mixed = StreamedArray((Piece(Made(1)), Piece(Made(2, dtype=np.float32))), stacked=True)
    assert mixed.dtype == np.float32 and mixed.shape == (2, 6, 4) and mixed.nbytes == 192
    np.testing.assert_array_equal(mixed.read()[:, 0, 0], [1, 2])


def test_stored_as_an_ordinary_checkpoint_in_the_files_own_types(tmp_path):
    """fp16 stays fp16 on disk; plain Orbax reads it; so does ``load_component``, as float32."""
    checkpoint = open_checkpoint(GOLDEN / "prior_top_5b_fp16_weights" / "checkpoint.pth.tar")
    preset = prior_from_hps(checkpoint.hps or {})
    lazy, expected = openai.stream_prior(checkpoint, preset), openai.import_prior(checkpoint, preset)
    bundle.save_component(tmp_path, "prior_level_2", lazy, preset)
    plain = ocp.PyTreeCheckpointer().restore(tmp_path / "prior_level_2")
    loaded = bundle.load_component(tmp_path, "prior_level_2")
    for path, values in flatten(expected).items():
        np.testing.assert_array_equal(flatten(loaded)[path], values)
        np.testing.assert_array_equal(flatten(plain)[path], values)
        assert flatten(plain)[path].dtype == flatten(lazy)[path].dtype
        assert flatten(loaded)[path].dtype == np.float32
    stored = bundle.open_component(tmp_path, "prior_level_2")
    for name, tensor in openai.export_prior(stored, preset).items():
        np.testing.assert_array_equal(tensor.read(), checkpoint.tensors[name].read())
        assert tensor.dtype == checkpoint.tensors[name].dtype


def test_one_piece_is_read_at_a_time_and_each_once(tmp_path, monkeypatch):
    reads: Counter[float] = Counter()
    order: list[str] = []

    def read(self):
        reads[self.value] += 1
        order.append("read")
        return np.full(self.shape, self.value, self.dtype)

    monkeypatch.setattr(Made, "read", read)
    watched = StreamedArray(leaf(5).pieces, True, lambda count: order.append(f"wrote {count}"))
    with stream.stream_checkpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.PyTreeSave({"params": {"w": watched}}))
    assert reads == dict.fromkeys(range(5), 1)
    assert order == ["read", "wrote 48"] * 5


def test_chunks_are_layers_and_large_layers_are_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 30)
    with stream.stream_checkpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", args=ocp.args.PyTreeSave({"w": leaf(3)}))
    stored = stream.open_array(tmp_path / "c", ["w"])
    assert stored.store.chunk_layout.read_chunk.shape == (1, 3, 4)
    np.testing.assert_array_equal(stored[1], Made(1).read())
    np.testing.assert_array_equal(stored[2, 3:, 1], np.full(3, 3))


def test_open_component_of_either_kind_of_store(tmp_path):
    """Components that training saved (OCDBT) are opened the same way."""
    preset = prior_from_hps(open_checkpoint(GOLDEN / "prior_uncond" / "checkpoint.pth.tar").hps or {})
    bundle.save_component(tmp_path, "prior_level_2", {"params": {"a": {"b": np.arange(6.0).reshape(2, 3)}}}, preset)
    stored = bundle.open_component(tmp_path, "prior_level_2")["params"]["a"]["b"]
    assert stored.shape == (2, 3) and stored.dtype == np.float64
    np.testing.assert_array_equal(stored[1], [3, 4, 5])
    assert jax.tree.structure(stored).num_leaves == 1
