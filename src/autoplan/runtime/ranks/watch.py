"""Ranks that watch each other: when one of them is lost or fails, that is said once, and all end.

Every rank keeps a connection to rank 0, over which nothing is sent while all is well. The kernel closes it when a process
ends, whatever ended it, and keepalive within half a minute when a host is gone. Rank 0 then says what is wrong and has the
others end; where rank 0 itself is lost, the first to notice says so. A thread does this, because the main one may wait in
a collective for a rank that is no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from autoplan.errors import BUG, AutoplanError, LostRank
from autoplan.runtime.ranks.lines import Lines

SETTLE_S = 0.5  # from the first sign to the message: of what happens at once, the cause must have been heard
PATIENCE_S = 10.0  # that a rank waits for rank 0 to speak for it
CONNECT_S = 30.0
RETRY_S = 0.2
TOLD = (signal.SIGTERM, signal.SIGINT)  # by torchrun, or by who started the run
_ADDRESS = "autoplan/watch"
_SAID = "autoplan/said"
# What explains most comes first: a user's error explains ranks that are lost, a lost rank the tracebacks of those that needed it.
_KINDS = ("error", "lost", "traceback", "told")


@dataclass(frozen=True)
class Sign:
    """What is wrong with a rank: one of _KINDS, what to print (nothing if ""), and the exit code."""

    kind: str
    rank: int
    text: str
    code: int

    @classmethod
    def of_error(cls, rank: int, error: BaseException) -> Sign:
        """A user's error as its message, another as its traceback; which rank it was, if it was not rank 0."""
        whose = f"rank {rank}: " if rank else ""
        if isinstance(error, AutoplanError):
            return cls("error", rank, f"error: {whose}{error}", error.exit_code)
        return cls("traceback", rank, whose + "".join(traceback.format_exception(error)).rstrip(), BUG)

    @classmethod
    def of_loss(cls, rank: int, world: int, host: str) -> Sign:
        """A connection that ended without a word."""
        error = LostRank(
            f"rank {rank} of {world} on {host} is gone: its process ended or was killed, or its host is down",
            next_step="its own last lines and torchrun's report say more; with --max-restarts torchrun starts all ranks again",
        )
        return cls("lost", rank, f"error: {error}", error.exit_code)


class Watch:
    """This rank's part in the watch: a thread from `start` to `close`."""

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self.token = ""  # of these processes, and none that ran before them
        self.rank = rank
        self.world = world
        self._store = store
        self._closing = False
        self._own: Sign | None = None
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._before: list[tuple[signal.Signals, Any]] = []
        self._part: _Centre | _Spoke = _Centre(self) if rank == 0 else _Spoke(self)
        self._thread = threading.Thread(target=self._part.run, name="autoplan-watch", daemon=True)

    def start(self) -> Watch:
        """Connect, and begin to watch."""
        self.token = self._part.connect(self._store)
        if threading.current_thread() is threading.main_thread():
            # torchrun ends all processes of a host with the first: the thread, which knows why, hears of it even if this one waits.
            self._before = [(number, signal.signal(number, lambda *_: None)) for number in TOLD]
            signal.set_wakeup_fd(self._wake.fileno())
        self._thread.start()
        return self

    def fail(self, error: BaseException) -> int:
        """This rank cannot go on: all end, and the cause is said. Comes back, with an exit code, only if nobody speaks."""
        self._own = Sign.of_error(self.rank, error)
        self._nudge()
        self._thread.join(2 * PATIENCE_S)
        write(self._own.text)
        return self._own.code

    def close(self) -> None:
        """All is well: the others need not mind that this rank goes."""
        self._closing = True
        self._nudge()
        self._thread.join(PATIENCE_S)
        if self._before:
            signal.set_wakeup_fd(-1)
        for number, handler in self._before:
            signal.signal(number, handler)
        for end in (self._woken, self._wake):
            end.close()

    def news(self) -> tuple[Sign | None, bool]:
        """Called by the thread when it is woken: this rank's own sign, and whether to close."""
        received = self._woken.recv(4096)
        for number in TOLD:
            if number in received:
                text = f"error: rank {self.rank} was told to end ({number.name})"
                return Sign("told", self.rank, text, 128 + number), False  # the code that a shell would give
        return self._own, self._closing

    @property
    def woken(self) -> socket.socket:
        """Readable when there is news."""
        return self._woken

    def speak_first(self, sign: Sign) -> None:
        """Print what is wrong unless another rank has; where the store is gone too, once on each host."""
        try:
            first = self._store.add(_SAID, 1) == 1
        except RuntimeError:
            first = os.environ.get("LOCAL_RANK", "0") == "0"
        if first:
            write(sign.text)

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")


class _Centre:
    """Rank 0: hears of all others, and speaks."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.peers: dict[Lines, tuple[int, str] | None] = {}  # rank and host, None before it has said so
        self.signs: list[Sign] = []

    def connect(self, store: dist.Store) -> str:
        self.listener = socket.create_server(("", 0), backlog=self.watch.world)
        self.token = secrets.token_hex(16)
        store.set(_ADDRESS, json.dumps({"port": self.listener.getsockname()[1], "token": self.token}))
        return self.token

    def run(self) -> None:
        with selectors.DefaultSelector() as self.ready:
            self.ready.register(self.watch.woken, selectors.EVENT_READ)
            self.ready.register(self.listener, selectors.EVENT_READ)
            closing, deadline = False, None
            while self.signs or not closing:
                if self.signs and deadline is None:
                    deadline = time.monotonic() + SETTLE_S
                if deadline is not None and time.monotonic() >= deadline:
                    self.finish()
                for key, _ in self.ready.select(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    if key.fileobj is self.watch.woken:
                        sign, closing = self.watch.news()
                        self.signs += [sign] if sign else []
                    elif key.fileobj is self.listener:
                        self.admit()
                    else:
                        self.hear(key.fileobj)  # type: ignore[arg-type]  # a Lines
            self.tell_all({"bye": True})
        self.listener.close()
        for lines in self.peers:
            lines.close()

    def admit(self) -> None:
        lines = Lines(self.listener.accept()[0])
        self.peers[lines] = None
        self.ready.register(lines, selectors.EVENT_READ)

    def hear(self, lines: Lines) -> None:
        messages, ended = lines.receive()
        for message in messages:
            if message.get("token") == self.token:
                self.peers[lines] = (message["rank"], message["host"])
                lines.send({"token": self.token})
            elif self.peers[lines] is None or "bye" in message:
                self.drop(lines)
                return
            else:
                self.signs.append(Sign(**message["sign"]))
        if ended:
            if (known := self.peers[lines]) is not None:
                self.signs.append(Sign.of_loss(known[0], self.watch.world, known[1]))
            self.drop(lines)

    def drop(self, lines: Lines) -> None:
        self.ready.unregister(lines)
        del self.peers[lines]
        lines.close()

    def tell_all(self, message: Mapping[str, Any]) -> None:
        for lines in self.peers:
            lines.send(message)

    def finish(self) -> None:
        """Say the cause and end everything. If this rank was told to end and nothing is wrong, that needs no word."""
        cause = min(self.signs, key=lambda sign: (_KINDS.index(sign.kind), sign.rank))
        if (cause.kind, cause.rank) != ("told", 0):
            write(cause.text)
        self.tell_all({"end": cause.code})
        os._exit(cause.code)


class _Spoke:
    """Any other rank: tells rank 0 what is wrong here, and ends when rank 0 says so."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def connect(self, store: dist.Store) -> str:
        """After a restart the store may hold the address of a rank 0 that is no more: tries until one answers."""
        self.host = os.environ["MASTER_ADDR"]
        deadline = time.monotonic() + CONNECT_S
        while True:
            told = json.loads(store.get(_ADDRESS))
            try:
                return self.greet(told["port"], told["token"])
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def greet(self, port: int, token: str) -> str:
        connection = socket.create_connection((self.host, port), timeout=CONNECT_S)
        self.lines = Lines(connection)
        self.lines.send({"token": token, "rank": self.watch.rank, "host": socket.gethostname()})
        answer, _ = self.lines.receive()
        if answer != [{"token": token}]:
            self.lines.close()
            raise ConnectionError(f"a stranger answers on port {port} of {self.host}")
        connection.settimeout(None)
        return token

    def run(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self.watch.woken, selectors.EVENT_READ)
            ready.register(self.lines, selectors.EVENT_READ)
            told: Sign | None = None
            deadline = 0.0
            while told is None or time.monotonic() < deadline:
                for key, _ in ready.select(None if told is None else max(0.0, deadline - time.monotonic())):
                    if key.fileobj is self.lines:
                        if self.hear():
                            return
                        continue
                    sign, closing = self.watch.news()
                    if closing:
                        self.lines.send({"bye": True})
                        return
                    if sign is not None and told is None:
                        told, deadline = sign, time.monotonic() + PATIENCE_S
                        self.lines.send({"sign": vars(sign)})
            write(told.text)
            os._exit(told.code)

    def hear(self) -> bool:
        """Whether rank 0 needs us no longer. Ends the process if it says so, or is lost."""
        messages, ended = self.lines.receive()
        for message in messages:
            if "end" in message:
                os._exit(message["end"])
            return True
        if ended:
            sign = Sign.of_loss(0, self.watch.world, self.host)
            self.watch.speak_first(sign)
            os._exit(sign.code)
        return False


def write(text: str) -> None:
    """A message on stderr, past Python's buffers: the main thread may hold their locks."""
    os.write(2, f"{text}\n".encode())
