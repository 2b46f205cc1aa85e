"""The requests of the overload benchmark are those of OpenAI's SDK."""

from __future__ import annotations

from bench.overload import sdk_headers
from bench.rig.load import Target
from gateway.api.whole_request import whole_request


def test_requests_have_the_headers_of_the_sdk_and_each_once() -> None:
    headers = sdk_headers()
    assert headers["connection"] == "keep-alive"
    assert headers["user-agent"].startswith("OpenAI/Python")
    target = Target(80, "auto", {**headers, "authorization": "Bearer k"}, sessions=True)
    sent = target.requests(stream=False)("s-1")
    names = [line.partition(b":")[0] for line in sent.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
    assert len(names) == len(set(names))
    found = whole_request(sent, (b"x-session-id",), 4096)
    assert found is not None
    assert found.headers == [(b"x-session-id", b"s-1")]
