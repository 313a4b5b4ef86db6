"""Where a server is: hosts, ports, sockets."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

from alignvec.errors import AlignvecError


def address_of(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The family and address that a host and a port stand for.

    Raises:
        AlignvecError: there is none.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise _not_there(host, port, error) from error
    return family, address


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which is held from now on; port 0 is any that is free.

    Raises:
        AlignvecError: the port is taken, or the host is not this machine's.
    """
    family, address = address_of(host, port)
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would share the port with another server
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _not_there(host, port, error) from error
    return found


def _not_there(host: str, port: int, error: Exception) -> AlignvecError:
    reason = getattr(error, "strerror", None) or error
    return AlignvecError(
        f"cannot serve on {host}, port {port}: {reason}; choose others with --host and --port"
    )


def url_of(found: socket.socket) -> str:
    """Where a server at this socket is."""
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(address: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
