"""Stored responses: found by their tenant for a time, whatever is in their texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine

from gateway.catalog.usage import Usage
from gateway.database.tables import responses
from gateway.decisions import response_store
from gateway.dialects.responses_answer import ResponseObject, whole_response
from gateway.dialects.responses_request import referenced_ids
from gateway.errors import NotFound
from tests.gateway.dialects.events import whole

DAY_MS = 86_400_000


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    responses.create(engine)
    with engine.begin() as made:
        yield made
    engine.dispose()


def kept(connection: Connection, text: str = "hello", response_id: str = "resp_1", at_ms: int = 0) -> dict[str, Any]:
    """Store a response whose one item says `text`."""
    suffix = response_id.removeprefix("resp_")
    item = {"id": f"msg_{suffix}_0", "type": "message", "role": "assistant", "content": text}
    response = {"id": response_id, "output": [item]}
    question = {"type": "message", "role": "user", "content": text}
    response_store.store(connection, "acme", "s", response, [question, item], at_ms)
    return item


@pytest.mark.parametrize("text", ["hello", "ü🙂", r"a literal \u0000 and \\u0000 in code", '{"a": "\\\\"}'])
def test_what_is_stored_comes_back(connection: Connection, text: str) -> None:
    item = kept(connection, text)
    found = response_store.find(connection, "acme", "resp_1", 1)
    assert (found.session_id, found.response["output"], found.items[1]) == ("s", [item], item)
    assert response_store.find_item(connection, "acme", "msg_1_0", 1) == item


def test_a_generated_picture_is_found_by_its_id(connection: Connection) -> None:
    """As clients refer to it: by a reference, or by an item of its type without its data."""
    made = ResponseObject("dec_a1", "m", 1, {}, {}, store=True)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    response = whole_response(made, whole(content="a", images=[picture]), Usage(1, 1))
    response_store.store(connection, "acme", "s", response, [], 0)
    [_, item] = response["output"]
    named = {"type": item["type"], "id": item["id"]}
    [wanted] = referenced_ids([item, named])
    assert response_store.find_item(connection, "acme", wanted, 1) == item


def test_a_nul_is_left_out_since_postgres_takes_none(connection: Connection) -> None:
    kept(connection, "a\0b")
    assert response_store.find_item(connection, "acme", "msg_1_0", 1)["content"] == "ab"


def test_unknown_foreign_deleted_and_expired_responses_look_alike(connection: Connection) -> None:
    kept(connection)
    kept(connection, response_id="resp_2")
    response_store.remove(connection, "acme", "resp_2")
    for tenant, response_id, at_ms in [
        ("acme", "resp_9", 1), ("other", "resp_1", 1), ("acme", "resp_2", 1), ("acme", "resp_1", 31 * DAY_MS),
    ]:  # fmt: skip
        with pytest.raises(NotFound):
            response_store.find(connection, tenant, response_id, at_ms)
    for tenant, item_id in [("other", "msg_1_0"), ("acme", "msg_1_7"), ("acme", "nonsense"), ("acme", "")]:
        with pytest.raises(NotFound):
            response_store.find_item(connection, tenant, item_id, 1)
    with pytest.raises(NotFound):
        response_store.remove(connection, "other", "resp_1")


def test_what_has_expired_is_forgotten(connection: Connection) -> None:
    kept(connection)
    kept(connection, response_id="resp_2", at_ms=5 * DAY_MS)
    assert response_store.forget(connection, 31 * DAY_MS) == 1
    assert response_store.find(connection, "acme", "resp_2", 31 * DAY_MS).session_id == "s"
