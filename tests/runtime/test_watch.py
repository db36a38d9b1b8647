"""The connection that ranks watch each other by: whole messages, an end that is noticed, strangers that are not believed."""

from __future__ import annotations

import json
import socket

import pytest
from torch.distributed import HashStore

from autoplan.errors import TargetError
from autoplan.runtime.ranks.lines import Lines
from autoplan.runtime.ranks.watch import _ADDRESS, Sign, Watch


def pair() -> tuple[Lines, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = socket.create_connection(server.getsockname())
        return Lines(server.accept()[0]), other


def test_messages_arrive_whole_and_the_end_is_noticed() -> None:
    lines, other = pair()
    other.sendall(b'{"rank": 1}\n{"by')
    assert lines.receive() == ([{"rank": 1}], False)
    other.sendall(b'e": true}\n')
    assert lines.receive() == ([{"bye": True}], False)
    other.close()
    assert lines.receive() == ([], True)
    lines.send({"end": 1})  # to nobody
    lines.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"[1, 2]\n", b"\xff\n"])
def test_what_a_stranger_says_ends_the_connection(said: bytes) -> None:
    lines, other = pair()
    other.sendall(said)
    assert lines.receive() == ([], True)
    lines.close()
    other.close()


def test_a_stranger_does_not_disturb_the_watch() -> None:
    store = HashStore()
    watch = Watch(store, 0, 2).start()
    port = json.loads(store.get(_ADDRESS))["port"]
    for said in (b'{"bye": true}\n', b'{"sign": {}}\n', b"nonsense\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
            stranger.settimeout(10)
            assert stranger.recv(100) == b""  # hung up, and nothing said
    watch.close()
    assert not watch._thread.is_alive()


def test_errors_of_a_user_have_no_traceback_and_name_other_ranks_than_0() -> None:
    assert Sign.of_error(0, TargetError("no file")) == Sign("error", 0, "error: no file", 1)
    assert Sign.of_error(3, TargetError("no file")).text == "error: rank 3: no file"
    try:
        raise ValueError("odd")
    except ValueError as error:
        sign = Sign.of_error(2, error)
    assert sign.text.startswith("rank 2: Traceback") and sign.text.endswith("ValueError: odd") and sign.code == 70
