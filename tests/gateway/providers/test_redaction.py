"""What is removed from a provider's words before their tenant reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.providers.redaction import MAX_SHOWN_CHARS, REMOVED, without_secrets
from gateway.providers.reported_error import report_in

CANARY = "canary-Zq8vT3xW"


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {CANARY}. You can find your API key in the console.",
        f"invalid header Authorization: Bearer {CANARY}",
        f"'authorization': 'Bearer {CANARY}', 'x-request': 1",
        f"Bearer {CANARY} is not welcome",
        f"cannot connect to postgres://admin:{CANARY}@10.0.0.7:5432/models",
        f"POST https://{CANARY}@example.com/v1 failed",
        f"GET https://example.com/v1/models?key={CANARY}&alt=sse returned 400",
        f'{{"api_key": "{CANARY}"}}',
        f"x-api-key={CANARY} was refused",
        f"token: {CANARY}",
        f"password={CANARY}",
        f"Your password is: {CANARY}",
        f"AWS signature: {CANARY}",
        "sk-proj-9f8e7d6c5b4a was revoked",
        "the key gsk_A1b2C3d4E5 is over its limit",
        "AKIAIOSFODNN7EXAMPLE is not authorized",
        "token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N",
        "key 0f1e2d3c4b5a69788796a5b4c3d2e1f0 is expired",
        "8c9f1a2b-3c4d-4e5f-8a9b-0c1d2e3f4a5b may not use this model",
        "xoxb-123456789012-abcdef",
    ],
)
def test_what_looks_like_a_secret_is_removed_though_it_is_not_known(said: str) -> None:
    shown = without_secrets(said, environ={})
    for secret in (
        CANARY,
        "9f8e7d",
        "C3d4E5",
        "IOSFODNN7",
        "eyJzdWIi",
        "0f1e2d3c",
        "8c9f1a2b",
        "123456789012",
        "admin:",
    ):
        assert secret not in shown


@pytest.mark.parametrize(
    "said",
    [
        "my-plain-key was refused",
        "refused my-plain-k...",
        "…plain-key is unknown",
    ],
)
def test_a_known_secret_and_its_parts_are_removed_however_they_look(said: str) -> None:
    shown = without_secrets(said, ["my-plain-key"], environ={})
    assert "plain-k" not in shown
    assert REMOVED in shown


def test_secrets_of_the_environment_are_known() -> None:
    environ = {"CUSTOM_API_KEY": "plainsecretword", "HOME": "/opt/models", "PATH": "x"}
    assert "plainsecretword" not in without_secrets("plainsecretword in /opt/models", environ=environ)
    assert "/opt/models" in without_secrets("plainsecretword in /opt/models", environ=environ)


@pytest.mark.parametrize(
    "said",
    [
        "max_tokens: 5000 > 4096, which is the maximum allowed number of output tokens for claude-3-opus-20240229",
        "Invalid value for 'messages[0].content': expected a string, got null.",
        "The model `gpt-5-mini-2025-08-07` does not support 'temperature' with this model. See https://openai.com/docs",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
        "command-r7b-12-2024 and keyboard1 are no models of company2",
        "tools.0.custom.input_schema: JSON schema is invalid; it must match JSON Schema draft 2020-12",
    ],
)
def test_what_helps_to_repair_a_request_stays(said: str) -> None:
    assert without_secrets(said, ["sk-provider-canary"], environ={}) == said


def test_passages_of_the_prompt_are_removed() -> None:
    prompt = "system\nDear Doctor, my knee hurts since Tuesday and I cannot sleep\nok"
    said = "bad input 'my knee hurts since Tuesday and I cannot sleep' in messages"
    assert without_secrets(said, prompt=prompt, environ={}) == f"bad input '{REMOVED}' in messages"
    assert without_secrets(said, environ={}) == said
    assert without_secrets("expected a string", prompt="a string", environ={}) == "expected a string"


@given(st.text(min_size=24, max_size=60), st.text(max_size=40), st.text(max_size=40))
def test_an_echo_of_the_whole_prompt_never_stays(prompt: str, before: str, after: str) -> None:
    plain = " ".join(prompt.split())
    if len(plain) >= 24 and plain.isprintable():
        assert plain not in without_secrets(before + plain + after, prompt=plain, environ={})


@given(st.text(max_size=3000))
def test_whatever_a_provider_says_is_cut_and_printable(said: str) -> None:
    shown = without_secrets(said, ["secret-key"], environ={})
    assert len(shown) <= MAX_SHOWN_CHARS
    assert "\n" not in shown
    assert "\0" not in shown
    shown.encode()


def test_a_long_prompt_that_repeats_itself_is_searched_quickly() -> None:
    said = "ab" * 20 + "c" * 400
    assert without_secrets(said, prompt="ab" * 500_000, environ={}).startswith(REMOVED)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"upstream connect error or disconnect", "upstream connect error or disconnect"),
        (b"<html><head><style>b{}</style><title>502 Bad Gateway</title></head><body>nginx</body></html>",
         "502 Bad Gateway nginx"),
        (b'{"detail":[{"loc":["body","temperature"],"msg":"must be below 2","type":"value_error"}]}',
         "body.temperature: must be below 2"),
        (b'{"detail":"Method Not Allowed"}', "Method Not Allowed"),
        (b'{"error":{"message":"a","innererror":{"message":"b"}}}', "a b"),
        (b'[{"error":{"code":400,"message":"Invalid JSON payload","status":"INVALID_ARGUMENT"}}]',
         "Invalid JSON payload"),
        (b'{"message":"ValidationException: bad","__type":"ValidationException"}', "ValidationException: bad"),
        (b"", ""),
    ],
)  # fmt: skip
def test_the_words_are_found_in_every_shape(body: bytes, said: str) -> None:
    assert report_in(body).said == said


def test_words_in_plain_text_have_their_meaning_and_a_page_has_none() -> None:
    text = b"This model's maximum context length is 8192 tokens, however you requested 9000 tokens"
    assert report_in(text).known == "context_length_exceeded"
    assert report_in(b"<p>rate limit of model gpt not found</p>").known == ""
