"""A TCP proxy that fails on purpose: between a gateway and its database, or a gateway and its upstream."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Literal

Verdict = Literal["pass", "cut", "hold"]
Judge = Callable[[Literal["request", "reply"], bytes], Verdict]
"""Decides what happens to bytes on their way: pass them on, cut the connection instead, or hold them for ever."""


def let_pass(direction: Literal["request", "reply"], data: bytes) -> Verdict:
    return "pass"


class TcpProxy:
    """Forwards to 127.0.0.1:`target_port`; `judge` may be exchanged at any time, for connections already open too."""

    def __init__(self, target_port: int) -> None:
        self.judge: Judge = let_pass
        self._target_port = target_port
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepting = True
        self._closed = False
        threading.Thread(target=self._accept, name="tcp-proxy", daemon=True).start()

    def cut_all(self) -> None:
        """Reset every open connection."""
        with self._guard:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.accepting:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for source, sink, direction in ((client, server, "request"), (server, client, "reply")):
                with self._guard:
                    self._open.add(source)
                threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Literal["request", "reply"]) -> None:
        held = False
        while True:
            try:
                data = source.recv(65_536)
            except OSError:
                break
            if not data:
                break
            verdict = "hold" if held else self.judge(direction, data)
            if verdict == "cut":
                break
            if verdict == "hold":
                held = True
                continue
            try:
                sink.sendall(data)
            except OSError:
                break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._guard:
            self._open.discard(source)
        source.close()
