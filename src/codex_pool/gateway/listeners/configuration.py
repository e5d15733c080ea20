"""The listeners that a pool's options ask for, checked before anything starts."""

from __future__ import annotations

import grp
import importlib.util
import os
import socket
import ssl
from pathlib import Path

from ...options import PoolOptions
from ...protocol import endpoints
from ...protocol.endpoints import EndpointError
from ...runtime.startup import as_utf8
from ..sessions import ListenerConfig
from . import addresses, socket_files

# Below a CODEX_HOME: where `codex` looks for a daemon (measured with 0.163).
CONTROL_SOCKET = Path("app-server-control", "app-server-control.sock")
# Options that say something about the listener of another one.
_BELONGS = {
    "listen_group": ("listen_unix",),
    "insecure_no_auth": ("listen_ws",),
    "tls_cert": ("listen_ws", "listen_http"),
    "tls_key": ("listen_ws", "listen_http"),
    "allow_host": ("listen_ws", "listen_http"),
    "metrics_token": ("listen_http",),
}


def listener_config(options: PoolOptions, home: Path) -> ListenerConfig | None:
    """The listeners of a pool on the CODEX_HOME `home`; None for a pool without any.

    Raises EndpointError for options that cannot go together or be used, and where aiohttp is not installed.
    """
    for name, needed in _BELONGS.items():
        if getattr(options, name) and all(getattr(options, each) is None for each in needed):
            raise EndpointError(f"{name} is about {' or '.join(needed)}, which is not given; give both, or neither")
    listens = (options.listen_unix, options.listen_ws, options.listen_http)
    if all(each is None for each in listens) and not options.control_socket:
        return None
    if importlib.util.find_spec("aiohttp") is None:
        raise EndpointError(
            "listen_unix, listen_ws, listen_http and control_socket (--listen-unix, --listen-ws, --listen-http, "
            "--control-socket) need aiohttp, which is not installed; install codex-pool with its extra gateway, in a "
            "checkout: pip install '.[gateway]'"
        )
    if options.listen_http is not None and importlib.util.find_spec("prometheus_client") is None:
        raise EndpointError(
            "listen_http (--listen-http) needs prometheus-client, which is not installed; install codex-pool with its "
            "extra metrics, in a checkout: pip install '.[metrics]'"
        )
    unix = ""
    if options.listen_unix is not None:
        unix = _unix(options.listen_unix, options.listen_group)
    if options.listen_ws is not None:
        _check_tcp(options, "listen_ws", options.listen_ws)
    if options.listen_http is not None:
        _check_tcp(options, "listen_http", options.listen_http)
        if options.listen_http == options.listen_ws:
            raise EndpointError(
                f"listen_http and listen_ws are both {options.listen_http}; give each a port of its own"
            )
    return ListenerConfig(
        unix=unix,
        unix_group=options.listen_group or "",
        ws=options.listen_ws or "",
        http=options.listen_http or "",
        metrics_token=_absolute(options.metrics_token),
        insecure_no_auth=options.insecure_no_auth,
        tls_cert=_absolute(options.tls_cert),
        tls_key=_absolute(options.tls_key),
        allow_hosts=addresses.split_names(options.allow_host),
        control_socket=as_utf8(home.absolute() / CONTROL_SOCKET) if options.control_socket else "",
        keys=(options.keys or "") if options.lets_keys_in else "",
    )


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """A context for a server. Raises EndpointError for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A key with a password must not ask for it on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        raise EndpointError(
            f"tls_cert {cert} and tls_key {key} cannot be used: {error.reason or error}; expected certificates and "
            "their private key without a password, both in PEM"
        ) from None
    except OSError as error:
        raise EndpointError(f"tls_cert {cert} or tls_key {key} cannot be read: {error.strerror}") from None
    return context


def group_id(name: str) -> int:
    """The id of a group, by name or number. Raises EndpointError for one that is not known."""
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise EndpointError(f"listen_group is {name!r}, which is no group of this machine") from None


def _unix(path: str, group: str | None) -> str:
    absolute = Path(os.path.abspath(path))
    endpoints.ipc_path(f"ipc://{absolute}")
    endpoints.check_socket(absolute)
    if group is None:
        socket_files.check_private(absolute.parent)
        return as_utf8(absolute)
    if not hasattr(socket, "SO_PEERCRED"):
        raise EndpointError(
            "listen_group needs to know which user connects, which this system does not tell; use listen_ws and tokens"
        )
    gid = group_id(group)
    if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
        raise EndpointError(
            f"listen_group is {group!r}, of which this user is no member and so cannot open a socket to it; have it "
            "added to the group, or give another one"
        )
    socket_files.check_shared(absolute.parent)
    return as_utf8(absolute)


def _check_tcp(options: PoolOptions, option: str, listen: str) -> None:
    _, bound = addresses.resolve(addresses.parse(listen, option), option)
    on_loopback = addresses.is_loopback(str(bound[0]))
    if option == "listen_ws" and options.insecure_no_auth and not on_loopback:
        raise EndpointError(
            f"insecure_no_auth lets in everyone who reaches {listen}, which is not a loopback address; "
            "leave it out, or listen on 127.0.0.1 or [::1]"
        )
    if (options.tls_cert is None) != (options.tls_key is None):
        raise EndpointError("tls_cert and tls_key belong together; give both, or neither")
    if options.tls_cert is not None and options.tls_key is not None:
        tls_context(options.tls_cert, options.tls_key)
    elif not on_loopback:
        raise EndpointError(
            f"{option} {listen} can be reached from other machines, where tokens need TLS; give tls_cert "
            "and tls_key, or listen on 127.0.0.1 or [::1]"
        )


def _absolute(path: str | None) -> str:
    return "" if path is None else as_utf8(os.path.abspath(path))
