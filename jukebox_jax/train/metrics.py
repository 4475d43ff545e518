"""Where a run's numbers go: lines, ``metrics.jsonl`` and TensorBoard. Only the first process writes."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from tqdm import tqdm


class Log:
    """Writes to ``directory``; with ``enabled`` false every method does nothing."""

    def __init__(self, directory: Path, first_step: int, last_step: int, audio_seconds: float, enabled: bool = True):
        """``audio_seconds``: how much audio one step takes in."""
        self.last_step, self.audio_seconds, self.enabled = last_step, audio_seconds, enabled
        self._mark: tuple[int, float] | None = None
        if not enabled:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=first_step or None)
        self._bar = tqdm(
            total=last_step, initial=first_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume_timing(self, step: int) -> None:
        """What happened since the last line, up to after ``step``, was no training: it does not count as such."""
        self._mark = (step, time.perf_counter())

    def step(self, step: int) -> None:
        """One more step is done. Timing starts after the first, which compiles."""
        if self._mark is None:
            self.resume_timing(step)
        if self.enabled:
            self._bar.update(step - self._bar.n)

    def train(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A line for a training step, with the speed since the last one."""
        now = time.perf_counter()
        speed = None
        if self._mark is not None and step > self._mark[0]:
            speed = (now - self._mark[1]) / (step - self._mark[0])
        self._mark = (step, now)
        if not self.enabled:
            return
        values = {name: float(value) for name, value in metrics.items()}
        if speed:
            values |= {"seconds_per_step": speed, "audio_seconds_per_second": self.audio_seconds / speed}
        self._write(step, values, "")
        self.say(line(step, self.last_step, values))

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Averages over the test split, with averaged weights."""
        if self.enabled and metrics:
            self._write(step, metrics, "test_")
            self.say(f"step {step}  test: loss {metrics['loss']:.4f}{headline(metrics)}")

    def audio(self, step: int, name: str, audio: np.ndarray, sample_rate: int) -> None:
        """One item of mono audio in [-1, 1] for TensorBoard."""
        if self.enabled:
            self._board.add_audio(name, np.clip(audio, -1, 1)[:, None], step, sample_rate)

    def say(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        if self.enabled:
            tqdm.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """Complete the files."""
        if self.enabled:
            self._bar.close()
            self._board.close()
            self._file.close()

    def _write(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{prefix}{name}", value, step)
        self._file.write(json.dumps({"step": step} | {f"{prefix}{n}": float(v) for n, v in values.items()}) + "\n")
        self._file.flush()


def line(step: int, last_step: int, values: Mapping[str, float]) -> str:
    """``step 120/2000  loss 5.1  5.0 bits/token  gradient 0.9  rate 3.0e-04  0.2 s/step  12 audio-s/s  eta 0:06:12``"""
    text = f"step {step}/{last_step}  loss {values['loss']:.4f}{headline(values)}"
    text += f"  gradient {values['grad_norm']:.3g}  rate {values['learning_rate']:.2e}"
    if "seconds_per_step" in values:
        seconds = values["seconds_per_step"]
        left = int(seconds * (last_step - step))
        text += f"  {seconds:.3g} s/step  {values['audio_seconds_per_second']:.1f} audio-s/s"
        text += f"  eta {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
    return text


def headline(values: Mapping[str, float]) -> str:
    """The one number to watch: bits per token of a prior, spectral convergence in dB of a VQ-VAE (level 0)."""
    if "bits_per_token" in values:
        return f"  {values['bits_per_token']:.4f} bits/token"
    if "spectral_convergence" in values:
        return f"  {20 * math.log10(max(values['spectral_convergence'], 1e-9)):.2f} dB"
    return ""
