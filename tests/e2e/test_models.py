"""Which model answers and why: the catalogue, groups, forced choices, faults of policies and of providers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from msgspec.structs import replace

from gateway.database.tables import decisions
from gateway.routing.router import share
from policy.mdp import Decision, Observation
from policy.reload import CheckpointRef, LoadedPolicy, Refresh, ServingPolicies, StagedPolicies
from policy.rules import Strongest
from tests.gateway.providers.test_responses_route import MESSAGE, response
from tests.harness.fixed_answers import CannedProvider, json_answer
from tests.harness.gateway import config, serving
from tests.harness.scenario import HELLO, Play, playing, seqroute, session, turn
from tests.harness.upstream import FaultUpstream

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]


def edit(path: Path, **of_models: dict[str, Any]) -> None:
    """Change `model_info` of models in a configuration."""
    tree = yaml.safe_load(path.read_text())
    for entry in tree["model_list"]:
        entry["model_info"] |= of_models.get(entry["model_name"], {})
    path.write_text(yaml.safe_dump(tree))


@dataclass(frozen=True)
class Champion:
    """A policy whose answers are what `act` makes of the strongest rule's."""

    act: Any
    policy_id: str = "test-champion"

    def decide(self, observation: Observation, uniform: float) -> Decision:
        decision: Decision = self.act(replace(Strongest().decide(observation, uniform), policy_id=self.policy_id))
        return decision


@dataclass(frozen=True)
class Slot:
    """A slot that keeps its line-up whatever the table of policies says."""

    rule: LoadedPolicy
    lineup: ServingPolicies

    def refresh(self, wanted: StagedPolicies) -> Refresh:
        return Refresh(False, ())


def promote(play: Play, act: Any) -> None:
    """Make a policy the running gateway's champion, past the table of policies."""
    champion, board = Champion(act), play.gateway.parts.services.policies
    served = LoadedPolicy(champion, CheckpointRef(champion.policy_id), {})
    board._slot = Slot(board.rule, ServingPolicies(served))  # type: ignore[assignment]


async def test_the_catalogue_is_listed_as_openai_does_with_auto_in_front(tmp_path: Path, sqlite_url: str) -> None:
    router = {"model_group_alias": {"gpt-4o": "small"}}
    async with playing(tmp_path, sqlite_url, router=router) as play:
        client = play.gateway.client()
        listed = [model.id async for model in client.models.list()]
        assert listed == ["auto", "auto@cheap", "auto@balanced", "auto@best", "small", "big", "gpt-4o"]
        shown: Any = await client.models.retrieve("big")
        assert (shown.id, shown.object, shown.max_input_tokens) == ("big", "model", 100_000)
        assert shown.output_usd_per_million_tokens == 20.0
        assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
        auto: Any = await client.models.retrieve("auto@best")
        assert (auto.id, auto.max_input_tokens, auto.max_output_tokens) == ("auto@best", 100_000, 4_000)
        assert auto.capabilities == ["custom_tools", "response_schema", "tools"]
        assert auto.created > 1_700_000_000
        async with play.gateway.http() as http:
            for prefix in ("", "/v1"):
                answer = await http.get(prefix + "/models/nope")
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            aliased = await turn(http, "gpt-4o")
            assert (aliased.json()["model"], seqroute(aliased, "reason")) == ("small", "pinned")
            for unknown in ("gpt-none", "auto@worst"):
                answer = await turn(http, unknown)
                assert answer.status_code in (400, 404)
                assert answer.json()["error"]["param"] == "model"


async def test_presets_and_the_lambda_header_move_along_the_sweep(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        chosen = {}
        for model, headers in (
            ("auto@cheap", {}), ("auto@best", {}), ("auto", {"X-Route-Lambda": "0"}),
            ("auto", {"X-Route-Lambda": "100000"}), ("auto@best", {"X-Route-Lambda": "100000"}),
        ):  # fmt: skip
            answer = await turn(http, model, headers=headers)
            chosen[model, headers.get("X-Route-Lambda")] = answer.json()["model"]
        assert chosen == {
            ("auto@cheap", None): "small", ("auto@best", None): "big", ("auto", "0"): "big",
            ("auto", "100000"): "small", ("auto@best", "100000"): "small",
        }  # fmt: skip
        assert [row["lambda_per_usd"] for row in play.rows(decisions)] == [100.0, 0.0, 0.0, 100_000.0, 100_000.0]


async def test_a_choice_of_one_says_what_took_the_others(tmp_path: Path, database_url: str) -> None:
    async with FaultUpstream() as provider:
        path = config(tmp_path, provider.url, database_url=database_url)
        edit(path, small={"supports_function_calling": False}, big={"supports_vision": True})
        async with serving(path) as gateway, gateway.http() as http:
            play = Play(gateway, provider, database_url, path)
            for fields in ({"tools": TOOLS}, {"messages": PICTURE}):
                answer = await turn(http, "auto@cheap", **fields)
                assert (answer.json()["model"], seqroute(answer, "reason")) == ("big", "capability")
            poor = await turn(http, "auto@best", headers=session("poor", budget_usd="0.0006"))
            assert (poor.json()["model"], seqroute(poor, "reason")) == ("small", "only-affordable")
            refused = await turn(http, "small", tools=TOOLS)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
            assert "lacks tools" in refused.json()["error"]["message"]
            rows = play.rows(decisions)
            assert [(r["reason"], r["propensity"]) for r in rows] == [
                ("capability", 1.0), ("capability", 1.0), ("only-affordable", 1.0),
            ]  # fmt: skip
            explained = (await http.get(f"/v1/decisions/{seqroute(poor, 'decision-id')}")).json()
            why_not = {c["model"]: c["why_not"] for c in explained["candidates"]}
            assert why_not == {"small": None, "big": "not affordable"}
            await gateway.ledger_matches(provider)


async def test_models_of_openai_s_other_route_answer_chats_and_are_listed(tmp_path: Path) -> None:
    """The price map says `mode: responses` of them."""
    async with CannedProvider(json_answer(response([MESSAGE]))) as provider:
        path = config(tmp_path, provider.address + "/v1", modes={"codex": "gpt-5-codex", "pro": "o3-pro"})
        async with serving(path) as gateway, gateway.http() as http:
            listed = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
            assert {"codex", "pro"} < set(listed)
            for model in ("codex", "pro"):
                body = {"model": model, "messages": HELLO, "tools": TOOLS}
                answer = await http.post("/v1/chat/completions", json=body)
                assert answer.json()["choices"][0]["message"]["content"] == "Hello", answer.text
                assert answer.headers["x-seqroute-cost-usd"] == "0.000094"
            assert [where for where, _ in provider.received] == ["/v1/responses"] * 2


async def test_a_prompt_that_fits_nowhere_is_refused_before_any_money(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, model_info={"max_input_tokens": 50}) as play, play.gateway.http() as http:
        before = await play.gateway.entries()
        answer = await turn(http, messages=[{"role": "user", "content": "word " * 100}])
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert await play.gateway.entries() == before


def fault(decision: Decision) -> Decision:
    raise RuntimeError("a learned policy may raise anything")


def infeasible(decision: Decision) -> Decision:
    return replace(decision, action=99)


def untrue(decision: Decision) -> Decision:
    return replace(decision, propensity=0.123)


async def test_whatever_a_policy_does_the_rule_answers_in_the_same_turn(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        promote(play, lambda decision: decision)
        assert seqroute(await turn(http, "auto"), "policy") == "test-champion"
        for act in (fault, infeasible, untrue):
            promote(play, act)
            answer = await turn(http, "auto", headers=session(act.__name__))
            assert answer.status_code == 200
            assert (seqroute(answer, "reason"), seqroute(answer, "policy")) == ("policy-fault", "rule:resolving")
        assert "seqroute_policy_faults_total 3.0" in (await http.get("/metrics")).text
        for row in play.rows(decisions, reason="policy-fault"):
            [executed] = [c for c in orjson.loads(row["candidates"]) if c["model"] == row["model"]]
            assert executed["probability"] == pytest.approx(row["propensity"])


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        ({"mode": "off"}, {("rule:resolving", "policy-off")}),
        ({"mode": "shadow"}, {("rule:resolving", "shadow")}),
        ({"mode": "on"}, {("test-champion", "policy")}),
    ],
)
async def test_the_mode_says_who_serves(
    tmp_path: Path, sqlite_url: str, policy: dict[str, str], reasons: set[tuple[str, str]]
) -> None:
    async with playing(tmp_path, sqlite_url, policy=policy) as play, play.gateway.http() as http:
        promote(play, lambda decision: decision)
        for _ in range(3):
            await turn(http, "auto")
        rows = play.rows(decisions)
        assert {(row["policy_id"], row["reason"]) for row in rows if row["reason"] != "explore"} == reasons
        shadows = {(row["shadow_policy_id"], row["shadow_model"]) for row in rows}
        assert shadows == ({("test-champion", "big")} if policy["mode"] == "shadow" else {(None, None)})


async def test_a_canary_serves_its_share_of_sessions_and_each_session_stays_where_it_is(
    tmp_path: Path, sqlite_url: str
) -> None:
    policy = {"mode": "canary", "canary_fraction": 0.4}
    async with playing(tmp_path, sqlite_url, policy=policy) as play:
        tenant_id, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            promote(play, lambda decision: decision)
            served = {}
            for number in range(30):
                first = await turn(http, "auto", headers=session(f"s{number}"))
                second = await turn(http, "auto", headers=session(f"s{number}"))
                assert seqroute(first, "policy") == seqroute(second, "policy")
                served[f"s{number}"] = seqroute(first, "policy")
        for name, policy_id in served.items():
            chosen = share(f"{tenant_id}/{name}") < 0.4
            assert policy_id == ("test-champion" if chosen else "rule:resolving")
        assert set(served.values()) == {"test-champion", "rule:resolving"}


async def test_a_group_is_balanced_by_weight_and_each_deployment_bills_its_own_price(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with FaultUpstream() as provider:
        path = config(tmp_path, provider.url, database_url=sqlite_url)
        tree = yaml.safe_load(path.read_text())
        cheap = tree["model_list"][0]
        twin = {
            "model_name": "small",
            "litellm_params": cheap["litellm_params"] | {"model": "openai/ok:tokens=7", "weight": 3},
            "model_info": cheap["model_info"]
            | {"input_cost_per_token": "0.000002", "output_cost_per_token": "0.000004"},
        }
        path.write_text(yaml.safe_dump(tree | {"model_list": [*tree["model_list"], twin]}))
        async with serving(path) as gateway, gateway.http() as http:
            for number in range(40):
                assert (await turn(http, headers=session(f"s{number}"))).json()["model"] == "small"
            asked = Counter(attempt.model for attempt in provider.bill)
            assert set(asked) == {"small", "ok:tokens=7"}
            assert asked["ok:tokens=7"] > asked["small"]
            await gateway.settled()
            settled = sum(e["amount_nano_usd"] for e in await gateway.entries() if e["kind"] == "settle")
            billed = sum(
                (a.prompt_tokens * 1_000 + a.output_tokens * 2_000) * (1 if a.model == "small" else 2)
                for a in provider.bill
            )
            assert settled == billed
            await gateway.audit()


async def test_a_failing_provider_is_left_alone_for_a_while_and_others_answer(tmp_path: Path, sqlite_url: str) -> None:
    router = {"allowed_fails": 1, "cooldown_time": 60}
    modes = {"down": "e500"}
    async with playing(tmp_path, sqlite_url, modes=modes, router=router) as play, play.gateway.http() as http:
        assert [(await turn(http, "down")).status_code for _ in range(2)] == [502, 502]
        resting = await turn(http, "down")
        assert (resting.status_code, resting.headers["Retry-After"]) == (502, "5")
        assert len(play.provider.bill) == 2
        told = (await http.post("/v1/route", json={"model": "auto", "messages": HELLO})).json()
        assert {c["model"]: c["why_not"] for c in told["candidates"]}["down"] == "unhealthy"
        assert (await turn(http, "auto")).status_code == 200


async def test_a_retry_goes_to_another_deployment_and_ends_when_none_is_left(tmp_path: Path, database_url: str) -> None:
    router = {"allowed_fails": 0, "num_retries": 2, "cooldown_time": 60}
    async with FaultUpstream() as provider:
        path = config(tmp_path, provider.url, database_url=database_url, modes={"down": "e500"}, router=router)
        tree = yaml.safe_load(path.read_text())
        down = next(entry for entry in tree["model_list"] if entry["model_name"] == "down")
        group = [
            down
            | {
                "model_name": "pair",
                "litellm_params": down["litellm_params"] | {"model": f"openai/{mode}", "weight": w},
            }
            for mode, w in (("e503", 1000), ("ok:tokens=5", 0.001))
        ]
        path.write_text(yaml.safe_dump(tree | {"model_list": [*tree["model_list"], *group]}))
        async with serving(path) as gateway, gateway.http() as http:
            for stream in (False, True):
                answer = await turn(http, "pair", stream=stream, headers=session(f"s{stream}"))
                assert answer.status_code == 200
            assert [a.status for a in provider.bill] == [503, 200, 200]
            provider.bill.clear()
            only = await turn(http, "down", headers={"Idempotency-Key": "once"} | session("down"))
            assert (only.status_code, only.json()["error"]["code"]) == (502, "upstream_error")
            assert len(provider.bill) == 1
            await gateway.settled()
            kinds = [e["kind"] for e in await gateway.entries(session="down") if e["hold_id"]]
            assert kinds == ["reserve", "release"]
            play = Play(gateway, provider, database_url, path)
            assert [row["status"] for row in play.rows(decisions, session_id="down")] == ["failed"]
            again = await turn(http, "down", headers={"Idempotency-Key": "once"})
            assert again.status_code == 502
            await gateway.audit()


async def test_a_provider_s_nonsense_does_not_keep_its_bill_from_the_ledger(tmp_path: Path, database_url: str) -> None:
    modes = {mode: mode for mode in ("nul", "badjson", "html", "empty", "split-utf8")}
    async with playing(tmp_path, database_url, modes=modes, audited=False) as play:
        _, key = await play.gateway.tenant("acme", store_text=True)
        async with play.gateway.http(key) as http:
            for mode in modes:
                for stream in (False, True):
                    assert (await turn(http, mode, stream=stream)).status_code in (200, 502)
        await play.gateway.settled()
        entries = await play.gateway.entries()
        resolved = [e["hold_id"] for e in entries if e["kind"] in ("settle", "release")]
        assert sorted(resolved) == sorted(e["hold_id"] for e in entries if e["kind"] == "reserve")
        assert all(row["status"] != "pending" for row in play.rows(decisions))
