"""Figures of codes that need no model: how much of a codebook is used, and how well single codes can be guessed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64

COUNTS_PER_CODE = 1000  # codes to estimate a unigram model from, for each in the codebook: within 0.001 bits of all


def count(codes: Int[np.ndarray, "..."], size: int) -> Int64[np.ndarray, "{size}"]:
    """How often each code of a codebook of ``size`` occurs."""
    return np.bincount(np.asarray(codes).ravel(), minlength=size).astype(np.int64)


def usage(counts: Int64[np.ndarray, "k"]) -> dict[str, int | float]:
    """``codes`` seen, ``used``: share of the codebook among them, ``entropy`` in bits (at most log2 of the size)."""
    p = counts[counts > 0] / counts.sum()
    return {
        "codes": int(counts.sum()),
        "used": float(np.mean(counts > 0)),
        "entropy": float(-np.sum(p * np.log2(p))) + 0.0,
    }


def unigram_bits(seen: Int64[np.ndarray, "k"], scored: Int64[np.ndarray, "k"]) -> float:
    """Bits per code of the codes counted in ``scored`` under the frequencies of ``seen``, with add-one smoothing."""
    p = (seen + 1) / (seen.sum() + len(seen))
    return float(-np.sum(scored * np.log2(p)) / scored.sum())
