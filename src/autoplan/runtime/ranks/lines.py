"""A socket that carries one JSON object a line, and notices within half a minute that the other host is gone."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any

KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # seconds of silence, seconds between probes, probes


class Lines:
    """Both ends send and receive; a broken connection is an ended one."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, number in KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), number)
        self._connection = connection
        self._rest = b""

    def fileno(self) -> int:
        """What a selector waits for."""
        return self._connection.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, if there is anyone to hear it."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """The messages that are whole, and whether the connection has ended. Blocks unless something is there."""
        try:
            received = self._connection.recv(65536)
        except OSError:
            received = b""
        *whole, self._rest = (self._rest + received).split(b"\n")
        try:
            messages = [json.loads(line) for line in whole]
        except ValueError:
            messages = [None]
        stranger = not all(isinstance(message, dict) for message in messages)
        return ([], True) if stranger else (messages, not received)

    def close(self) -> None:
        """End it."""
        self._connection.close()
