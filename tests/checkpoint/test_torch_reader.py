"""Reading what torch wrote: both containers, every type, strides and shared storage; and what is no such file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jukebox_jax.checkpoint.tensors import LazyTensor
from jukebox_jax.checkpoint.torch_reader import open_checkpoint
from jukebox_jax.types import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = GOLDEN / "torch_reader"  # written by torch 2.13.0: make.py there
OWN = [path for path in sorted(GOLDEN.rglob("*.pth.tar")) if not path.parent.name.startswith("pipeline")]
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.fixture(params=["legacy", "zip"])
def checkpoint(request):
    found = open_checkpoint(FILES / f"{request.param}.pth.tar")
    assert found.container == request.param
    return found


def test_views_of_one_storage(checkpoint):
    expected = {"base": BASE, "shared": BASE, "row": BASE[1], "transposed": BASE.T, "corner": BASE[1:3, ::2]}
    for name, values in expected.items():
        tensor = checkpoint.tensors[name]  # without "module."
        assert tensor.shape == values.shape and tensor.dtype == np.float32
        read = tensor.read()
        np.testing.assert_array_equal(read, values)
        assert read.flags.c_contiguous
    assert checkpoint.tensors["base"] == checkpoint.tensors["shared"]  # the same bytes
    assert checkpoint.tensors["base"] != checkpoint.tensors["transposed"]


@pytest.mark.parametrize(
    "name, dtype",
    [("half", "float16"), ("bfloat16", "bfloat16"), ("double", "float64"), ("int64", "int64"), ("int32", "int32"),
     ("int16", "int16"), ("int8", "int8"), ("uint8", "uint8"), ("bool", "bool")],
)  # fmt: skip
def test_types(checkpoint, name, dtype):
    values = checkpoint.tensors[name].read()
    assert values.dtype.name == dtype
    np.testing.assert_array_equal(values.astype(int), np.arange(6) % 2 if name == "bool" else np.arange(6))


def test_parameters_scalars_and_empty_tensors(checkpoint):
    np.testing.assert_array_equal(checkpoint.tensors["parameter"].read(), np.full((2, 2), 1.5, np.float32))
    assert checkpoint.tensors["scalar"].read() == 3.0 and checkpoint.tensors["scalar"].shape == ()
    assert checkpoint.tensors["empty"].read().shape == (0, 3)


def test_everything_else_of_a_checkpoint(checkpoint):
    assert checkpoint.hps == {
        "name": "café", "downs_t": (3, 2, 2), "lr": 1e-3, "labels": True, "y_bins": [12, 40], "mu": None, "big": 2**70,
    }  # fmt: skip
    assert checkpoint.step == 77
    state = checkpoint.opt["state"][0]
    assert state["step"] == 3
    np.testing.assert_array_equal(state["exp_avg_sq"].read(), np.full((2, 2), 2.0))
    assert checkpoint.opt["param_groups"] == [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]


def test_tensors_stay_in_the_file(checkpoint):
    assert all(isinstance(tensor, LazyTensor) for tensor in checkpoint.tensors.values())
    assert all(isinstance(tensor.storage.position, int) for tensor in checkpoint.tensors.values())


@pytest.mark.parametrize("path", OWN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_golden_opens(path):
    found = open_checkpoint(path)
    assert found.container == ("zip" if path.read_bytes()[:2] == b"PK" else "legacy")
    assert len(found.tensors) > 10
    for tensor in found.tensors.values():
        assert np.isfinite(tensor.read().astype(np.float32)).all()


def test_agrees_with_torch():
    torch = pytest.importorskip("torch", reason="torch is only there to cross-check the reader (extra: bench)")
    for path in sorted(GOLDEN.rglob("*.pth.tar")):
        ours, theirs = open_checkpoint(path), torch.load(path, weights_only=True, map_location="cpu")
        assert [name.removeprefix("module.") for name in theirs["model"]] == list(ours.tensors)
        for tensor, values in zip(ours.tensors.values(), theirs["model"].values(), strict=True):
            np.testing.assert_array_equal(tensor.read().astype(np.float64), values.detach().double().numpy())
        assert (ours.hps or None, ours.step) == (theirs.get("hps") or None, theirs.get("step"))


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "not a file of torch.save"), (b"<html>404</html>", "not a file of torch.save"),
     (b"version https://git-lfs", "not a file of torch.save"), (b"\x80\x02N.", "magic number is missing"),
     (b"PK\x03\x04", "truncated"), (b"\x80", "truncated")],
)  # fmt: skip
def test_other_files(tmp_path, content, reason):
    path = tmp_path / "file.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"file.pth.tar.*{reason}"):
        open_checkpoint(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        open_checkpoint(tmp_path / "none.pth.tar")
    with pytest.raises(UserError, match="directory"):
        open_checkpoint(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "file.pth.tar"
    path.write_bytes((FILES / "legacy.pth.tar").read_bytes())
    tensor = open_checkpoint(path).tensors["base"]
    path.write_bytes(b"")
    with pytest.raises(UserError, match="truncated while"):
        tensor.read()
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        tensor.read()
