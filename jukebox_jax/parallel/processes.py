"""Many processes as one job: they meet, agree that they run the same thing, and end together.

jax's own runtime ends a job whose processes do not all come with a stack trace that names nobody, and one whose
processes differ perhaps never. So they first meet over plain TCP, at the address that jax will use afterwards, and
their connections stay: who fails says why, and the others then end with that sentence; who is killed is missed at once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jukebox_jax.parallel import links
from jukebox_jax.types import UserError

WAIT = 30.0  # seconds for the others to start: slow ones have as long again before a minute is over
HEARTBEAT = 45  # seconds without a sign of life: a host without power closes no connection
GRACE = 3.0  # seconds in which a lost process is heard of, before a failed collective counts as one's own failure
_LAUNCHERS = {"Slurm": "SLURM_NTASKS", "OpenMPI": "OMPI_COMM_WORLD_SIZE"}  # process counts that they set
_TPU_HOSTS = "TPU_WORKER_HOSTNAMES"  # separated by commas
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


class Job:
    """The processes of a run, as a context; with one of them, all of it does nothing.

    Entering waits for the others. An exception that leaves the context ends all processes, each with a line that says
    which one failed and why, and a non-zero exit code.
    """

    def __init__(self, address: str = "", count: int = 1, index: int = 0, local_devices: Any = None):
        """``address``: HOST:PORT of the first process; ``index`` of this one, from 0."""
        self.address, self.count, self.index, self.local_devices = address, count, index, local_devices
        self.wait = WAIT
        self._links: links.Links = {}  # the first process has links to all others, they have one to it
        self._inbox: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
        self._leaving, self._ending = False, 0
        if count < 1 or not 0 <= index < count:
            raise UserError(f"--process_id={index} of --num_processes={count}: ids are 0 to num_processes - 1")
        host, _, port = address.rpartition(":")
        if count > 1 and not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise UserError(f"--coordinator={address}: write HOST:PORT, of the first process")
        self._where = (host.strip("[]"), int(port or 0))

    def __enter__(self) -> Job:
        if self.count > 1 and self.index == 0:
            self._links = links.gather(self._where[1], self.count, self.wait)
        elif self.count > 1:
            self._links = {0: links.report(self._where, self.count, self.index, self.wait)}
        for process, link in list(self._links.items()):
            threading.Thread(target=self._listen, args=(process, link), name="link", daemon=True).start()
        return self

    def agree(self, facts: Mapping[str, str]) -> None:
        """Compare ``facts`` (what runs here, by name) over all processes; all raise ``UserError`` if they differ."""
        if self.count == 1:
            return
        if self.index:
            self._tell({"facts": dict(facts)})
            verdict = self._inbox.get()[1]["verdict"]
        else:
            found = {0: dict(facts)}
            while len(found) < self.count:  # one that is gone instead ends all
                process, message = self._inbox.get()
                found[process] = message["facts"]
            verdict = difference([found[i] for i in range(self.count)])
            self._tell({"verdict": verdict})
        if verdict:
            raise UserError(verdict)

    def start(self) -> None:
        """Start jax's runtime for these processes. Call it before any other use of devices."""
        if self.count > 1:
            jax.distributed.initialize(
                self.address, self.count, self.index, self.local_devices,
                initialization_timeout=int(self.wait), heartbeat_timeout_seconds=HEARTBEAT,
            )  # fmt: skip

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) and self._links:
            time.sleep(GRACE)  # if it failed because another process has gone, that one's listener ends this one
        self._leaving = True
        if error is None:
            self._tell({"bye": True})
        elif self._links:
            code = 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1
            self._tell({"failed": self.index, "why": str(error) or type(error).__name__, "code": code})
            self._let_go()
            atexit.register(_leave, code)  # runs before jax's handler, which would wait for the others
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_WR)

    def _listen(self, process: int, link: socket.socket) -> None:
        """Read what a process says until it has gone."""
        said_bye = False
        with contextlib.suppress(OSError), link.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                said_bye |= "bye" in message
                if "failed" in message:
                    self._end(message)
                elif not said_bye:
                    self._inbox.put((process, message))
        self._links.pop(process).close()
        if not said_bye:
            self._end({"failed": process, "why": "it has gone without a word: killed, or its host is down", "code": 1})

    def _end(self, message: dict[str, Any]) -> None:
        """Another process failed: pass it on, say so, and end."""
        if self._leaving:
            return
        self._leaving, self._ending = True, int(message["failed"] in self._links)  # its listener is this thread
        self._tell(message)
        why = " ".join(str(message["why"]).split())
        me = f"process {self.index + 1} of {self.count}"
        # Line and end in one: the other thread may be about to say the same.
        sys.stderr.write(f"jukebox: error: {me}: process {message['failed'] + 1} failed: {why}\n")
        self._let_go()
        _leave(message["code"])

    def _let_go(self) -> None:
        """Let the others end first where jax's service runs, since its end would be a crash of theirs."""
        end = time.monotonic() + 5
        while self.index == 0 and len(self._links) > self._ending and time.monotonic() < end:
            time.sleep(0.02)

    def _tell(self, message: dict[str, Any]) -> None:
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):  # the listener will notice
                link.sendall(links.line(message))


def find(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> Job:
    """The job that this process is part of.

    On a TPU, under Slurm and under OpenMPI all three arguments are detected; elsewhere give all three, or none for a
    job of one process.

    Raises:
        UserError: some of the three are given, others not; or a launcher says too little.
    """
    if coordinator is not None and num_processes is not None and process_id is not None:
        return Job(coordinator, num_processes, process_id)
    if (coordinator, num_processes, process_id) != (None, None, None):
        raise UserError("give all of --coordinator=HOST:PORT, --num_processes and --process_id, or none of them")
    launcher = _launcher()
    if launcher is None:
        return Job()
    # What `jax.distributed.initialize` asks; there is no public way to ask without starting.
    from jax._src.clusters import ClusterEnv

    found: tuple[Any, ...] = (None,) * 4
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(WAIT))
    except OSError:  # of a TPU without Google's metadata server
        if launcher != "TPU":
            raise
    address, count, index, local_devices = found
    if address is not None and count is not None and index is not None:
        return Job(address, count, index, local_devices) if count > 1 else Job()
    if launcher == "TPU" and "," not in os.environ.get(_TPU_HOSTS, ""):  # one machine of no pod: a notebook's
        return Job()
    raise UserError(
        f"{launcher} counts several processes ({_LAUNCHERS.get(launcher, _TPU_HOSTS)}) and does not say which one this"
        " is: start them with srun or mpirun, or give --coordinator=HOST:PORT, --num_processes and --process_id"
    )


def _launcher() -> str | None:
    """Who may have started this process among others, as far as one sees without asking."""
    for name, variable in _LAUNCHERS.items():
        if int(os.environ.get(variable, "1")) > 1:
            return name
    on_tpu = any(os.path.exists(path) for path in _TPU_DEVICES)
    return "TPU" if on_tpu and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu") else None


def difference(found: Sequence[Mapping[str, str]]) -> str:
    """One sentence on what the processes (in order) do not have in common; empty if all is equal."""
    first, parts = found[0], []
    for name in dict.fromkeys(name for facts in found for name in facts):
        others = [i for i, facts in enumerate(found) if facts.get(name) != first.get(name)]
        if others:
            here, there = (facts.get(name, "missing") for facts in (first, found[others[0]]))
            parts.append(f"{name} is {here} on process 1 and {there} on process {links.numbers(others)}")
    if not parts:
        return ""
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"the processes differ: {'; '.join(parts[:3])}{more}. Start all of them with the same command and packages"


def _leave(code: int) -> None:
    """End now: jax's runtime would wait for processes that do not come any more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
