"""Small tables without a model: filters of logits, window starts, label rows."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np

from jukebox_jax import presets
from jukebox_jax.cli.verify_cases.case import Case
from jukebox_jax.cli.verify_cases.report import Report
from jukebox_jax.data.labels import Labeller, Vocabulary
from jukebox_jax.data.lyrics import lyric_window
from jukebox_jax.ops.logits import filter_top_k, filter_top_p
from jukebox_jax.sample import windows


def check_filters(case: Case, report: Report) -> None:
    """Top-k and top-p, entry by entry."""
    logits = jnp.asarray(case.input("logits"))
    for k in case.hps["top_k"]:
        report.close(f"top_k_{k}", filter_top_k(logits, k))
    if case.has("top_p_values"):
        rows = logits[case.input("top_p_rows")] if case.has("top_p_rows") else logits
        for i in range(len(case.input("top_p_values"))):
            # The values in hps.json are not rounded to float32.
            report.close(f"top_p_{i}", filter_top_p(rows, float(case.hps["top_p"][i])))


def check_windows(case: Case, report: Report) -> None:
    """Window starts and chunk sizes."""
    tables = case.json("windows.json")
    for row in tables.get("get_starts", ()):
        arguments = row["total_length"], row["n_ctx"], row["hop_length"]
        report.same(f"get_starts{arguments}", windows.starts(*arguments), row["starts"])
    for row in tables.get("split_chunks", ()):
        arguments = row["length"], row["chunk_size"]
        report.same(f"split_chunks{arguments}", windows.split(*arguments), row["chunks"])


def check_labels(case: Case, report: Report) -> None:
    """Label rows of songs, and of windows into them; with ``texts`` those where float32 and float64 part."""
    for number, config in enumerate(case.json("cases.json")):
        labeller = _labeller(case, config)
        with report.part(f"conf{number}"):
            if "texts" in config:
                _check_precision(report, labeller, config, f"conf{number}")
            else:
                _check_rows(report, labeller, config, f"conf{number}")


def _labeller(case: Case, config: dict[str, Any]) -> Labeller:
    version, tables = "v3" if config["v3"] else "v2", case.tables()
    unknown = {"unknown": 0}
    vocabulary = Vocabulary.load(tables, version) if tables else Vocabulary(version, unknown, unknown)
    rows = vocabulary.num_artists, vocabulary.num_genres
    preset = presets.Labels(version, *rows, config["max_genre_words"], config["n_tokens"])
    return Labeller(preset, vocabulary, config["sample_length"], compat=True)


def _check_rows(report: Report, labeller: Labeller, config: dict[str, Any], name: str) -> None:
    rows, infos = labeller.batch(config["items"])
    report.equal(f"{name}_y", rows)
    found = {"clean": [], "full_tokens": [], "describe": [], "windows": []}
    for row, info, item in zip(rows, infos, config["items"], strict=True):
        found["clean"].append(info["lyrics"])
        found["full_tokens"].append(info["full_tokens"])
        found["describe"].append(labeller.describe(row))
        moved = [window and _window(labeller, row, info, window["start"]) for window in item["windows"]]
        found["windows"].append(moved)
    for what, values in found.items():
        wrong = [
            i
            for i, (ours, item) in enumerate(zip(values, config["items"], strict=True))
            if json.dumps(ours, sort_keys=True) != json.dumps(item[what], sort_keys=True)
        ]
        report.same(f"{name} {what} of {len(values)} songs", f"wrong songs {wrong}", "wrong songs []")


def _window(labeller: Labeller, row: np.ndarray, info: dict[str, Any], start: int) -> dict[str, Any]:
    moved, indices = labeller.window(row, info, start)
    return {"start": start, "y": moved.tolist(), "indices": None if indices is None else indices.tolist()}


def _check_precision(report: Report, labeller: Labeller, config: dict[str, Any], name: str) -> None:
    labels, moved, first = [], [], {"fp32": [], "fp64": []}
    for item in config["items"]:
        row, info = labeller.label(item | {"lyrics": config["texts"][item["lyrics"]]})
        window, indices = labeller.window(row, info, item["start"])
        labels.append(row)
        moved.append(window)
        first["fp32"].append(-1 if indices is None else int(indices[0]))
        at = item["total_length"], item["offset"] + item["start"], config["sample_length"]
        first["fp64"].append(int(lyric_window(len(info["full_tokens"]), config["n_tokens"], *at)[0]))
    report.equal(f"{name}_y_label", np.stack(labels))
    report.equal(f"{name}_y_window", np.stack(moved))
    for precision, values in first.items():
        report.same(f"{name} first_index_{precision}", values, [i[f"first_index_{precision}"] for i in config["items"]])
