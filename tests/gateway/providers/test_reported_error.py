"""What is read out of a provider's error, in the shapes of many providers, and what is never repeated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import http_status
from gateway.providers.errors import CredentialFault, FailedFault, RejectedFault, ThrottledFault, fault_from_status
from gateway.providers.inband import fault_in
from gateway.providers.reported_error import NO_REPORT, report_in

OVERFLOWS: list[tuple[Any, int | None, int | None]] = [
    ({"error": {"message": "This model's maximum context length is 8192 tokens. However, your messages resulted in "
      "9001 tokens.", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}},
     8192, 9001),
    ({"object": "error", "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 "
      "tokens (4000 in the messages, 1000 in the completion).", "type": "BadRequestError", "code": 400}, 4096, 5000),
    ({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > "
      "200000 maximum"}}, 200_000, 210_000),
    ([{"error": {"code": 400, "message": "The input token count (1200000) exceeds the maximum number of tokens allowed "
      "(1048576).", "status": "INVALID_ARGUMENT"}}], 1_048_576, 1_200_000),
    ({"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"},
     32_768, 40_000),
    ({"error": {"code": 400, "message": "the request exceeds the available context size (4096 tokens)",
      "type": "exceed_context_size_error"}}, 4096, None),
    ({"message": "Input is too long for requested model."}, None, None),
    ({"error": {"type": "invalid_request_error", "message": "input length and `max_tokens` exceed context limit: "
      "190000 + 20000 > 200000, decrease input length"}}, 200_000, 210_000),
    ({"error": {"type": "exceed_context_size_error", "message": "x", "n_prompt_tokens": 5000, "n_ctx": 4096}},
     4096, 5000),
    ({"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the "
      "request contains 140000 tokens."}, 131_072, 140_000),
    ({"error": {"code": "model_max_prompt_tokens_exceeded", "message": "prompt token count of 150000 exceeds the limit "
      "of 128000"}}, 128_000, 150_000),
    ({"errors": [{"code": "invalid_input_argument", "message": "the number of input tokens 9000 cannot exceed the "
      "total tokens limit 8192 for this model"}]}, 8192, 9000),
    ({"error": {"code": "1261", "message": "Prompt exceeds max length"}}, None, None),
    ({"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` "
      "tokens", "error_type": "validation"}, 4096, 5000),
    ({"error": {"message": "'max_tokens' is too large: 5000. This model's maximum context length is 4096 tokens and "
      "your request has 10 input tokens", "type": "BadRequestError", "code": 400}}, 4096, None),
    ({"error": {"message": "x", "code": "context_length_exceeded"}}, None, None),
    ({"message": "too many tokens: total number of tokens in the prompt cannot exceed 128000 - received 130000. Try "
      "using a shorter prompt"}, 128_000, 130_000),
    ({"error": "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 9001 "
      ">= n_ctx: 8192)."}, 8192, 9001),
    ({"code": 20015, "message": "length of prompt_tokens (40000) must be less than max_seq_len (32768)."},
     32_768, 40_000),
    ({"error": {"message": "Provider returned error", "code": 400, "metadata": {"provider_name": "Anthropic", "raw":
      '{"type":"error","error":{"message":"prompt is too long: 210000 tokens > 200000 maximum"}}'}}}, 200_000, 210_000),
    ({"object": "error", "code": "3051", "message": {"detail": [{"msg": "Prompt contains 40000 tokens and 0 draft "
      "tokens, too large for model with 32768 maximum context length"}]}}, 32_768, 40_000),
    ({"error": {"code": "tokens_limit_reached", "message": "Request body too large for gpt-4o model. Max size: 8000 "
      "tokens."}}, 8000, None),
    ({"error": {"code": "1261", "message": "Prompt 超长"}}, None, None),
    ({"error_code": 336007, "error_msg": "the max length of current question is 2000"}, 2000, None),
    ("This model's maximum context length is 8192 tokens. However, you requested 9001 tokens", 8192, 9001),
    ({"error": {"message": "The provided prompt is 20000 tokens long, which exceeds the maximum supported sequence "
      "length of 16384"}}, 16_384, 20_000),
    ({"error": {"type": "bad_request_error", "message": "invalid params, context window exceeds limit (2013)"}},
     None, None),
    ({"error": {"message": "max_tokens must be at least 1, got -800.", "type": "BadRequestError", "code": 400}},
     None, None),
]  # fmt: skip


@pytest.mark.parametrize(("body", "limit", "asked"), OVERFLOWS)
def test_a_prompt_that_is_too_long_is_told_with_its_numbers(body: Any, limit: int | None, asked: int | None) -> None:
    reported = report_in(json.dumps(body).encode())
    assert (reported.known, reported.limit_tokens, reported.asked_tokens) == ("context_length_exceeded", limit, asked)
    error = fault_from_status(400, None, "", reported).answer()
    shown = error.as_body()["error"]
    assert (http_status(error), shown["code"], shown["param"]) == (400, "context_length_exceeded", "messages")
    assert "maximum context length" in shown["message"]
    for number in (limit, asked):
        assert number is None or f" {number} tokens" in shown["message"]


@pytest.mark.parametrize(
    ("body", "status", "code", "answered"),
    [
        ({"error": {"message": "x", "code": "content_filter", "innererror": {"code": "AnyPolicyViolation"}}},
         400, "content_filter", 400),
        ({"error": {"message": "x", "type": "invalid_request_error", "code": "model_not_found"}},
         404, "model_not_found", 404),
        ({"error": {"message": "x", "code": "unsupported_parameter", "param": "top_k"}},
         400, "unsupported_parameter", 400),
        ({"error": {"code": "data_inspection_failed", "message": "x"}}, 400, "content_filter", 400),
        ({"message": "Output blocked by content filtering policy"}, 400, "content_filter", 400),
        ({"error": {"code": 403, "message": "The input was flagged", "metadata": {"reasons": ["x"]}}},
         403, "content_filter", 400),
        ({"error": {"code": "SensitiveContentDetected", "message": "x"}}, 400, "content_filter", 400),
        ({"code": "The caller does not have permission to execute the operation", "error": "Content violates usage "
          "guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}, 403, "content_filter", 400),
        ({"error": {"code": 400, "message": "PROHIBITED_CONTENT", "status": "INVALID_ARGUMENT"}},
         400, "content_filter", 400),
        ({"error": {"message": "Request blocked due to safety settings"}}, 400, "content_filter", 400),
        ({"error": {"message": "x/y is not a valid model ID", "code": 400}}, 400, "model_not_found", 400),
        ({"error": {"message": "No endpoints found for x/y.", "code": 404}}, 404, "model_not_found", 404),
        ({"error": {"message": "no access", "code": "model_not_available"}}, 404, "model_not_found", 404),
        ({"message": "The provided model identifier is invalid."}, 400, "model_not_found", 400),
        ({"message": "You don't have access to the model with the specified model ID."}, 403, "model_not_found", 404),
        ({"error": {"code": "permission_denied", "message": "the key may not call this API"}},
         403, "upstream_error", 502),
        ({"error": {"type": "capacity_exceeded", "message": "Flex tier capacity exceeded"}}, 498, "overloaded", 503),
        ({"type": "error", "error": {"type": "not_found_error", "message": "model: claude-x"}},
         404, "model_not_found", 404),
        ({"error": "model \"llama9\" not found, try pulling it first"}, 404, "model_not_found", 404),
        ({"object": "error", "type": "NotFoundError", "message": "The model `x` does not exist.", "code": 404},
         404, "model_not_found", 404),
        ({"error": {"type": "exceeded_current_quota_error", "message": "x"}}, 429, "insufficient_quota", 429),
        ({"error": {"status": "RESOURCE_EXHAUSTED", "message": "You exceeded your current quota", "code": 429}},
         429, "rate_limited", 429),
        ({"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to use the API"}},
         400, "insufficient_quota", 429),
        ({"error": {"message": "Insufficient credits. Add more using https://openrouter.ai/credits", "code": 402}},
         402, "insufficient_quota", 429),
        ({"error": {"message": "Insufficient Balance", "type": "unknown_error"}}, 402, "insufficient_quota", 429),
        ({"error": {"code": "1113", "message": "您的账户已欠费,请充值后重试"}}, 429, "insufficient_quota", 429),
        ({"error": {"message": "Project `p` does not have access to model `x`", "code": "model_not_found"}},
         403, "model_not_found", 404),
        ({"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": "flagged by moderation"}}},
         400, "content_filter", 400),
        ({"error": {"code": 404, "message": "models/gemini-9 is not found for API version v1beta, or is not supported "
          "for generateContent.", "status": "NOT_FOUND"}}, 404, "model_not_found", 404),
        ({"error": {"message": "Not found the model x or Permission denied", "type": "resource_not_found_error"}},
         404, "model_not_found", 404),
        ({"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}, 400, "content_filter", 400),
        ({"Response": {"Error": {"Code": "FailedOperation.ContentSecurity", "Message": "x"}}},
         400, "content_filter", 400),
        ({"error": {"message": "x", "code": "FailedOperation.ContentSecurity"}}, 400, "content_filter", 400),
        ({"error": {"message": "x", "code": "something_new"}}, 422, "upstream_rejected", 422),
        ({"error": "words"}, 400, "upstream_rejected", 400),
    ],
)  # fmt: skip
def test_codes_that_clients_know_are_passed_on(body: Any, status: int, code: str, answered: int) -> None:
    error = fault_from_status(status, None, "", report_in(json.dumps(body).encode())).answer()
    assert (http_status(error), error.as_body()["error"]["code"]) == (answered, code)


GOOGLE_KEY = {
    "code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT",
    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind", "answered"),
    [
        (GOOGLE_KEY, CredentialFault, 502),
        (
            {"code": "Client specified an invalid argument", "message": "Incorrect API key provided"},
            CredentialFault,
            502,
        ),
        ({"type": "rate_limit_error", "message": "slow down"}, ThrottledFault, 429),
        ({"type": "overloaded_error", "message": "o"}, FailedFault, 503),
        ({"type": "invalid_request_error", "message": "describe your api key in tools[0]"}, RejectedFault, 400),
    ],
)
def test_a_refusal_that_is_not_about_the_request_is_what_its_error_says(
    error: dict[str, Any], kind: type, answered: int
) -> None:
    fault = fault_from_status(400, None, "", report_in(json.dumps({"error": error}).encode()))
    assert (type(fault), http_status(fault.answer())) == (kind, answered)
    assert fault.retryable is (kind is not RejectedFault)


def test_a_request_above_a_limit_per_minute_is_tried_with_another_key_alone() -> None:
    error = {"message": "Request too large for model `x`: Limit 6000, Requested 7049", "code": "rate_limit_exceeded"}
    fault = fault_from_status(413, None, "", report_in(json.dumps({"error": error}).encode()))
    assert (type(fault), fault.retryable, fault.on_same_key) == (ThrottledFault, True, False)
    assert http_status(fault.answer()) == 429


XAI_KEY = "Incorrect API key provided: xa***bc. You can obtain an API key from https://console.x.ai."
ANTHROPIC_BALANCE = (
    "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase "
    "credits."
)


FIREWORKS_ACCOUNT = (
    "Account a-b is suspended, possibly due to reaching the monthly spending limit or failure to pay past invoices."
)
GEMINI_PLACE = "User location is not supported for the API use."


@pytest.mark.parametrize(
    "said",
    [XAI_KEY, ANTHROPIC_BALANCE, FIREWORKS_ACCOUNT, GEMINI_PLACE, "invalid api key", "insufficient balance"],
)
@pytest.mark.parametrize(
    "error",
    [
        {"object": "error", "code": 400, "message": "[{'msg': \"Input should be 'low'\", 'input': '{0}'}]"},
        {"error": {"message": "1 validation error: input_value='so: {0}, what now?'", "type": "BadRequest"}},
        {"error": {"message": "Invalid value at 'tools[0]' (TYPE_STRING), \"{0}\"", "status": "INVALID_ARGUMENT"}},
        {"type": "error", "error": {"type": "invalid_request_error", "message": "{0}: Extra inputs are not permitted"}},
        {"error": "{0} is not one of ['auto', 'none']"}, {"error": "Unknown field: {0}"}, {"message": "tools: {0}"},
        {"detail": [{"type": "literal_error", "loc": ["body", "{0}"], "msg": "Input should be 'low'", "input": "{0}"}]},
        {"error": {"message": "no such tool", "code": "{0}", "type": "{0}"}},
    ],
)  # fmt: skip
def test_a_text_of_the_client_s_that_an_error_repeats_blames_no_deployment(error: dict[str, Any], said: str) -> None:
    """Its deployment would be left alone for everyone after a few of them."""
    body = json.loads(json.dumps(error).replace("{0}", said))
    for status in (400, 404, 422):
        fault = fault_from_status(status, None, "", report_in(json.dumps(body).encode()))
        assert (type(fault), fault.retryable, fault.code) == (RejectedFault, False, "")
    within = fault_in({"error": {"code": 400, "message": said + ", what now?"}}, {})
    assert within is not None
    assert (type(within), within.code) == (RejectedFault, "")


@pytest.mark.parametrize("status", [400, 403, 412])
@pytest.mark.parametrize(
    "said", [XAI_KEY, ANTHROPIC_BALANCE, FIREWORKS_ACCOUNT, GEMINI_PLACE, "Incorrect API key provided"]
)
def test_a_whole_message_about_the_key_or_the_account_blames_the_gateway(said: str, status: int) -> None:
    error = {"code": "Client specified an invalid argument", "error": said}
    assert isinstance(fault_from_status(status, None, "", report_in(json.dumps(error).encode())), CredentialFault)


@pytest.mark.parametrize(
    ("status", "wait_s", "retried"),
    [(409, None, True), (425, None, True), (423, 1.0, True), (423, None, False), (400, 1.0, False), (422, 1.0, False)],
)
def test_refusals_that_pass_are_tried_again_and_passed_on_in_the_end(
    status: int, wait_s: float | None, retried: bool
) -> None:
    fault = fault_from_status(status, wait_s, "", report_in(b'{"error": {"message": "x"}}'))
    assert (fault.retryable, fault.dispatched, fault.retry_after_s) == (retried, False, wait_s)
    assert http_status(fault.answer()) == status


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        ({"message": "Rate limit reached (TPM): Limit 30000, Used 29000. Please try again in 1.2s. Visit us"}, 1.2),
        ({"message": "Please try again in 6m0s"}, 360.0), ({"message": "Please try again in 20ms."}, 0.02),
        ({"message": "exceeded token rate limit. Please retry after 24 seconds."}, 24.0),
        ({"message": "Quota exceeded. Please retry in 34.07s."}, 34.07), ({"message": "retry after 1 minute"}, 60.0),
        ({"status": "RESOURCE_EXHAUSTED", "details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}, 34.0),
        ({"message": "Please try again in 9999h"}, 86_400.0),
        ({"message": "Please try again later"}, None), ({"details": [{"retryDelay": "soon"}, 7]}, None),
    ],
)  # fmt: skip
def test_the_wait_that_an_error_s_words_ask_for_is_read_where_no_header_says_it(
    error: dict[str, Any], wait_s: float | None
) -> None:
    reported = report_in(json.dumps({"error": error}).encode())
    assert fault_from_status(429, None, "", reported).retry_after_s == wait_s
    assert fault_from_status(429, 2.0, "", reported).retry_after_s == 2.0


def test_a_parameter_is_named() -> None:
    reported = report_in(b'{"error": {"message": "x", "code": "unsupported_value", "param": "tools[0].function"}}')
    assert fault_from_status(400, None, "", reported).answer().param == "tools[0].function"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"error": {"code": "1302", "message": "您的账户已达到速率限制，请您控制请求频率"}}, 429),
        ({"error": {"code": "1302", "message": "您当前使用该API的并发数过高，请降低并发"}}, 429),
        ({"error": {"code": "1305", "message": "该模型当前访问量过大，请您稍后再试"}}, 503),
        ({"Response": {"Error": {"Code": "LimitExceeded", "Message": "x"}, "RequestId": "r"}}, 429),
        ({"error": "Model x is currently loading", "estimated_time": 20.0}, 503),
        ({"success": False, "errors": [{"code": 3040, "message": "Capacity temporarily exceeded, try again."}]}, 503),
    ],
)
def test_errors_inside_an_answer_that_only_words_tell_mean_what_they_say(error: dict[str, Any], status: int) -> None:
    fault = fault_in(error, {}, alone=True)
    assert fault is not None
    assert fault.status == status


@pytest.mark.parametrize("status", [500, 413, 422])
def test_too_long_is_too_long_whatever_the_status(status: int) -> None:
    reported = report_in(b'{"error": {"message": "x", "code": "context_length_exceeded"}}')
    fault = fault_from_status(status, None, "", reported)
    assert isinstance(fault, RejectedFault)
    assert not fault.retryable


def test_a_refused_key_stays_the_gateways_own_affair() -> None:
    reported = report_in(b'{"error": {"message": "Incorrect API key: sk-abc123", "code": "invalid_api_key"}}')
    fault = fault_from_status(401, None, "", reported)
    assert isinstance(fault, CredentialFault)
    assert fault.answer().as_body()["error"]["code"] == "upstream_error"
    assert not fault.on_same_key


@pytest.mark.parametrize(
    "value", ["sk-proj-abc123", "Bearer x", "two words", "AKIAIOSFODNN7EXAMPLE1", "x" * 65, "", 7, None, {"a": 1}]
)
def test_only_names_are_repeated(value: Any) -> None:
    reported = report_in(json.dumps({"error": {"message": "m", "code": value, "type": value, "param": value}}).encode())
    assert (reported.code, reported.type, reported.param) == ("", "", "")


def test_a_number_that_a_provider_counts_its_errors_with_is_a_code() -> None:
    assert report_in(b'{"error": {"message": "x", "code": "1301"}}').code == "1301"
    assert report_in(b'{"error": {"message": "x", "code": 40013}}').code == "40013"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"7", b"null", b'{"error": []}', b'{"error": null}', b"\xff"])
def test_a_body_of_another_kind_tells_nothing(body: bytes) -> None:
    reported = report_in(body)
    assert (reported.known, reported.code, reported.type) == ("", "", "")
    assert isinstance(fault_from_status(500, None, "", reported), FailedFault)
    assert NO_REPORT.known == ""
