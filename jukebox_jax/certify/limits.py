"""What the certificates of the released models must hold: the acceptance lines of pods (issue 4)."""

from __future__ import annotations

from jukebox_jax.certify.certificate import Certificate
from jukebox_jax.certify.topology import GIB

# model -> compiled FLOPs over the model's, of a training step
FLOPS = {"prior_5b": 1.25, "prior_5b_lyrics": 1.30}
TRAIN_PEAK = 14.5 * GIB  # per chip of v5e:16x16, at batch 512
OVERLAPPED = 0.6  # of the bytes of gathered weights
# Of the layers' gradients. The compiler sums those of 5B's lyrics encoder (1.8 %; 20 rows of 1280 per device) whole.
REDUCED_WHOLE = 0.02
# (model, topology) -> HBM bytes over the floor, of a decoded token at batch 16
DECODE = {
    ("prior_1b_lyrics", "v5e:1x1"): 1.05,
    **{(m, t): 1.12 for m in ("prior_5b", "prior_5b_lyrics") for t in ("v5e:2x4", "v6e:2x4")},
    **{(m, "v5p:2x2x2"): 1.25 for m in ("prior_5b", "prior_5b_lyrics")},
}
INT8 = 0.6  # HBM bytes of a decoded token in 8 bits, over those in bfloat16


def broken(c: Certificate, plain: Certificate | None = None) -> list[str]:
    """Each limit that does not hold, in words; limits of other models, pods and programs are none.

    ``plain``: of a program in 8 bits, the same in bfloat16.
    """
    found = [] if c.fits else ["does not fit"]
    if not c.sound and c.fits:
        found.append(f"is not counted: {c.uncounted}")
    if c.flops is None:
        return found
    model = c.config.rpartition("/")[2].removesuffix(".py")
    if c.program == "train" and model in FLOPS and (c.topology, c.num_slices) == ("v5e:16x16", 1):
        found += _train(c, FLOPS[model])
    if c.program == "decode" and (model, c.topology) in DECODE and c.batch_size == 16:
        found += _decode(c, DECODE[model, c.topology])
    if plain is not None:
        ratio = (c.hbm_bytes or 0) / (plain.hbm_bytes or 1)
        if ratio > INT8:
            found.append(f"HBM bytes are {ratio:.3f} x bfloat16's, not at most {INT8}")
    return found


def _train(c: Certificate, most: float) -> list[str]:
    found = []
    if c.flops_ratio is None or c.flops_ratio > most:
        found.append(f"FLOPs are {c.flops_ratio or 0:.3f} x the model's, not at most {most}")
    if c.memory.peak is None or c.memory.peak > TRAIN_PEAK:
        found.append(f"peak is {(c.memory.peak or 0) / GIB:.2f} GiB, not at most {TRAIN_PEAK / GIB}")
    weights, gathered = c.work.weight_bytes or 0.0, c.gathered or {}
    for way in ("forward", "backward"):
        if gathered.get(way, 0.0) > 1.01 * weights:
            found.append(f"weights are gathered {gathered[way] / weights:.2f} times {way}, not once")
    total = gathered.get("forward", 0.0) + gathered.get("backward", 0.0)
    if gathered.get("overlapped", 0.0) < OVERLAPPED * total:
        found.append(f"{gathered['overlapped'] / total:.0%} of gathered bytes are hidden, not {OVERLAPPED:.0%}")
    reduced = {
        kind: sum(t.bytes for t in c.collectives if t.in_loop and t.kind == kind)
        for kind in ("all-reduce", "reduce-scatter")
    }
    if reduced["all-reduce"] > REDUCED_WHOLE * weights or reduced["reduce-scatter"] < 0.99 * weights:
        found.append("gradients of the layers are reduced whole, not scattered")
    return found


def _decode(c: Certificate, most: float) -> list[str]:
    found = []
    if c.floor_ratio is None or c.floor_ratio > most:
        found.append(f"HBM bytes are {c.floor_ratio or 0:.3f} x the floor, not at most {most}")
    cache, temporaries = c.work.cache_bytes or 0, c.memory.temporaries or 0
    share = 0.02 if "--int8" in c.overrides else 0.01  # of caches half as large
    if temporaries > share * cache:
        found.append(f"temporaries are {temporaries / cache:.1%} of the caches, not at most {share:.0%}")
    if (c.memory.aliased or 0) < cache:
        found.append("caches are not written in place")
    return found
