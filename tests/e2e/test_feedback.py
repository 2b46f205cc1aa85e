"""Feedback as clients of four gateways send it, and what the next turn makes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from gateway.database.tables import decisions, feedback, sessions
from tests.harness.scenario import HELLO, playing, seqroute, session, turn


async def test_four_dialects_end_up_as_scores_of_the_same_turn(tmp_path: Path, database_url: str) -> None:
    async with playing(tmp_path, database_url) as play:
        tenant_id, key = await play.gateway.tenant("acme")
        async with play.gateway.http(key) as http:
            answer = await turn(http, headers=session("s"))
            decision, completion = seqroute(answer, "decision-id"), answer.json()["id"]
            bodies: list[tuple[str, dict[str, Any], float]] = [
                ("score", {"decision_id": decision, "score": 0.25}, 0.25),
                ("tests", {"completion_id": completion, "score": 1, "name": "tests"}, 1.0),
                ("solved", {"inference_id": completion, "metric_name": "solved", "value": True}, 1.0),
                ("stars", {"inference_id": decision, "metric_name": "stars", "value": 0.5, "tags": {"a": "b"}}, 0.5),
                ("portkey", {"trace_id": completion, "value": -5, "weight": 0.5, "metadata": {"u": 1}}, 0.375),
            ]
            for name, body, score in bodies:
                stored = (await http.post("/v1/feedback", json=body)).json()
                assert (stored["name"], stored["score"], stored["stored"]) == (name, score, True), body
                assert (stored["decision_id"], stored["session_id"]) == (decision, "s")
            outcome = {"replay_id": decision, "source": "agent", "target": "model", "verdict": "underpowered"}
            stored = (await http.post("/v1/router/outcomes", json=outcome)).json()
            assert (stored["name"], stored["score"], stored["decision_id"]) == ("verdict", 0.25, decision)
            words = {"inference_id": decision, "metric_name": "comment", "value": "well put"}
            unscored = (await http.post("/feedback", json=words)).json()
            assert (unscored["stored"], unscored["score"], unscored["feedback_id"]) == (False, None, None)
            whole = (await http.post("/feedback", json={"session_id": "s", "score": 0.75})).json()
            assert (whole["decision_id"], whole["session_id"]) == (None, "s")
            rows = play.rows(feedback)
            assert {(r["name"], r["score"]) for r in rows} == {(n, s) for n, _, s in bodies} | {
                ("score", 0.75),
                ("verdict", 0.25),
            }
            assert {r["tenant_id"] for r in rows} == {tenant_id}
            sample = play.gateway.parts.services.metrics.registry.get_sample_value
            assert (
                sample("seqroute_quality_error_count") == 6
            )  # of the answer's scores; the session's has no prediction
            assert sample("seqroute_cost_ratio_count", {"model": "small"}) == 1
            assert sample("seqroute_forecast_level_count", {"model": "small"}) == 1
            [row] = play.rows(sessions)
            assert (row["quality_count"], row["quality_sum"], row["last_quality"]) == (
                7,
                0.25 + 1 + 1 + 0.5 + 0.375 + 0.25 + 0.75,
                0.75,
            )


async def test_the_same_signal_again_changes_nothing_however_many_send_it_at_once(
    tmp_path: Path, database_url: str
) -> None:
    async with playing(tmp_path, database_url) as play, play.gateway.http() as http:
        answer = await turn(http, headers=session("s"))
        body = {"decision_id": seqroute(answer, "decision-id"), "score": 0.9}
        sent = await asyncio.gather(*(http.post("/v1/feedback", json=body) for _ in range(12)))
        assert [a.status_code for a in sent] == [200] * 12
        assert sum(a.json()["stored"] for a in sent) == 1
        assert len({a.json()["feedback_id"] for a in sent}) == 1
        assert len(play.rows(feedback)) == 1
        contradicted = await http.post("/v1/feedback", json=body | {"score": 0.0})
        assert not contradicted.json()["stored"]
        assert play.rows(sessions)[0]["quality_sum"] == 0.9


async def test_a_session_under_another_system_s_id_is_scored_by_that_id(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        await turn(http, headers={"x-portkey-trace-id": "trace 1/2"})
        stored = await http.post("/v1/feedback", json={"trace_id": "trace 1/2", "value": 10})
        assert (stored.status_code, stored.json()["score"]) == (200, 1.0)
        episode: dict[str, Any] = {"tensorzero::episode_id": "0195-episode"}
        await turn(http, **episode)
        body = {"episode_id": "0195-episode", "metric_name": "won", "value": False}
        assert (await http.post("/feedback", json=body)).json()["session_id"] == "0195-episode"


async def test_feedback_on_a_stream_late_or_of_no_use_is_taken_or_refused_by_its_field(
    tmp_path: Path, sqlite_url: str
) -> None:
    async with playing(tmp_path, sqlite_url) as play, play.gateway.http() as http:
        answer = await turn(http, headers=session("s", end="true"), stream=True)
        await play.gateway.settled()
        late = {"decision_id": seqroute(answer, "decision-id"), "score": 1}
        assert (await http.post("/v1/feedback", json=late)).json()["stored"]
        for body, param in (
            ({"score": 1}, "decision_id"),
            ({"decision_id": late["decision_id"], "score": "good"}, "score"),
            ({"decision_id": late["decision_id"], "score": None}, "score"),
            ({"decision_id": late["decision_id"], "score": True}, "score"),
            ({"decision_id": late["decision_id"], "score": 1, "comment": 5}, "comment"),
            ({"inference_id": "x", "metric_name": "m", "value": "text"}, "value"),
            ({"trace_id": "x"}, "value"),
        ):
            refused = await http.post("/v1/feedback", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), body
        for raw in (b'{"decision_id": "x", "score": NaN}', b'{"decision_id": "a\\u0000", "score": 1}', b"[]", b""):
            assert (await http.post("/v1/feedback", content=raw)).status_code == 400, raw
        assert len(play.rows(feedback)) == 1


async def test_the_next_turn_sees_the_scores_and_a_regeneration_is_noticed(tmp_path: Path, sqlite_url: str) -> None:
    async with playing(tmp_path, sqlite_url, modes={"tools": "tools"}) as play, play.gateway.http() as http:
        first = await turn(http, headers=session("s"))
        before = play.rows(decisions)[0]["features"]
        await http.post("/v1/feedback", json={"decision_id": seqroute(first, "decision-id"), "score": 0.0})
        second = await turn(http, headers=session("s"))
        rows = {row["decision_id"]: row for row in play.rows(decisions)}
        again = rows[seqroute(second, "decision-id")]
        assert again["features"] != before
        explained = (await http.get(f"/v1/decisions/{again['decision_id']}")).json()
        assert explained["signals"] == {"regenerates": True}
        assert explained["previous_decision_id"] == seqroute(first, "decision-id")
        clamped = await turn(http, headers=session("t"), max_tokens=3, messages=[*HELLO, *HELLO])
        explained = (await http.get(f"/v1/decisions/{seqroute(clamped, 'decision-id')}")).json()
        assert (explained["signals"], explained["finish_reason"]) == ({"truncated": True}, "length")


async def test_a_session_that_opts_out_is_left_to_no_chance_until_it_opts_in(tmp_path: Path, sqlite_url: str) -> None:
    policy = {"exploration_floor": 0.5}
    async with playing(tmp_path, sqlite_url, policy=policy) as play, play.gateway.http() as http:
        floors = []
        for name, asked in (("s", None), ("s", "off"), ("s", None), ("t", None), ("s", "on"), ("s", None)):
            extra = {} if asked is None else {"X-Route-Explore": asked}
            answer = await turn(http, "auto", headers=session(name) | extra)
            explained = (await http.get(f"/v1/decisions/{seqroute(answer, 'decision-id')}")).json()
            floors.append(explained["exploration_floor"])
            if floors[-1] == 0.0:
                assert explained["probability"] == 1.0
        assert floors == [0.5, 0.0, 0.0, 0.5, 0.5, 0.5]
        refused = await turn(http, "auto", headers={"X-Route-Explore": "maybe"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "X-Route-Explore")
