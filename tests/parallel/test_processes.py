"""Which job a process finds itself in, and what it says when the job is not whole. Sockets; jax's runtime never."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

import jax
import pytest

from jukebox_jax.parallel import links, processes
from jukebox_jax.parallel.processes import Job, difference, find
from jukebox_jax.types import UserError

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "gpu[07,09-12]", "SLURM_NTASKS": "16", "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
OPENMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}  # fmt: skip
GKE = {"TPU_WORKER_HOSTNAMES": "job-0-0.job,job-0-1.job", "TPU_WORKER_ID": "1", "TPU_SKIP_MDS_QUERY": "1"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``environment({...}, tpu=True)``: the only variables of launchers, on a machine with or without TPU."""

    def set_to(variables: dict[str, str], tpu: bool = False) -> None:
        for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_"))]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if tpu:
            monkeypatch.delenv("JAX_PLATFORMS")
        exists = os.path.exists
        monkeypatch.setattr(os.path, "exists", lambda path: tpu if "/dev/" in str(path) else exists(path))
        for module in (jax._src.clusters.cluster, jax._src.clusters.cloud_tpu_cluster):
            monkeypatch.setattr(module, "running_in_cloud_tpu_vm", tpu)
        monkeypatch.setattr(jax._src.clusters.cloud_tpu_cluster, "get_metadata", lambda key: ("", 404))
        monkeypatch.setattr(jax._src.clusters.cloud_tpu_cluster.socket, "gethostbyname", lambda name: "10.0.0.1")

    return set_to


@pytest.mark.parametrize(
    ("variables", "tpu", "expected"),
    [
        ({}, False, ("", 1, 0, None)),
        (SLURM, False, ("gpu07:61441", 16, 9, [1])),
        (OPENMPI, False, ("10.96.0.1:62624", 4, 3, [1])),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, ("", 1, 0, None)),
        (GKE, True, ("job-0-0.job:8482", 2, 1, None)),
        (GKE | {"MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.job:8080", "MEGASCALE_NUM_SLICES": "3",
                "MEGASCALE_SLICE_ID": "2"}, True, ("job-0-0.job:8482", 6, 5, None)),
        (GKE | {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, True, ("", 1, 0, None)),  # Colab, Kaggle
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, ("", 1, 0, None)),
        (GKE, False, ("", 1, 0, None)),
    ],
)  # fmt: skip
def test_what_the_environment_says(variables, tpu, expected, environment):
    environment(variables, tpu)
    job = find()
    assert (job.address, job.count, job.index, job.local_devices) == expected


def test_a_tpu_pod_of_google_s_is_asked_for(environment, monkeypatch: pytest.MonkeyPatch):
    environment({}, tpu=True)
    answers = {"agent-worker-number": "3", "worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2", "tpu-env": "X: 'y'"}
    answers["worker-network-endpoints"] = ",".join(f"w{i}:{i}:10.0.0.{i + 1}" for i in range(4))
    monkeypatch.setattr(jax._src.clusters.cloud_tpu_cluster, "get_metadata", lambda key: (answers[key], 200))
    job = find()
    assert (job.address, job.count, job.index) == ("10.0.0.1:8482", 4, 3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert find().count == 1

    def no_such_server(key: str):
        raise ConnectionError(key)

    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(jax._src.clusters.cloud_tpu_cluster, "get_metadata", no_such_server)
    assert find().count == 1
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(UserError, match="TPU counts several processes"):
        find()


@pytest.mark.parametrize("variables", [{"SLURM_NTASKS": "4"}, {"OMPI_COMM_WORLD_SIZE": "4"}])
def test_a_launcher_that_says_too_little_is_an_error(variables, environment):
    environment(variables)
    with pytest.raises(UserError, match="srun or mpirun, or give --coordinator"):
        find()
    assert find("host:1", 4, 2).index == 2  # flags are enough


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1234", None, None), "give all of --coordinator"),
        ((None, 2, 1), "give all of --coordinator"),
        (("127.0.0.1", 2, 1), "--coordinator=127.0.0.1: write HOST:PORT"),
        (("127.0.0.1:many", 2, 1), "write HOST:PORT"),
        (("127.0.0.1:1234", 2, 2), "--process_id=2 of --num_processes=2: ids are 0 to"),
    ],
)
def test_flags_that_make_no_job(given, message):
    with pytest.raises(UserError, match=message):
        find(*given)


def test_differences_are_named():
    first = {"jax": "1", "config.a": "1"}
    assert difference([first, dict(first)]) == ""
    text = difference([first, first, first | {"jax": "2"}, {"config.a": "1"}])
    assert "jax is 1 on process 1 and 2 on process 3, 4" in text
    many = difference([{}, {str(i): "x" for i in range(9)}])
    assert "0 is missing on process 1 and x on process 2" in many and "and 6 more" in many


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(count: int, body: Callable[[Job], None], wait: float = 20.0, only=None, counts=None) -> dict[int, str]:
    """Run ``body`` in a thread per process; what each one raised, as text."""
    address, raised = f"127.0.0.1:{free_port()}", {}

    def run(index: int) -> None:
        job = Job(address, (counts or {}).get(index, count), index)
        job.wait = wait
        try:
            with job:
                body(job)
        except UserError as error:
            raised[index] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in (range(count) if only is None else only)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in [t for t in threading.enumerate() if t.name == "link"]:
        thread.join()
    return raised


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes that processes would have ended with."""
    codes: list[int] = []
    monkeypatch.setattr(processes, "_leave", codes.append)
    monkeypatch.setattr(processes.atexit, "register", lambda f, code: codes.append(code))
    return codes


def test_processes_that_agree_go_on(exits: list[int]):
    assert together(3, lambda job: job.agree({"jax": "1"})) == {}
    assert together(1, lambda job: (job.agree({"jax": "1"}), job.start())) == {}
    assert exits == []


def test_all_hear_of_a_difference(exits: list[int]):
    raised = together(3, lambda job: job.agree({"jax": str(job.index // 2)}))
    assert set(raised) == {0, 1, 2} and all("jax is 0 on process 1 and 1 on process 3" in r for r in raised.values())
    assert set(exits) == {2}


def test_all_hear_of_a_failure(exits: list[int], capsys: pytest.CaptureFixture[str]):
    def body(job: Job) -> None:
        if job.index == 2:
            raise UserError("no data\nhere")
        while not job._leaving:
            time.sleep(0.01)

    assert together(3, body) == {2: "no data\nhere"}
    shown = capsys.readouterr().err.splitlines()
    assert sorted(shown) == [f"jukebox: error: process {i} of 3: process 3 failed: no data here" for i in (1, 2)]
    assert exits == [2, 2, 2]


def test_who_is_missing_is_named(exits: list[int]):
    raised = together(4, lambda job: None, wait=0.5, only=(0, 2))
    assert set(raised) == {0, 2} and all(
        "no sign of process 2, 4 of 4 (--process_id=1, 3)" in r for r in raised.values()
    )
    raised = together(2, lambda job: None, wait=0.5, only=(1,))
    assert "no answer from process 1 of 2 (--process_id=0) at 127.0.0.1:" in raised[1]
    raised = together(2, lambda job: None, counts={1: 3})
    assert (
        all("--process_id=1 of --num_processes=3, process 1 has 2" in r for r in raised.values()) and len(raised) == 2
    )


def test_strangers_are_ignored_and_a_port_in_use_is_named():
    port, met = free_port(), []
    first = threading.Thread(target=lambda: met.append(links.gather(port, 2, 20.0)))
    first.start()
    for stranger in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"count": 2}\n', b"x" * 5000, b""):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as link:
                    link.sendall(stranger)
                break
            except ConnectionRefusedError:  # it does not listen yet
                time.sleep(0.01)
    links.report(("127.0.0.1", port), 2, 1, 20.0).close()
    first.join()
    assert list(met[0]) == [1]
    met[0][1].close()
    with socket.create_server(("", 0)) as taken, pytest.raises(UserError, match="port .* cannot be used"):
        links.gather(taken.getsockname()[1], 2, 1.0)
