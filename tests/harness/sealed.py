"""A network of one's own, in which every packet that would leave the machine is seen.

    python -m tests.harness.sealed MODULE:FUNCTION FOLDER       runs `await FUNCTION(Path(FOLDER))` inside, prints JSON

`run_sealed` starts this module under `unshare`, with two network devices: loopback, and a tunnel that is the route to
everywhere else and to the only name server. What is sent into the tunnel is written down and goes nowhere. Unlike a
hook in Python this also sees what libuv and C libraries send.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import ipaddress
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

NAME_SERVER = "10.99.0.53"
SOMEWHERE = ("192.0.2.1", 80)
"""An address for documentation (RFC 5737), with which the trap is tried."""
UNSHARE = ("unshare", "--map-root-user", "--net", "--mount")
TOOLS = ("unshare", "ip", "mount")
RUN_TIMEOUT_S = 240
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
_COMMANDS = (
    "ip link set lo up", "ip address add 10.99.0.1/24 dev out0", "ip link set out0 up",
    "ip route add default via 10.99.0.2", "ip -6 address add fd99::1/64 dev out0", "ip -6 route add default dev out0",
)  # fmt: skip


def can_seal() -> bool:
    """Whether this machine lets a process have a network of its own."""
    if not all(map(shutil.which, TOOLS)):
        return False
    tried = [*UNSHARE, "ip", "tuntap", "add", "mode", "tun", "dev", "out0"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def run_sealed(function: str, folder: Path) -> dict[str, Any]:
    """Run `module:function` in a sealed network; `{"result": ..., "left": [destination, ...]}`."""
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.harness.sealed", function, str(folder)],
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class _Trap:
    """The far end of the tunnel: who was to be reached."""

    def __init__(self) -> None:
        self.destinations: list[str] = []
        self._tunnel = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tunnel, _TUNSETIFF, struct.pack("16sH14x", b"out0", _IFF_TUN | _IFF_NO_PI))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while packet := os.read(self._tunnel, 65_536):
            if packet[0] >> 4 == 4:
                self.destinations.append(str(ipaddress.IPv4Address(packet[16:20])))
            elif not ipaddress.IPv6Address(packet[24:40]).is_multicast:  # the kernel's own neighbour discovery
                self.destinations.append(str(ipaddress.IPv6Address(packet[24:40])))


def _seal(folder: Path) -> _Trap:
    trap = _Trap()
    for command in _COMMANDS:
        subprocess.run(command.split(), check=True)
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", str(resolver), "/etc/resolv.conf"], check=True)
    return trap


def _try_trap(trap: _Trap) -> None:
    """A connection and a name: both have to be seen, or an empty trap would prove nothing."""
    with socket.socket() as probe:
        probe.setblocking(False)
        probe.connect_ex(SOMEWHERE)
    try:
        socket.getaddrinfo("name.example", 80)
    except socket.gaierror:
        pass
    else:
        raise AssertionError("expected no answer to a name in a sealed network")
    missing = {SOMEWHERE[0], NAME_SERVER} - set(trap.destinations)
    assert not missing, f"the trap did not see a packet to {missing}, only {trap.destinations}"
    trap.destinations.clear()


def main() -> None:
    """Seal this process, run the function, print what it returned and what tried to leave."""
    module, _, name = sys.argv[1].partition(":")
    folder = Path(sys.argv[2])
    trap = _seal(folder)
    _try_trap(trap)
    result = asyncio.run(getattr(importlib.import_module(module), name)(folder))
    print(json.dumps({"result": result, "left": sorted(set(trap.destinations))}))


if __name__ == "__main__":
    main()
