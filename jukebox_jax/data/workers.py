"""One function over many items, on this machine's processes or on Beam's workers, with the same results.

Items and results are JSON tables, so that either kind of worker can have them.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from etils import epath
from tqdm import tqdm

Item = dict[str, Any]
Tick = Callable[[int], Any]
Work = Callable[[Item, Tick], Item]

_done: Any = None  # a counter shared with the parent, in worker processes


@runtime_checkable
class Workers(Protocol):
    """``work`` (a picklable function) over ``items``: results in the order of the items.

    ``work`` calls ``tick(n)`` as it gets on; all ticks add up to ``total``, which is what the progress bar shows.
    """

    def __call__(self, work: Work, items: Sequence[Item], *, what: str, total: int) -> list[Item]: ...


class LocalWorkers:
    """Processes of this machine; with one worker or one item, this process."""

    def __init__(self, processes: int | None = None, progress: bool = True):
        self.processes, self.progress = processes or os.cpu_count() or 1, progress

    def __call__(self, work: Work, items: Sequence[Item], *, what: str, total: int) -> list[Item]:
        with tqdm(total=total, desc=what, unit="file", disable=not self.progress, mininterval=0.3) as bar:
            if min(self.processes, len(items)) <= 1:
                return [work(item, bar.update) for item in items]
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            counter = context.Value("q", 0)
            with concurrent.futures.ProcessPoolExecutor(
                min(self.processes, len(items)), context, initializer=_start, initargs=(counter,)
            ) as pool:
                futures = [pool.submit(_work, work, item) for item in items]
                try:
                    waiting = set(futures)
                    while waiting:
                        finished, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_EXCEPTION)
                        bar.update(counter.value - bar.n)
                        for future in finished:
                            future.result()  # a worker's error ends the run now, not after the last item
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
                return [future.result() for future in futures]


class BeamWorkers:
    """Workers of an Apache Beam runner. ``scratch`` is a folder that they and this process can write.

    ``flags`` go to Beam as they are (``--direct_num_workers=2``, ``--project=...``, ``--flink_master=...``).
    """

    def __init__(self, runner: str, flags: Sequence[str], scratch: str):
        import apache_beam  # noqa: F401  # pyright: ignore[reportMissingImports]  # missing: say so before any work

        self.runner, self.flags, self.scratch = runner, list(flags), scratch
        self.runs = 0

    def __call__(self, work: Work, items: Sequence[Item], *, what: str, total: int) -> list[Item]:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]

        self.runs += 1
        folder = epath.Path(self.scratch) / f"beam_{self.runs}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"index": index, "item": item}) for index, item in enumerate(items)]
        (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
        options = pipeline_options.PipelineOptions([f"--runner={self.runner}", *self.flags])
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "items" >> beam.io.ReadFromText(os.fspath(folder / "items.jsonl"))
                | "spread" >> beam.Reshuffle()
                | what >> beam.Map(functools.partial(_line, work))
                | "results" >> beam.io.WriteToText(os.fspath(folder / "results"))
            )
        results = [json.loads(line) for path in folder.glob("results-*") for line in path.read_text().splitlines()]
        assert len(results) == len(items), f"{what}: {len(results)} results for {len(items)} items"
        return [result["result"] for result in sorted(results, key=lambda result: result["index"])]


def _start(counter: Any) -> None:
    global _done
    _done = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


def _work(work: Work, item: Item) -> Item:
    return work(item, _count)


def _count(number: int) -> None:
    with _done.get_lock():
        _done.value += number


def _line(work: Work, line: str) -> str:
    task = json.loads(line)
    return json.dumps({"index": task["index"], "result": work(task["item"], _nothing)})


def _nothing(number: int) -> None:
    """Beam shows its own progress."""
