"""Tell systemd that the server lives: a healthy event loop does so again and again, and a hung one is restarted.

A word is a datagram to the socket that NOTIFY_SOCKET names (sd_notify(3)); without it, nothing here does anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

#: After so long without a word the server is hung, where the unit says nothing (`WatchdogSec=`). A restart in place
#: says nothing either until the packages are loaded again; that takes minutes on a cold disk.
HUNG_S = 300.0


class Supervisor:
    """What started this process, if it wants to be told.

    The watch begins with the first word of ours, not with the process: a ComfyUI without this package, or one in which
    it is off, says nothing and is left alone.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = _find_address(environment)
        given = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID") in (None, str(os.getpid()))
        watched = given.isascii() and given.isdigit() and int(given) > 0 and is_ours
        self._hung_s = int(given) / 1e6 if watched else HUNG_S
        self._begins = ["READY=1"] if watched else ["READY=1", f"WATCHDOG_USEC={int(HUNG_S * 1e6)}"]

    async def keep_telling(self) -> None:
        """Until it is cancelled. Event loop: that this goes on is what it tells."""
        if self._address is None:
            return
        self._tell(*self._begins)
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._hung_s / 3)

    def _tell(self, *words: str) -> None:
        with (
            contextlib.suppress(OSError),  # nobody listens any more, or not now
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way,
        ):
            way.setblocking(False)
            way.sendto("\n".join(words).encode(), self._address or "")


def _find_address(environment: Mapping[str, str]) -> str | None:
    name = environment.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return None
    return name.replace("@", "\0", 1) if name.startswith("@") else name
