"""Ask the kernel whose process is at the other end of a loopback connection. Linux; elsewhere nobody is known."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1
_HEADER = struct.Struct("=IHHII")
_QUESTION = struct.Struct("=BBBxI")
_PORTS = struct.Struct("!HH16s16s")
_NO_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_ANSWER = struct.Struct("=BBxx")
_OWNER = struct.Struct("=12xII")
_ID_BYTES = _PORTS.size + len(_NO_COOKIE)

#: ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT: a process holds the socket. A listener on that port is another's.
_HELD = frozenset({1, 4, 5, 8})


def is_of_own_user(peer: Any, own: Any) -> bool:
    """Whether the connection from `peer` to `own`, as sockets name addresses, is made by the user that we run as.

    Takes some 20 µs and waits for nobody.
    """
    return sys.platform == "linux" and not _has_strange_users() and find_owner(peer, own) == os.geteuid()


def find_owner(peer: Any, own: Any) -> int | None:
    """The user whose process holds the socket at `peer` that is connected to `own`; None where that is not known."""
    try:
        ours, theirs = _unmap(own), _unmap(peer)
        family = socket.AF_INET if theirs[0].version == 4 else socket.AF_INET6
        # Some, such as Java, reach an IPv4 address through an IPv6 socket, which the kernel then shows as such.
        names = [_PORTS.pack(theirs[1], ours[1], write(theirs[0]), write(ours[0])) for write in (_pad, _map)]
        question = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + names[0] + _NO_COOKIE
        header = _HEADER.pack(_HEADER.size + len(question), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.setblocking(False)
            kernel.sendto(header + question, (0, 0))
            answer = kernel.recv(4096)  # the kernel has answered before `sendto` returns
    except (OSError, ValueError, TypeError, IndexError, AttributeError, struct.error):
        return None
    return _read_owner(answer, names)


def _read_owner(answer: bytes, names: list[bytes]) -> int | None:
    try:
        _length, kind, *_rest = _HEADER.unpack_from(answer)
        if kind != _SOCK_DIAG_BY_FAMILY:
            return None
        _family, state = _ANSWER.unpack_from(answer, _HEADER.size)
        begin = _HEADER.size + _ANSWER.size
        uid, inode = _OWNER.unpack_from(answer, begin + _ID_BYTES)
    except struct.error:
        return None
    # A socket that its process has closed already has no inode, and root for its user.
    is_held = state in _HELD and inode != 0
    return int(uid) if is_held and answer[begin : begin + _PORTS.size] in names else None


def _pad(address: Address) -> bytes:
    return address.packed.ljust(16, b"\0")


def _map(address: Address) -> bytes:
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def _unmap(name: Any) -> tuple[Address, int]:
    address = ipaddress.ip_address(name[0])
    return getattr(address, "ipv4_mapped", None) or address, int(name[1])


def _has_strange_users() -> bool:
    """Whether we are the user for whom the kernel takes everybody that our user namespace does not know."""
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/kernel/overflowuid", encoding="ascii") as file:
        if os.geteuid() == int(file.read()):
            with open("/proc/self/uid_map", encoding="ascii") as users:
                return users.read().split() != ["0", "0", "4294967295"]
    return False
