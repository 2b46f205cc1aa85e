"""The hard guard: what passes it, why the rest does not, and which error a client gets when nothing does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from gateway.catalog.models import Catalog, Model
from gateway.config.settings import RateQuota, RouterSettings
from gateway.dialects import responses_request
from gateway.dialects.request import ChatRequest, with_forwarded
from gateway.errors import GatewayError, InvalidRequest, ModelNotFound, UpstreamError
from gateway.providers.balance import Demand, LoadBalancer
from gateway.providers.cooldown import Breaker
from gateway.routing.guard import (
    BUSY,
    NO_EFFORT,
    NO_FORM,
    OTHER_EFFORT,
    Eligibility,
    RequestedModel,
    feasible,
    parse_model,
    refuse_when_none,
    without_form,
    without_room,
    without_tool_loop,
)
from tests.harness.models import catalog, chat, deployment, model

ANY = RequestedModel(pinned=None, preset=None)
TOOLS = [{"type": "function", "function": {"name": "f"}}]
TWO = catalog(model("small"), model("big"), cheap="small")


IDLE = LoadBalancer(lambda: 0.0, RouterSettings)


def healthy_breaker() -> Breaker:
    return Breaker(lambda: 0.0, lambda: RouterSettings(allowed_fails=0))


def verdicts(
    request: ChatRequest | None = None,
    requested: RequestedModel = ANY,
    models: Catalog = TWO,
    *,
    allow_lists: Sequence[frozenset[str] | None] = (),
    bound_to: str | None = None,
    prompt_tokens: int = 10,
    breaker: Breaker | None = None,
) -> dict[str, str]:
    return {
        option.model.name: option.why_not
        for option in feasible(
            request or chat(), requested, models, breaker or healthy_breaker(), IDLE,
            allow_lists=allow_lists, bound_to=bound_to, prompt_tokens=prompt_tokens,
        )
    }  # fmt: skip


def uncertain(request: ChatRequest, models: Catalog, requested: RequestedModel = ANY) -> list[str]:
    """The models that are admitted although they may lack what the request needs."""
    options = feasible(
        request, requested, models, healthy_breaker(), IDLE, allow_lists=(), bound_to=None, prompt_tokens=10
    )
    return [option.model.name for option in options if not option.why_not and not option.certain]


# -- what the client's model means -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "requested"),
    [
        ("auto", RequestedModel(None, None)),
        ("auto@cheap", RequestedModel(None, "cheap")),
        ("auto@balanced", RequestedModel(None, "balanced")),
        ("auto@best", RequestedModel(None, "best")),
        ("big", RequestedModel("big", None)),
        ("cheap", RequestedModel("small", None)),
    ],
)
def test_a_model_name_is_parsed(name: str, requested: RequestedModel) -> None:
    assert parse_model(name, TWO) == requested


@pytest.mark.parametrize("name", ["auto@", "auto@worst", "auto@cheap@best"])
def test_an_unknown_point_of_the_sweep_is_refused_by_the_parameter(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_model(name, TWO)
    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("name", "meant"), [("autoo", "auto"), ("Auto", "auto"), ("auto-best", "auto@best"), ("gpt-5", None)]
)
def test_a_misspelt_auto_is_asked_about(name: str, meant: str | None) -> None:
    with pytest.raises(ModelNotFound) as refused:
        parse_model(name, TWO)
    assert (f'did you mean "{meant}"?' in str(refused.value)) == (meant is not None)


@pytest.mark.parametrize("name", ["gpt-none", "AUTO", "auto2", "{{7*7}}", "small\n", "openai/small"])
def test_an_unknown_model_is_named_and_auto_is_offered(name: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        parse_model(name, TWO)
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")
    assert (f'"{name}"' in refused.value.message) == name.isprintable()
    assert '"auto"' in refused.value.message


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_everything_that_can_may() -> None:
    assert verdicts() == {"small": "", "big": ""}


def test_embedding_models_are_no_candidates() -> None:
    assert verdicts(models=catalog(model("small"), model("vectors", mode="embedding"))) == {"small": ""}


def test_a_pin_leaves_one() -> None:
    assert verdicts(requested=RequestedModel("big", None)) == {"small": "not the pinned model", "big": ""}


def test_missing_capabilities_are_named() -> None:
    models = catalog(model("plain", capabilities=frozenset()), model("full"))
    needs = chat(tools=TOOLS, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}})
    assert verdicts(needs, models=models) == {"plain": "lacks response_schema, tools", "full": ""}


@pytest.mark.parametrize(("prompt_tokens", "why"), [(99_999, ""), (100_000, "context too small")])
def test_the_prompt_must_leave_room_in_the_context(prompt_tokens: int, why: str) -> None:
    assert verdicts(prompt_tokens=prompt_tokens) == {"small": why, "big": why}


def test_every_allow_list_must_agree() -> None:
    assert verdicts(allow_lists=(None, None)) == {"small": "", "big": ""}
    lists = (frozenset({"small", "big"}), frozenset({"big"}))
    assert verdicts(allow_lists=lists) == {"small": "not allowed", "big": ""}
    assert verdicts(allow_lists=(frozenset(), None)) == {"small": "not allowed", "big": "not allowed"}


def test_a_model_is_unhealthy_when_all_its_deployments_rest() -> None:
    pair = model("pair", deployments=(deployment("a"), deployment("b")))
    breaker = healthy_breaker()
    breaker.record("a", failed=True, latency_s=0.0)
    [option] = feasible(chat(), ANY, catalog(pair), breaker, IDLE, allow_lists=(), bound_to=None, prompt_tokens=1)
    assert [d.deployment_id for d in option.healthy] == ["b"]
    assert option.why_not == ""
    breaker.record("b", failed=True, latency_s=0.0)
    assert verdicts(models=catalog(pair), breaker=breaker) == {"pair": "unhealthy"}


def test_an_open_tool_loop_keeps_its_model_unless_the_client_pins_another() -> None:
    assert verdicts(bound_to="big") == {"small": "tool loop on another model", "big": ""}
    assert verdicts(requested=RequestedModel("small", None), bound_to="big") == {
        "small": "",
        "big": "not the pinned model",
    }


def test_a_model_outside_the_tool_loop_is_busy_only_once_the_loop_may_move() -> None:
    slow = model("slow", deployments=(deployment("slow#0", limits=RateQuota(parallel=1)),))
    balancer = LoadBalancer(lambda: 0.0, RouterSettings)
    balancer.take(slow.deployments, Demand("s", 1))
    options = feasible(
        chat(), ANY, catalog(slow, model("big")), healthy_breaker(), balancer, allow_lists=(), bound_to="big",
        prompt_tokens=1,
    )  # fmt: skip
    assert [option.why_not for option in options] == ["tool loop on another model", ""]
    assert [option.why_not for option in without_tool_loop(options)] == [BUSY, ""]


def test_a_tool_loop_without_a_form_at_its_model_s_provider_may_move() -> None:
    options = feasible(
        chat(), ANY, catalog(model("a"), model("b"), model("c")), healthy_breaker(), IDLE, allow_lists=(),
        bound_to="a", prompt_tokens=1,
    )  # fmt: skip
    assert [option.why_not for option in options] == ["", "tool loop on another model", "tool loop on another model"]
    assert [option.why_not for option in without_form(options, ("a", "b"))] == [NO_FORM, NO_FORM, ""]


# -- when none may -----------------------------------------------------------------------------------------------------


def refusal(*reasons: str) -> GatewayError:
    options = [Eligibility(model(f"m{number}"), (), reason) for number, reason in enumerate(reasons)]
    with pytest.raises(GatewayError) as refused:
        refuse_when_none(options, structs.replace(chat(), model="nope"), 9_000)
    return refused.value


def test_one_that_may_is_enough() -> None:
    refuse_when_none([Eligibility(model(), (), "unhealthy"), Eligibility(model(), (), "")], chat(), 1)


def test_failing_models_are_an_upstream_error_worth_another_try() -> None:
    error = refusal("unhealthy", "lacks tools")
    assert isinstance(error, UpstreamError)
    assert error.headers["Retry-After"] == "5"


def test_a_model_that_is_not_allowed_looks_like_an_unknown_one() -> None:
    error = refusal("not allowed", "not the pinned model")
    with pytest.raises(ModelNotFound) as unknown:
        parse_model("nope", TWO)
    assert (type(error), error.as_body()) == (ModelNotFound, unknown.value.as_body())


def test_a_model_that_may_have_what_the_request_needs_serves_where_none_is_known_to() -> None:
    own = model("own", capabilities=frozenset(), possible_capabilities=frozenset({"tools"}))
    needs = chat(tools=TOOLS)
    assert uncertain(needs, catalog(own)) == ["own"]
    assert uncertain(needs, catalog(own, model("full"))) == ["own"]
    assert uncertain(needs, catalog(own, model("full")), RequestedModel("own", None)) == []
    assert uncertain(chat(), catalog(own, model("full"))) == []
    plain = model("plain", capabilities=frozenset())
    assert verdicts(needs, models=catalog(own, plain)) == {"own": "", "plain": "lacks tools"}


def test_what_is_missing_is_said_with_the_key_that_states_it() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    asked = chat(messages=[{"role": "user", "content": [image]}])
    with pytest.raises(InvalidRequest) as refused:
        refuse_when_none([Eligibility(model(), (), "lacks vision")], asked, 1)
    assert refused.value.message == (
        "model: no model can serve this request: lacks vision "
        "(where one can, its operator writes model_info: supports_vision: true)"
    )


def test_what_is_missing_is_said() -> None:
    error = refusal("lacks vision", "lacks tools", "not the pinned model")
    assert isinstance(error, InvalidRequest)
    assert error.message == "model: no model can serve this request: lacks tools; lacks vision"


def test_a_prompt_that_is_too_long_is_what_clients_shorten_their_history_for() -> None:
    error = refusal("lacks vision", "context too small", "not the pinned model")
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    widest = model("m1").max_input_tokens
    assert f"maximum context length is {widest} tokens" in error.message
    assert "9000 tokens" in error.message


def test_a_file_by_its_id_needs_a_model_whose_operator_shares_the_account() -> None:
    part = {"type": "file", "file": {"file_id": "file-1"}}
    request = chat(messages=[{"role": "user", "content": [part]}])
    models = catalog(model("small"), model("shared", capabilities={"provider_files"}))
    assert verdicts(request, models=models) == {"small": "lacks provider_files", "shared": ""}
    with pytest.raises(InvalidRequest, match="belong to the operator's account") as refused:
        refuse_when_none([Eligibility(model(), (), "lacks provider_files")], request, 1)
    assert refused.value.param == "messages[0].content[0].file.file_id"


def test_hosted_tools_go_to_servers_that_surely_run_them_where_there_is_one() -> None:
    read = responses_request.to_chat({"model": "auto", "input": "q", "tools": [{"type": "web_search"}]})
    assert read.forwarded is not None
    request = with_forwarded(chat("q"), read.forwarded)
    both = frozenset({"responses_api", "responses_api.web_search"})
    own = model("own", capabilities=both, deployments=(deployment("a", runs_tools=True),))
    other = model("other", capabilities=both, deployments=(deployment("b", api_stated=True),))
    assert verdicts(request, models=catalog(own, other)) == {"own": "", "other": ""}
    assert uncertain(request, catalog(own, other)) == ["other"]
    assert uncertain(request, catalog(own, other), RequestedModel("other", None)) == []


def test_while_servers_that_surely_run_hosted_tools_are_at_their_limits_the_others_serve() -> None:
    read = responses_request.to_chat({"model": "auto", "input": "q", "tools": [{"type": "web_search"}]})
    assert read.forwarded is not None
    request = with_forwarded(chat("q"), read.forwarded)
    both = frozenset({"responses_api", "responses_api.web_search"})
    limited = (deployment("a", runs_tools=True, limits=RateQuota(parallel=1)),)
    own = model("own", capabilities=both, deployments=limited)
    other = model("other", capabilities=both, deployments=(deployment("b", api_stated=True),))
    balancer = LoadBalancer(lambda: 0.0, RouterSettings)

    def options() -> list[Eligibility]:
        return feasible(
            request, ANY, catalog(own, other), healthy_breaker(), balancer,
            allow_lists=(), bound_to=None, prompt_tokens=1,
        )  # fmt: skip

    full = without_room(options(), "own", 3)
    assert [option.why_not for option in full] == [BUSY, ""]
    balancer.take(own.deployments, Demand("s", 1))
    assert [option.why_not for option in options()] == [BUSY, ""]


def test_a_pinned_model_that_does_not_chat_is_named_as_such() -> None:
    models = catalog(model("small"), model("vectors", mode="embedding"))
    requested: Any = parse_model("vectors", models)
    options = feasible(
        chat(), requested, models, healthy_breaker(), IDLE, allow_lists=(), bound_to=None, prompt_tokens=1
    )
    with pytest.raises(InvalidRequest) as refused:
        refuse_when_none(options, structs.replace(chat(), model="vectors"), 1)
    assert refused.value.message == "model: no model can serve this request: its mode is not chat"


# -- efforts -----------------------------------------------------------------------------------------------------------

LEVELS = ("low", "medium", "high")


def thinking(**sent: Any) -> Model:
    """A model with three efforts at one deployment, a Claude unless `sent` says otherwise."""
    fields: dict[str, Any] = {"litellm_model": "anthropic/claude"} | sent
    own = model("think", deployments=(deployment("think#0", **fields),))
    return replace(own, efforts=tuple(replace(own, effort=level) for level in LEVELS))


def efforts(request: ChatRequest, models: Catalog, *, bound_to: str | None = None) -> dict[str, str]:
    options = feasible(
        request, ANY, models, healthy_breaker(), IDLE, allow_lists=(), bound_to=bound_to, prompt_tokens=10
    )
    return {option.model.action: option.why_not for option in options}


CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "y"},
]  # fmt: skip
THOUGHT = [{"type": "thinking", "thinking": "hm", "signature": "S"}]


@pytest.mark.parametrize(
    ("request_", "carried"),
    [
        (chat(), True),
        (chat(temperature=1), True),
        (chat(temperature=0.2), False),
        (chat(top_k=4), False),
        (chat(tools=TOOLS, tool_choice="auto"), True),
        (chat(tools=TOOLS, tool_choice="required"), False),
        (chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "f"}}), False),
        (chat(CALLED), False),
        (chat([CALLED[0], {**CALLED[1], "thinking_blocks": THOUGHT}, CALLED[2]]), True),
        (chat([*CALLED, {"role": "assistant", "content": "z"}, {"role": "user", "content": "and?"}]), True),
    ],
)
def test_efforts_that_claude_would_refuse_are_no_candidates(request_: ChatRequest, carried: bool) -> None:
    without = {f"think#{level}": NO_EFFORT for level in LEVELS} | {"think": ""}
    with_ = {f"think#{level}": "" for level in LEVELS}
    assert efforts(request_, catalog(thinking())) == (with_ if carried else without)
    for other in ("openai/gpt-5", "vertex_ai/gemini-3-pro"):
        assert efforts(request_, catalog(thinking(litellm_model=other))) == with_


@pytest.mark.parametrize(
    "of_operator",
    [
        {"dropped_params": frozenset({"reasoning_effort"})},
        {"request_defaults": {"extra_body": {"reasoning_effort": "low"}}},
        {"request_defaults": {"temperature": 0.3}},
        {"litellm_model": "claude-x", "request_defaults": {"top_k": 3}},
        {"litellm_model": "azure_ai/prod", "base_model": "claude-x", "request_defaults": {"top_k": 3}},
    ],
)
def test_an_operator_s_parameters_may_leave_no_choice_of_effort(of_operator: dict[str, Any]) -> None:
    assert efforts(chat(), catalog(thinking(**of_operator)))["think"] == ""
    kept = efforts(chat(), catalog(thinking(dropped_params=frozenset({"temperature"}))))
    assert kept == {f"think#{level}": "" for level in LEVELS}


def test_a_client_s_own_effort_is_the_only_candidate_whatever_else_it_sends() -> None:
    found = efforts(chat(reasoning_effort="high", temperature=0.2), catalog(thinking()))
    assert found == {"think#low": OTHER_EFFORT, "think#medium": OTHER_EFFORT, "think#high": ""}


def test_a_tool_loop_that_may_move_keeps_to_the_efforts_of_its_request() -> None:
    for request_, eligible in (
        (chat(reasoning_effort="low"), ["think#low", "small"]),
        (chat(top_k=4), ["think", "small"]),
    ):
        options = feasible(
            request_, ANY, catalog(thinking(), model("small")), healthy_breaker(), IDLE,
            allow_lists=(), bound_to="small", prompt_tokens=10,
        )  # fmt: skip
        assert [option.model.action for option in options if not option.why_not] == ["small"]
        moved = without_tool_loop(options)
        assert [option.model.action for option in moved if not option.why_not] == eligible


def test_a_full_model_is_busy_at_the_efforts_that_could_be_sent() -> None:
    request_ = chat(reasoning_effort="low")
    options = feasible(
        request_, ANY, catalog(thinking()), healthy_breaker(), IDLE, allow_lists=(), bound_to=None, prompt_tokens=10
    )
    assert [option.why_not for option in without_room(options, "think", 3)] == [BUSY, OTHER_EFFORT, OTHER_EFFORT]
