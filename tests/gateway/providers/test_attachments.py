"""Whether a request has what is attached to its messages, found with a bounded number of steps."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.providers import attachments
from gateway.providers.attachments import attached, first_lost, kind_at, kinds_of_parts

PARTS = 2_000


class Counted(bytes):
    """A body that counts the bytes which a search of it reads."""

    read_bytes = 0

    def find(self, *sought: Any) -> int:
        at = super().find(*sought)
        _, start, end = (*sought, len(self))[:3]
        self.read_bytes += max((at if at >= 0 else end) - start, 0)
        return at

    def rfind(self, *sought: Any) -> int:
        at = super().rfind(*sought)
        _, start, end = sought
        self.read_bytes += end - max(at, start)
        return at


def picture(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def shown(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def messages(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def named(number: int) -> dict[str, Any]:
    return picture(f"{number:064d}")


@pytest.mark.parametrize("word", ["A", "AAAAAAAAAAAAAAAAAAAAAAAA", "': 'A", '"A', '\\"'])
@pytest.mark.parametrize("start", ["", '"', "': '"])
@pytest.mark.parametrize("data", ["A", "A" * 20, "A" * 64])
def test_a_text_that_repeats_what_is_attached_is_read_a_few_times_at_most(start: str, data: str, word: str) -> None:
    for given in (
        messages(text(start + word * 20_000), picture(data)),
        messages(*[picture(data)] * 50, text(start + word * 20_000)),
    ):
        body = Counted(orjson.dumps(given))
        assert first_lost(attached(given), body) is None
        assert body.read_bytes <= 8 * len(body)


def test_many_pictures_in_the_order_of_the_messages_are_one_search() -> None:
    given = messages(*map(named, range(PARTS)))
    body = Counted(orjson.dumps(given))
    assert first_lost(attached(given), body) is None
    assert body.read_bytes <= 4 * len(body)


def test_pictures_in_another_order_are_found_up_to_a_bounded_work(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [named(number) for number in range(PARTS)]
    body = Counted(orjson.dumps(parts[::-1]))
    assert first_lost(attached(messages(*parts[:100])), body) is None
    assert first_lost(attached(messages(*parts[:100], named(PARTS))), body) == "messages[0].content[100]"
    monkeypatch.setattr(attachments, "_SEARCHED_AGAIN_BYTES", 10 * len(body))
    body.read_bytes = 0
    assert first_lost(attached(messages(*parts)), body) is None
    assert body.read_bytes <= 40 * len(body)


@pytest.mark.parametrize("data", ["A", "QQ==", "c29tZXRoaW5nIHRoYXQgbm8gcmVxdWVzdCBoYXM=" * 3])
@pytest.mark.parametrize("said", ["A QQ== B", 'see "{0}"', "{{'url': '{0}'}}", '\\"{0}'])
def test_what_a_text_says_is_no_picture(data: str, said: str) -> None:
    given = messages(text(said.format(data)), picture(data))
    assert first_lost(attached(given), orjson.dumps(given)) is None
    assert first_lost(attached(given), orjson.dumps(messages(given[0]["content"][0]))) == "messages[0].content[1]"


def test_a_picture_that_is_there_twice_is_sent_twice() -> None:
    given = messages(picture("QUJD" * 40), text("and"), picture("QUJD" * 40))
    assert first_lost(attached(given), orjson.dumps(given)) is None
    assert first_lost(attached(given), orjson.dumps(messages(*given[0]["content"][:2]))) == "messages[0].content[2]"


def test_what_has_no_plain_characters_is_not_looked_for() -> None:
    given = messages(picture("\u00fc\n"))
    assert first_lost(attached(given), b"{}") is None


def test_a_kind_of_part_is_who_says_it_what_it_is_and_in_which_format() -> None:
    parts = [
        {"type": "text", "text": "read"},
        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,AAAA"}},
        {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "x"}, {"role": "user", "content": parts}]
    kinds = [
        "user:image_url:data:image/gif", "user:image_url:https", "user:input_audio:wav",
        "user:file:data:application/pdf",
    ]  # fmt: skip
    assert kinds_of_parts(messages) == set(kinds)
    assert [kind_at(messages, f"messages[1].content[{position}]") for position in range(1, 5)] == kinds
    assert kind_at(messages, "messages[1].audio") == ""


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (shown("data:image/png;base64,AAAA;base64,BBBB"), ""), (shown("data:image/png;base64,AA A"), ""),
        (shown("data:image/png,AAAA"), ""), (shown("data:x" + "y" * 100 + ";base64,AAAA"), ""),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "y" * 1_000}}, ""),
        ({"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}, ""),
        ({"type": "file", "file": {"file_id": "file-1"}}, "user:file:None"),
        (shown("https://x.example/a,b.png"), "user:image_url:https"),
    ],
)  # fmt: skip
def test_a_broken_part_says_nothing_of_its_kind(part: dict[str, Any], kind: str) -> None:
    assert kind_at([{"role": "user", "content": [part]}], "messages[0].content[0]") == kind
