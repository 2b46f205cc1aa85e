"""The framing of HTTP/1.1 requests.

What a proxy might parse differently is refused, and an upgrade is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed

_ONCE = (b"host", b"content-length", b"transfer-encoding")
_HOP_BY_HOP = (b"upgrade", b"http2-settings")


def why_refused(version: str, method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> GatewayError | None:
    """The reason to refuse a head (RFC 9112, 3.2, 6.1, 6.3), or None.

    Names of headers are in lower case.
    """
    if version not in ("1.0", "1.1"):
        return InvalidRequest("expected HTTP/1.1")
    if method == b"CONNECT":
        return MethodNotAllowed("this is not a proxy: CONNECT is not supported")
    found = [(name, value) for name, value in headers if name in _ONCE]
    names = {name for name, _ in found}
    if len(names) < len(found):
        return InvalidRequest("expected Host, Content-Length and Transfer-Encoding once each")
    if version == "1.1" and b"host" not in names:
        return InvalidRequest("expected a Host header")
    for name, value in found:
        if name == b"transfer-encoding" and (version == "1.0" or value.lower() != b"chunked"):
            return InvalidRequest("Transfer-Encoding: expected chunked, of HTTP/1.1")
    return None


def without_upgrade(method: bytes, url: bytes, version: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head of a request without its wish for another protocol."""
    lines = [b"%s %s HTTP/%s" % (method, url, version)]
    for name, value in headers:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(token for token in tokens if token.lower() not in _HOP_BY_HOP)
        if name not in _HOP_BY_HOP:
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
