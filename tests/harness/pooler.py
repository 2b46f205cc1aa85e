"""pgbouncer's transaction mode in little: every transaction of every client may meet another server connection.

It speaks just enough of the Postgres protocol to start a session itself (trust) and to see where a transaction ends. It
is harsher than pgbouncer: the server connection is drawn at random, so whatever was left in a session (a prepared
statement, a SET, an advisory lock) meets a stranger at once.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

_SSL, _GSS, _CANCEL = 80_877_103, 80_877_104, 80_877_102


class TransactionPooler:
    """Listens on `port`; `servers` connections to 127.0.0.1:`target_port` as postgres@`database`."""

    def __init__(self, target_port: int, database: str, *, servers: int = 3, seed: int = 1) -> None:
        self._dice = random.Random(seed)
        self._free: list[socket.socket] = []
        self._changed = threading.Condition()
        self._greeting = b""
        self.transactions = 0
        self.unusual_startup: list[bytes] = []
        for _ in range(servers):
            self._free.append(self._connect(target_port, database))
        self._servers = list(self._free)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="pooler", daemon=True).start()

    def ask_each(self, query: str) -> list[str]:
        """The first column of the first row of `query` on every server connection, while no client is on it."""
        with self._changed:
            assert len(self._free) == len(self._servers), "a transaction is still open"
            return [_ask(server, query) for server in self._servers]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for server in self._servers:
            server.close()

    def _connect(self, port: int, database: str) -> socket.socket:
        server = socket.create_connection(("127.0.0.1", port))
        body = struct.pack("!I", 196_608) + b"user\0postgres\0database\0" + database.encode() + b"\0\0"
        server.sendall(struct.pack("!I", len(body) + 4) + body)
        greeting = b""
        while True:
            kind, message = _read_message(server)
            assert kind != b"E", message
            greeting += message
            if kind == b"Z":
                self._greeting = greeting
                return server

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), client:
            while True:
                (length,) = struct.unpack("!I", _read(client, 4))
                body = _read(client, length - 4)
                (code,) = struct.unpack("!I", body[:4])
                if code in (_SSL, _GSS):
                    client.sendall(b"N")
                    continue
                if code == _CANCEL:
                    return
                break
            if b"options\0" in body:  # pgbouncer refuses start-up parameters it does not track
                self.unusual_startup.append(body)
            client.sendall(self._greeting)
            self._transactions(client)

    def _transactions(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            while True:
                kind, message = _read_message(client)
                if kind == b"X":
                    return
                if server is None:
                    server = self._borrow()
                server.sendall(message)
                if kind in (b"Q", b"S") and self._answer(server, client) == b"I":
                    self._give_back(server)
                    server = None
        finally:
            if server is not None:
                _ask(server, "ROLLBACK")
                self._give_back(server)

    def _answer(self, server: socket.socket, client: socket.socket) -> bytes:
        """Pass the server's messages on until it is ready again; its transaction status."""
        while True:
            kind, message = _read_message(server)
            with contextlib.suppress(OSError):
                client.sendall(message)
            if kind == b"Z":
                return message[-1:]

    def _borrow(self) -> socket.socket:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._free))
            self.transactions += 1
            return self._free.pop(self._dice.randrange(len(self._free)))

    def _give_back(self, server: socket.socket) -> None:
        with self._changed:
            self._free.append(server)
            self._changed.notify()


def _read(source: socket.socket, amount: int) -> bytes:
    data = b""
    while len(data) < amount:
        more = source.recv(amount - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _read_message(source: socket.socket) -> tuple[bytes, bytes]:
    """Its type, and the whole message."""
    head = _read(source, 5)
    (length,) = struct.unpack("!I", head[1:])
    return head[:1], head + _read(source, length - 4)


def _ask(server: socket.socket, query: str) -> str:
    body = query.encode() + b"\0"
    server.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
    answer = ""
    while True:
        kind, message = _read_message(server)
        if kind == b"D":
            (length,) = struct.unpack("!i", message[7:11])
            answer = message[11 : 11 + length].decode()
        if kind == b"Z":
            return answer
