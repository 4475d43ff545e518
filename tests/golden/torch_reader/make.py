"""How legacy.pth.tar and zip.pth.tar were made, with torch 2.13.0. The values are repeated in test_torch_reader.py."""

from __future__ import annotations

import collections

import torch

base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
model = collections.OrderedDict()
model["module.base"] = base
model["module.shared"] = base  # one storage, twice
model["module.row"] = base[1]  # offset
model["module.transposed"] = base.t()  # strides
model["module.corner"] = base[1:3, ::2]
types = dict(
    half=torch.float16, bfloat16=torch.bfloat16, double=torch.float64, int64=torch.int64, int32=torch.int32,
    int16=torch.int16, int8=torch.int8, uint8=torch.uint8, bool=torch.bool,
)  # fmt: skip
for name, dtype in types.items():
    model["module." + name] = (torch.arange(6) % 2 if name == "bool" else torch.arange(6)).to(dtype)
model["module.parameter"] = torch.nn.Parameter(torch.full((2, 2), 1.5))
model["module.scalar"] = torch.tensor(3.0)
model["module.empty"] = torch.zeros(0, 3)
opt = {
    "state": {0: {"step": 3, "exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.full((2, 2), 2.0)}},
    "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
}
hps = {"name": "café", "downs_t": (3, 2, 2), "lr": 1e-3, "labels": True, "y_bins": [12, 40], "mu": None, "big": 2**70}
checkpoint = {"hps": hps, "model": model, "opt": opt, "step": 77, "other": {"ignored": torch.ones(1)}}
torch.save(checkpoint, "legacy.pth.tar", _use_new_zipfile_serialization=False)
torch.save(checkpoint, "zip.pth.tar")
