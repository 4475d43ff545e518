"""Connections between the processes of a job: the others call the first one, and lines of JSON go both ways.

The first process listens at the coordinator's port until all have come, and then gives it up to jax.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from jukebox_jax.types import UserError

Links = dict[int, socket.socket]  # by process index
HELLO = {"count", "index", "host"}
LATER = 15.0  # seconds by which the first process may start after others
LONGEST = 1 << 12  # bytes of a message before the connection is known to be one of ours


def gather(port: int, count: int, seconds: float) -> Links:
    """At the first of ``count`` processes: connections to all others. ``UserError`` here and there if they disagree."""
    found: Links = {}
    deadline = time.monotonic() + seconds
    with _server(port) as server:
        while len(found) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                link, _ = server.accept()
            except TimeoutError:
                absent = [i for i in range(1, count) if i not in found]
                ids = ", ".join(map(str, absent[:8])) + (" ..." if len(absent) > 8 else "")
                _refuse(
                    found,
                    f"no sign of process {numbers(absent)} of {count} (--process_id={ids}) within {seconds:.0f} s:"
                    " start all processes with this address, and let their hosts reach it",
                )
            hello = _hello(link)
            if hello is None:  # some other program on the network
                link.close()
                continue
            index, other = hello["index"], hello["count"]
            if other != count or index in found or index not in range(1, count):
                what = f"the process on {hello['host']} has --process_id={index} of --num_processes={other}"
                _refuse(
                    found | {-1: link}, what + (f", process 1 has {count}" if other != count else ": that id is taken")
                )
            found[index] = link
    for link in found.values():
        _keep_alive(link)
        link.sendall(line({"welcome": count}))
    return found


def report(where: tuple[str, int], count: int, index: int, seconds: float) -> socket.socket:
    """At the others: the connection to the first process, once all have come."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            link = socket.create_connection(where, timeout=max(deadline - time.monotonic(), 0.01))
            break
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise UserError(
                    f"no answer from process 1 of {count} (--process_id=0) at {where[0]}:{where[1]} within"
                    f" {seconds:.0f} s ({error.strerror or error}): start it there, and let this host reach that port"
                ) from error
            time.sleep(0.2)
    _keep_alive(link)
    answer = {"refused": f"process 1 of {count} went away before all had come"}
    try:
        link.sendall(line({"count": count, "index": index, "host": socket.gethostname()}))
        link.settimeout(max(deadline - time.monotonic(), 0) + LATER)
        answer = _first_line(link) or answer
    except TimeoutError:
        answer = {"refused": f"not all of {count} processes had come within {seconds + LATER:.0f} s"}
    except OSError:
        pass
    if "welcome" not in answer:
        link.close()
        raise UserError(str(answer.get("refused")))
    link.settimeout(None)
    return link


def line(message: dict[str, Any]) -> bytes:
    """A message as it is sent."""
    return json.dumps(message).encode() + b"\n"


def numbers(indices: Sequence[int]) -> str:
    """Process indices as users count them: from 1."""
    shown = ", ".join(str(i + 1) for i in indices[:8])
    return shown + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def _server(port: int) -> socket.socket:
    """Listens on all interfaces. Its connections do not keep jax from listening on the same port afterwards."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    try:
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise UserError(f"port {port} of the coordinator cannot be used on this host: {error.strerror}") from error


def _refuse(found: Links, why: str) -> NoReturn:
    for link in found.values():
        with contextlib.suppress(OSError), link:
            link.sendall(line({"refused": why}))
    raise UserError(why)


def _keep_alive(link: socket.socket) -> None:
    """Firewalls forget connections that are silent for minutes."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 6)):  # seconds; tries
        if hasattr(socket, option):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _hello(link: socket.socket) -> dict[str, Any] | None:
    link.settimeout(5)
    with contextlib.suppress(OSError):
        hello = _first_line(link)
        if hello is not None and set(hello) == HELLO:
            link.settimeout(None)
            return hello
    return None


def _first_line(link: socket.socket) -> dict[str, Any] | None:
    """One message, byte by byte, so that nothing behind it is taken away; None if it is none of ours."""
    text = b""
    while not text.endswith(b"\n"):
        byte = link.recv(1)
        if not byte or len(text) == LONGEST:
            return None
        text += byte
    try:
        message = json.loads(text)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
