"""Who may come in: an address for this machine alone, keys, and the names it is asked under."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from alignvec.errors import AlignvecError
from alignvec.serve.address import is_local
from alignvec.serve.errors import error_body
from alignvec.serve.keys import ENVIRONMENT, Keys
from alignvec.serve.visit import visit_of

_GUARDED = ("/v1/", "/metrics", "/openapi.json")
_HERE = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Access:
    """Which keys open the server, and whether one is needed.

    One is as soon as there is any; from then on it stays so, also when the last is revoked.
    """

    def __init__(self, keys: Keys | None = None) -> None:
        """Args:
        keys: may change while the server runs; None: everybody is let in.
        """
        self._keys = keys
        self._needed = False

    def needs_key(self) -> bool:
        """Whether a request without a key is refused."""
        if not self._needed and self._keys is not None:
            self._needed = bool(self._keys.names())
        return self._needed

    def owner(self, authorization: str) -> str | None:
        """The name of the key in an `Authorization` header; None if it is none of ours."""
        scheme, _, key = authorization.partition(" ")
        if self._keys is None or scheme.lower() != "bearer" or not key.strip():
            return None
        return self._keys.owner(key.strip())


def check_bind(host: str, address: str, access: Access, insecure: bool) -> None:
    """Refuse to serve others without a key.

    Args:
        host: as it was asked for.
        address: what it stands for.

    Raises:
        AlignvecError: the address can be reached from elsewhere, and there is no key.
    """
    if not (insecure or is_local(address) or access.needs_key()):
        raise AlignvecError(
            f"--host {host} lets others in and there is no key: make one with alignvec keys add "
            f"NAME, or set {ENVIRONMENT}; --insecure serves everybody"
        )


class Guard:
    """Refuses requests without a key where one is needed.

    Where none is, on this machine alone, it refuses those under a name that is not this machine's:
    a web page may have its own name point here, and the browser lets it through for that.
    """

    def __init__(self, app: ASGIApp, access: Access, local: bool, host: str = "127.0.0.1") -> None:
        self._app = app
        self._access = access
        self._local = local
        self._names = _HERE | {f"[{host}]" if ":" in host else host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._access.needs_key():
            if self._local and _name(headers.get("host", "")) not in self._names:
                body = error_body(
                    "this server answers under localhost alone; --host and a key open it",
                    403,
                    "unknown_host",
                )
                await JSONResponse(body, 403)(scope, receive, send)
                return
        elif scope["path"].startswith(_GUARDED):
            owner = self._access.owner(headers.get("authorization", ""))
            if owner is None:
                body = error_body(
                    "give a key that this server knows: Authorization: Bearer KEY",
                    401,
                    "invalid_api_key",
                )
                told = {"WWW-Authenticate": "Bearer"}
                await JSONResponse(body, 401, told)(scope, receive, send)
                return
            visit_of(scope).key = owner
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """A `Host` header without the port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
