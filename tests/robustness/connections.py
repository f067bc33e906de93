"""Which addresses a process tree talked to, from what strace wrote down."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

SYSCALLS: Final = "connect,bind,sendto,sendmsg,sendmmsg"
"""Every way to an address, and ``bind``, which is the way to be reached from one."""

_FAMILY = re.compile(r"sa_family=(\w+)")
_CALL = re.compile(r"\b(connect|bind|sendto|sendmsg|sendmmsg)\(")
_V4 = re.compile(r"sa_family=AF_INET, sin_port=htons\((\d+)\), sin_addr=inet_addr\(\"([^\"]*)\"\)")
_V6 = re.compile(
    r"sa_family=AF_INET6, sin6_port=htons\((\d+)\),"
    r"(?: sin6_flowinfo=[^,]*,)? inet_pton\(AF_INET6, \"([^\"]*)\""
)
_HERE: Final = {"AF_UNIX", "AF_LOCAL", "AF_NETLINK", "AF_UNSPEC"}
"""Families that do not leave the machine: sockets in the file system, the kernel, no address."""


def addresses(line: str) -> list[tuple[str, str, int]]:
    """The calls, addresses and ports of a line of strace; an address it cannot read is ``?``."""
    call = _CALL.search(line)
    if call is None:
        return []
    families = _FAMILY.findall(line)
    found = [(call[1], host, int(port)) for port, host in [*_V4.findall(line), *_V6.findall(line)]]
    unread = sum(family not in _HERE for family in families) - len(found)
    return found + [(call[1], "?", 0)] * unread


def outside(lines: Iterable[str]) -> list[tuple[str, str, int]]:
    """What a trace has that is no address of this machine's loopback, or is DNS wherever it is."""
    return [
        (call, host, port)
        for line in lines
        for call, host, port in addresses(line)
        if not _is_loopback(host) or (port == 53 and call != "bind")
    ]


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
