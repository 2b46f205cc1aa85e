"""The configuration: what LiteLLM users write reads unchanged; what is wrong is said with its key path, all at once."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import litellm_keys
from gateway.config.load import load_settings, read_database_url, read_settings
from gateway.config.master_key import REMEDY, weakness_of_master_key
from gateway.config.reader import SettingsError
from gateway.config.settings import GeneralSettings, JudgeSettings, Settings, TextSettings
from gateway.config.values import Secret
from gateway.money import NANOUSD_PER_USD
from gateway.schema.fields import KNOWN_FIELDS

MASTER_KEY = "sk-Zq8rT2mLw5Vn9Kc3Xb7Hd1"
MINIMAL = """
model_list:
  - model_name: small
    litellm_params: {model: openai/gpt-4o-mini}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str, name: str = "gateway.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def problems_of(path: Path, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ or {})
    return caught.value.problems


def settings_of(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    return load_settings(path, environ or {})


def test_a_litellm_configuration_reads_unchanged(write: Write) -> None:
    path = write(
        """
        model_list:
          - model_name: gpt-4o
            litellm_params:
              model: azure/my-deployment
              api_base: https://example.openai.azure.com/
              api_key: os.environ/AZURE_KEY
              api_version: "2026-01-01"
              rpm: 600
              tpm: 120000
              weight: 2
              order: 1
              timeout: 30
              stream_timeout: 60
              extra_headers: {X-Team: blue}
            model_info: {id: azure-1, mode: chat, base_model: azure/gpt-4o, max_tokens: 4096}
          - model_name: gpt-4o
            litellm_params: {model: openai/gpt-4o, litellm_credential_name: main}
            model_info: {input_cost_per_token: 2.5e-6, output_cost_per_token: 1e-5,
                         input_cost_per_token_above_200k_tokens: 5e-6}
        credential_list:
          - credential_name: main
            credential_values: {api_key: os.environ/OPENAI_KEY, organization: org-1}
            credential_info: {description: production}
        general_settings: {master_key: os.environ/MASTER, database_url: "postgresql://u:p@h:5432/d"}
        litellm_settings: {drop_params: false, num_retries: 5, cooldown_time: 9, fallbacks: [{gpt-4o: [gpt-4o]}]}
        router_settings:
          num_retries: 1
          timeout: 90
          allowed_fails: 4
          cooldown_time: 12
          fallbacks: [{gpt-4o: [gpt-4o]}]
          context_window_fallbacks: [{gpt-4o: [gpt-4o]}]
          content_policy_fallbacks: [{gpt-4o: [best]}]
          max_attempts: 4
          model_group_alias: {best: gpt-4o, hidden-one: {model: gpt-4o, hidden: true}}
        """
    )
    settings = settings_of(path, {"AZURE_KEY": "az", "OPENAI_KEY": "oa", "MASTER": MASTER_KEY})
    first, second = settings.models
    assert first.model_name == second.model_name == "gpt-4o"
    assert first.params.api_base == "https://example.openai.azure.com"
    assert first.params.api_key == Secret("az")
    assert (first.params.rpm, first.params.tpm, first.params.weight, first.params.order) == (600, 120_000, 2.0, 1)
    assert (first.params.timeout_s, first.params.stream_timeout_s) == (30.0, 60.0)
    assert first.params.extra_headers == {"X-Team": Secret("blue")}
    assert (first.info.deployment_id, first.info.base_model, first.info.max_output_tokens) == (
        "azure-1", "azure/gpt-4o", 4096,
    )  # fmt: skip
    assert (second.params.api_key, second.params.organization) == (Secret("oa"), "org-1")
    assert second.info.prices_usd == {
        "input_cost_per_token": Decimal("0.0000025"),
        "output_cost_per_token": Decimal("0.00001"),
        "input_cost_per_token_above_200k_tokens": Decimal("0.000005"),
    }
    assert settings.general == GeneralSettings(Secret(MASTER_KEY), Secret("postgresql://u:p@h:5432/d"))
    router = settings.router
    assert (router.num_retries, router.timeout_s, router.allowed_fails, router.cooldown_s) == (1, 90.0, 4, 12.0)
    assert router.fallbacks == router.context_window_fallbacks == {"gpt-4o": ("gpt-4o",)}
    assert (router.content_policy_fallbacks, router.max_attempts) == ({"gpt-4o": ("best",)}, 4)
    assert router.model_group_alias == {"best": "gpt-4o", "hidden-one": "gpt-4o"}
    assert router.drop_params is False
    assert settings.warnings == ()


def test_how_a_group_is_balanced_is_read_by_litellm_s_names(write: Write) -> None:
    group = """
router_settings:
  routing_strategy: latency-based-routing
  routing_strategy_args: {ttl: 60, lowest_latency_buffer: 0.5, max_latency_list_size: 20}
  default_max_parallel_requests: 7
"""
    settings = settings_of(write(MINIMAL + group))
    router = settings.router
    assert (router.routing_strategy, router.latency_ttl_s, router.latency_buffer) == (
        "latency-based-routing",
        60.0,
        0.5,
    )
    assert router.deployment_parallel == 7
    assert [warning.partition(": an argument")[0] for warning in settings.warnings] == [
        "gateway.yaml: router_settings.routing_strategy_args.max_latency_list_size"
    ]
    other = settings_of(write(MINIMAL + "router_settings: {routing_strategy: provider-budget-routing}\n"))
    assert other.router.routing_strategy == "simple-shuffle"
    assert "is not supported here" in other.warnings[0]
    (problem,) = problems_of(write(MINIMAL + "router_settings: {routing_strategy: least-buzy}\n"))
    assert "router_settings.routing_strategy: expected one of simple-shuffle, least-busy" in problem


def test_every_problem_is_named_at_once_with_its_key_path(write: Write) -> None:
    path = write(
        """
        model_list:
          - model_name: a
            litellm_params: {model: openai/x, api_key: os.environ/NOT_SET, rpm: fast, tpm: 1e9999999}
            model_info: {input_cost_per_token: free, output_cost_per_token: -1, supports_vision: maybe}
          - litellm_params: {model: openai/y}
          - model_name: b
          - five
        router_settings: {num_retries: 99}
        session_settings: {default_budget_usd: -1, idle_timeout: 30x, over_budget: explode}
        policy_settings: {canary_fraction: 2, mode: sometimes}
        """
    )
    assert problems_of(path) == (
        "gateway.yaml: model_list[0].litellm_params.api_key: environment variable NOT_SET is not set",
        'gateway.yaml: model_list[0].litellm_params.rpm: expected a whole number, got "fast"',
        'gateway.yaml: model_list[0].litellm_params.tpm: expected a whole number, got "1e9999999"',
        'gateway.yaml: model_list[0].model_info.input_cost_per_token: expected a number, got "free"',
        "gateway.yaml: model_list[0].model_info.output_cost_per_token: expected a number of at least 0, got -1",
        'gateway.yaml: model_list[0].model_info.supports_vision: expected true or false, got "maybe"',
        "gateway.yaml: model_list[1].model_name: expected a string, got nothing",
        'gateway.yaml: model_list[2].litellm_params.model: expected "provider/model", got nothing',
        'gateway.yaml: model_list[3]: expected a mapping, got "five"',
        "gateway.yaml: router_settings.num_retries: expected a whole number from 0 to 10, got 99",
        "gateway.yaml: session_settings.default_budget_usd: expected an amount of USD, at least 0, got -1",
        'gateway.yaml: session_settings.idle_timeout: expected a duration like "30m", "45s" or a number of seconds,'
        ' got "30x"',
        'gateway.yaml: session_settings.over_budget: expected one of degrade, refuse, got "explode"',
        'gateway.yaml: policy_settings.mode: expected one of off, shadow, canary, on, got "sometimes"',
        "gateway.yaml: policy_settings.canary_fraction: expected a number from 0 to 1, got 2",
    )


def test_an_unknown_key_is_refused_with_the_nearest_known_one(write: Write) -> None:
    path = write(MINIMAL + "sesion_settings: {}\nrouter_settings: {cooldown_tim: 3, spend_cap: 1}\nzzz: 1\n")
    assert problems_of(path) == (
        "gateway.yaml: router_settings.spend_cap: unknown key that looks like a limit; remove it to run without it",
        'gateway.yaml: router_settings.cooldown_tim: unknown key, did you mean "cooldown_time"?',
        'gateway.yaml: sesion_settings: unknown key, did you mean "session_settings"?',
        "gateway.yaml: zzz: unknown key",
    )


def test_keys_of_other_versions_and_of_the_operator_s_own_are_warnings(write: Write) -> None:
    path = write(
        """
        .defaults: &defaults {api_key: sk-x}
        _more: {team: blue}
        model_list:
          - model_name: a
            weight: 2
            owner: search
            litellm_params: {<<: *defaults, model: openai/gpt-4o-mini}
        router_settings: {a_setting_of_tomorrow: true}
        """
    )
    settings = settings_of(path)
    assert settings.models[0].params.api_key == Secret("sk-x")
    assert [warning.split(": ")[1] for warning in settings.warnings] == [
        "model_list[0].weight", "model_list[0].owner", "router_settings.a_setting_of_tomorrow",
    ]  # fmt: skip


def test_what_belongs_deeper_and_changes_a_bill_is_refused_where_it_stands(write: Write) -> None:
    path = write(
        """
        model_list:
          - model_name: a
            input_cost_per_token: 0.000001
            max_budget: 5
            litellm_params: {model: openai/gpt-4o-mini}
        """
    )
    assert [problem.split(": ")[1] for problem in problems_of(path)] == [
        "model_list[0].input_cost_per_token", "model_list[0].max_budget",
    ]  # fmt: skip


def test_a_litellm_key_without_meaning_here_is_a_warning(write: Write) -> None:
    path = write(
        MINIMAL
        + """
litellm_settings: {success_callback: [langfuse], cache: true}
general_settings: {store_model_in_db: true}
router_settings: {set_verbose: true}
guardrails: []
"""
    )
    assert [warning.partition(": a LiteLLM key")[0] for warning in settings_of(path).warnings] == [
        "gateway.yaml: general_settings.store_model_in_db",
        "gateway.yaml: router_settings.set_verbose",
        "gateway.yaml: litellm_settings.success_callback",
        "gateway.yaml: litellm_settings.cache",
        "gateway.yaml: guardrails",
    ]


def test_what_public_litellm_files_hold_reads_unchanged(write: Write) -> None:
    path = write(
        """
        x-common: &common {api_key: os.environ/NOT_SET_BUT_UNUSED}
        environment_variables: {KEY: sk-from-the-block}
        model_list:
          - model_name: a
            rpm: 10
            tpm: 1000
            litellm_params:
              model: openai/gpt-4o-mini
              api_key: os.environ/KEY
              api_version: 2024-02-01
              temperature: 0.2
              top_k: 40
              max_tokens: "4096"
              reasoning_effort: low
              thinking: {type: enabled, budget_tokens: 1024}
              extra_body: {chat_template_kwargs: {enable_thinking: false}, key: os.environ/KEY}
              allowed_openai_params: [reasoning_effort]
              additional_drop_params: [user]
              headers: {X-Team: blue}
              num_beams: 3
            model_info: {id: 7, team: search, tier_of_ours: gold, adaptive_router_preferences: {}}
        litellm_settings: {set_verbose: true, some_setting_of_tomorrow: 1}
        """
    )
    settings = settings_of(path)
    (entry,) = settings.models
    assert (entry.params.rpm, entry.params.tpm, entry.params.api_version) == (10, 1000, "2024-02-01")
    assert entry.params.api_key == Secret("sk-from-the-block")
    assert entry.params.extra_headers == {"X-Team": Secret("blue")}
    assert entry.params.request_defaults == {
        "temperature": 0.2, "top_k": 40, "max_tokens": 4096, "reasoning_effort": "low", "num_beams": 3,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "key": "sk-from-the-block"},
    }  # fmt: skip
    assert entry.params.allowed_params == frozenset({"reasoning_effort"})
    assert entry.params.dropped_params == frozenset({"user"})
    assert entry.info.deployment_id == "7"
    assert [warning.split(": ")[1] for warning in settings.warnings] == [
        "environment_variables", "model_list[0].litellm_params.api_version", "model_list[0].litellm_params.num_beams",
        "model_list[0].model_info.team", "model_list[0].model_info.tier_of_ours",
        "model_list[0].model_info.adaptive_router_preferences", "litellm_settings.set_verbose",
        "litellm_settings.some_setting_of_tomorrow",
    ]  # fmt: skip


def test_the_content_of_a_google_key_file_may_be_an_object(write: Write) -> None:
    settings = settings_of(
        write(
            """
            environment_variables: {PRIVATE: the-key}
            model_list:
              - model_name: a
                litellm_params:
                  model: vertex_ai/gemini-2.5-pro
                  vertex_credentials: {type: service_account, private_key: os.environ/PRIVATE}
            """
        )
    )
    credentials = (settings.models[0].params.provider_params or {})["vertex_credentials"]
    assert json.loads(credentials.reveal()) == {"type": "service_account", "private_key": "the-key"}


def test_defaults_of_all_deployments_are_those_of_each_that_states_none(write: Write) -> None:
    settings = settings_of(
        write(
            """
            model_list:
              - {model_name: a, litellm_params: {model: openai/gpt-4o, max_completion_tokens: 7, timeout: 9}}
              - {model_name: b, litellm_params: {model: openai/gpt-4o, temperature: 0.1, extra_body: {top_k: 1}}}
            router_settings:
              default_litellm_params:
                {max_tokens: 100, temperature: 0.5, timeout: 3, max_retries: 2, model: x, extra_body: {top_k: 2}}
            """
        )
    )
    a, b = (entry.params for entry in settings.models)
    assert a.request_defaults == {"max_completion_tokens": 7, "temperature": 0.5, "extra_body": {"top_k": 2}}
    assert b.request_defaults == {"max_tokens": 100, "temperature": 0.1, "extra_body": {"top_k": 1}}
    assert (a.model, a.timeout_s, b.timeout_s) == ("openai/gpt-4o", 9.0, 3.0)
    where = "gateway.yaml: router_settings.default_litellm_params"
    assert [warning.partition(": ")[2].partition(": ")[0] for warning in settings.warnings] == [
        f"{where}.{key}".partition(": ")[2] for key in ("model", "max_retries")
    ]
    bad = write(f"{MINIMAL}router_settings: {{default_litellm_params: {{max_tokens: many, extra_body: {{n: 2}}}}}}\n")
    assert [problem.partition(": expected")[0].partition(": cannot")[0] for problem in problems_of(bad)] == [
        f"{where}.extra_body.n", f"{where}.max_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "defaults", "expected"),
    [
        # A host and its key are one thing, by whichever name or credential they are stated.
        ("", "", ("http://default/v1", "sk-default", "org-default", "us-east-1")),
        ("litellm_credential_name: c1", "", ("http://c1/v1", "sk-c1", None, "us-east-1")),
        ("litellm_credential_name: c2", "", ("http://default/v1", "sk-default", "org-default", "eu-c2")),
        ("base_url: http://mine:8000/v1, api_key: sk-mine", "", ("http://mine:8000/v1", "sk-mine", None, "us-east-1")),
        ("base_url: http://mine:8000/v1", "", ("http://mine:8000/v1", None, None, "us-east-1")),
        ("litellm_credential_name: c1, base_url: http://m/v1", "", ("http://m/v1", "sk-c1", None, "us-east-1")),
        ("api_key: sk-mine", "", (None, "sk-mine", None, "us-east-1")),
        ("organization: org-mine", "", ("http://default/v1", "sk-default", "org-mine", "us-east-1")),
        ("", "litellm_credential_name: c1", ("http://c1/v1", "sk-c1", None, "us-east-1")),
        ("", "base_url: http://c/v1, litellm_credential_name: c1", ("http://c/v1", "sk-c1", None, "us-east-1")),
        ("api_base: http://mine", "litellm_credential_name: c1", ("http://mine", None, None, "us-east-1")),
        ("api_base: null", "", ("http://default/v1", "sk-default", "org-default", "us-east-1")),
    ],
)  # fmt: skip
def test_defaults_never_join_a_deployment_s_key_to_their_host_or_its_host_to_their_key(
    write: Write, entry: str, defaults: str, expected: tuple[str | None, ...]
) -> None:
    defaults = defaults or "api_base: http://default/v1, api_key: sk-default, organization: org-default"
    settings = settings_of(
        write(
            f"""
            credential_list:
              - {{credential_name: c1, credential_values: {{api_base: http://c1/v1, api_key: sk-c1}}}}
              - {{credential_name: c2, credential_values: {{aws_region_name: eu-c2}}}}
            model_list: [{{model_name: a, litellm_params: {{model: openai/gpt-4o, {entry}}}}}]
            router_settings: {{default_litellm_params: {{{defaults}, aws_region_name: us-east-1}}}}
            """
        )
    )
    params = settings.models[0].params
    region = (params.provider_params or {})["aws_region_name"]
    found = (params.api_base, params.api_key and params.api_key.reveal(), params.organization, region.reveal())
    assert found == expected
    held_back = "http://default" not in str(expected) and "c1" not in defaults
    assert any("belong together" in warning for warning in settings.warnings) == (
        held_back or entry == "api_base: http://mine"
    )


def test_each_organization_of_an_entry_with_an_id_has_an_id_of_its_own(write: Write) -> None:
    entry = "litellm_params: {model: openai/x, organization: [one, two]}, model_info: {id: main}"
    models = settings_of(write(f"model_list: [{{model_name: a, {entry}}}]\n")).models
    assert [(each.params.organization, each.info.deployment_id) for each in models] == [
        ("one", "main"), ("two", "main-2"),
    ]  # fmt: skip
    empty = write('model_list: [{model_name: a, litellm_params: {model: openai/x, api_key: ""}}]\n')
    assert problems_of(empty) == (
        "gateway.yaml: model_list[0].litellm_params.api_key: expected a string, got an empty one; leave the key out",
    )


def test_a_default_is_stated_by_any_of_its_names(write: Write) -> None:
    settings = settings_of(
        write(
            """
            model_list:
              - {model_name: a, rpm: 3, litellm_params: {model: openai/x, region_name: r, headers: {X-A: mine}}}
              - {model_name: b, litellm_params: {model: openai/x, vertex_ai_project: p, api_base: http://mine}}
            router_settings:
              default_litellm_params:
                {rpm: 9, aws_region_name: other, vertex_project: q, extra_headers: {X-A: default},
                 organization: [one, two]}
            """
        )
    )
    one, two, b = (entry.params for entry in settings.models)
    assert [params.organization for params in (one, two, b)] == ["one", "two", None]
    assert (one.rpm, one.extra_headers) == (3, {"X-A": Secret("mine")})
    assert one.provider_params == {"region_name": Secret("r"), "vertex_project": Secret("q")}
    assert b.provider_params == {"aws_region_name": Secret("other"), "vertex_project": Secret("p")}
    assert (b.rpm, b.extra_headers) == (9, {})
    twice = "model_list: [{model_name: a, litellm_params: {model: openai/x, api_base: http://a, base_url: http://b}}]\n"
    assert problems_of(write(twice)) == (
        "gateway.yaml: model_list[0].litellm_params.base_url: a second name of api_base, which has another value:"
        " write only one of them",
    )


_LIMITS_OF_LITELLM = {
    "top_level": ("guardrails", "policies", "policy_attachments"),
    "litellm_settings": (
        "max_budget", "budget_duration", "max_user_budget", "max_internal_user_budget",
        "default_max_internal_user_budget", "max_end_user_budget", "max_end_user_budget_id", "tag_budget_config",
        "guardrails", "guardrail_name_config_map", "pre_call_rules", "post_call_rules", "vertex_ai_safety_settings",
        "banned_keywords_list", "blocked_user_list", "validate_end_user_id_in_db", "output_parse_pii",
        "cost_margin_config", "cost_discount_config", "a_budget_of_tomorrow",
    ),
    "router_settings": ("provider_budget_config", "guardrail_list", "team_budget_of_tomorrow"),
    "general_settings": ("allowed_ips", "allowed_routes", "enforced_params", "enforce_user_param"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("block", "key"),
    [
        *(
            (f"{key}: [x]" if block == "top_level" else f"{block}: {{{key}: [x]}}",
             key if block == "top_level" else f"{block}.{key}")
            for block, keys in _LIMITS_OF_LITELLM.items() for key in keys
        ),
        ("litellm_settings: {callbacks: [langfuse, presidio]}", "litellm_settings.callbacks"),
        ("litellm_settings: {default_internal_user_params: {user_role: x, max_budget: 0.25}}",
         "litellm_settings.default_internal_user_params.max_budget"),
        ("litellm_settings: {default_internal_user_params: {max_budget: 0}}",
         "litellm_settings.default_internal_user_params.max_budget"),
        ("litellm_settings: {default_team_params: {team_member_budget: 5, models: [a]}}",
         "litellm_settings.default_team_params.team_member_budget"),
        ("litellm_settings: {default_team_settings: [{team_id: x}, {team_id: y, max_budget: 100}]}",
         "litellm_settings.default_team_settings[1].max_budget"),
        ("default_team_settings: [{team_id: y, max_budget: 100}]", "default_team_settings[0].max_budget"),
        ("litellm_settings: {default_key_generate_params: {model_max_budget: {a: {budget_limit: 1}}}}",
         "litellm_settings.default_key_generate_params.model_max_budget"),
        ("litellm_settings: {upperbound_key_generate_params: {duration: 30d, tpm_limit: 1000}}",
         "litellm_settings.upperbound_key_generate_params.tpm_limit"),
        ("agent_list: [{agent_name: x, litellm_params: {max_budget_per_session: 2}}]",
         "agent_list[0].litellm_params.max_budget_per_session"),
        ("router_settings: {default_litellm_params: {max_budget: 2}}",
         "router_settings.default_litellm_params.max_budget"),
        ("general_settings: {service_account_settings: {enforced_params: [user]}}",
         "general_settings.service_account_settings.enforced_params"),
    ],
)  # fmt: skip
def test_a_key_that_protects_money_or_safety_cannot_be_ignored(write: Write, block: str, key: str) -> None:
    (problem,) = problems_of(write(f"{MINIMAL}{block}\n"))
    unknown = "unknown key that looks like a limit; " if key.endswith("tomorrow") else "cannot be ignored: "
    assert problem.startswith(f"gateway.yaml: {key}: {unknown}")


@pytest.mark.parametrize(
    "block",
    [
        "litellm_settings: {default_internal_user_params: {user_role: x, max_budget: null, models: [a]}}",
        "litellm_settings: {default_key_generate_params: {guardrails: [], duration: 30d}, max_budget: 0}",
        "litellm_settings: {default_key_max_budget_alert_emails: {default: [a@b.example]}, max_ui_session_budget: 10}",
        "litellm_settings: {default_soft_budget: 50, block_requests_for_models_without_pricing: true}",
        "general_settings: {alerting_args: {budget_alert_ttl: 60}, fail_closed_budget_enforcement: true}",
        "router_settings: {optional_pre_call_checks: [router_budget_limiting]}",
    ],
)
def test_alerts_and_limits_that_are_off_can_be_ignored(write: Write, block: str) -> None:
    assert settings_of(write(f"{MINIMAL}{block}\n")).warnings


def test_litellm_s_parallel_requests_of_a_key_are_the_limit_of_every_key(write: Write) -> None:
    for block, parallel in (
        ("{max_parallel_requests: 4}", 4),
        ("{max_parallel_requests: 4, key_limits: {rpm: 9, parallel: 2}}", 2),
        ("{max_parallel_requests: 0}", None),
    ):
        settings = settings_of(write(f"{MINIMAL}general_settings: {block}\n"))
        assert settings.general.key_limits.parallel == parallel
        assert settings.warnings == ()


def test_nothing_that_litellm_keeps_to_itself_reaches_a_provider(write: Write) -> None:
    kept = importlib.import_module("litellm.types.utils").all_litellm_params
    types = importlib.import_module("litellm.types.router")
    built = importlib.import_module("litellm.litellm_core_utils.get_litellm_params").get_litellm_params
    names = {*kept, *inspect.signature(built).parameters, *types.ModelInfo.model_fields}
    folder = Path(inspect.getfile(types)).parents[1]
    taken = re.findall(r'kwargs\.pop\("([a-z_]+)"', (folder / "router.py").read_text())
    gated = (folder / "proxy/route_llm_request.py").read_text().partition("GATED_MOCK_PARAM_NAMES")[2]
    mocked = re.findall(r'"([a-z_]+)"', gated.partition("\n)")[0])
    assert {"mock_testing_fallbacks", "mock_delay"} <= {*mocked}
    names |= {*taken, *mocked} - KNOWN_FIELDS
    names |= {*types.GenericLiteLLMParams.model_fields, "mode", "supports_vision", "max_output_tokens", "tier"}
    names |= {"health_check_model", "health_check_timeout", "health_check_params_of_tomorrow", "_some_mark"}
    priced = {name for name in names if "cost" in name or "pricing" in name}
    names -= {"model", "api_base", "litellm_credential_name", "extra_body", *priced}
    assert len(names) > 250
    for name in sorted(names - litellm_keys.REQUEST_PARAMETERS):
        path = write(f"model_list: [{{model_name: a, litellm_params: {{model: openai/x, {name}: 3}}}}]\n")
        draft = read_settings(path, {})
        sent = {key for entry in draft.settings.models for key in entry.params.request_defaults}
        assert not sent - {"max_tokens"}, name


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("temperature: hot", 'temperature: expected a number from 0 to 2, got "hot"'),
        ("temperature: 3", "temperature: expected a number from 0 to 2, got 3"),
        ("top_p: [0.1]", "top_p: expected a number from 0 to 1, got a list"),
        ("stop: 5", "stop: expected a string or a list of at most 1024 strings, got 5"),
        ("stop: [1, 2]", "stop: expected a string or a list of at most 1024 strings"),
        ("logit_bias: {100: 500}", "logit_bias: expected an object of numbers from -100 to 100"),
        ("logit_bias: [5]", "logit_bias: expected an object of numbers from -100 to 100, got a list"),
        (
            "response_format: text",
            "response_format: expected an object whose type is one of grammar, json, json_object, json_schema, regex, "
            'structural_tag, text, got "text"',
        ),
        (
            "response_format: {}",
            "response_format.type: expected one of grammar, json, json_object, json_schema, regex, "
            "structural_tag, text",
        ),
        ("parallel_tool_calls: maybe", 'parallel_tool_calls: expected true or false, got "maybe"'),
        ("top_k: many", 'top_k: expected an integer from -1 to 2147483648, got "many"'),
        (
            "thinking: {type: enabled, budget_tokens: lots}",
            'thinking.budget_tokens: expected an integer from 0 to 10000000, got "lots"',
        ),
        ("reasoning_effort: {effort: [high]}", "reasoning_effort: expected a string, got a mapping"),
        (
            "chat_template_kwargs: {of: {a: 1}}",
            "chat_template_kwargs[...]: expected a string or a number or true or false or a list",
        ),
        ("temperature: os.environ/HEAT", 'temperature: expected a number from 0 to 2, got "hot"'),
    ],
)
def test_a_request_parameter_of_a_wrong_type_is_a_problem_with_its_place(
    write: Write, written: str, problem: str
) -> None:
    path = write(f"model_list: [{{model_name: a, litellm_params: {{model: openai/x, {written}}}}}]")
    assert problems_of(path, {"HEAT": "hot"}) == (f"gateway.yaml: model_list[0].litellm_params.{problem}",)


def test_request_parameters_may_be_written_as_litellm_takes_them(write: Write) -> None:
    written = (
        "temperature: '0.7', top_p: os.environ/SHARE, seed: '7', store: 'true', stop: [a, b], user: '7', "
        "logit_bias: {50256: -100}, reasoning_effort: {effort: high, summary: auto}, of_another_kind: [1], "
        "thinking: {type: enabled, budget_tokens: '1024'}, options: {num_gpu: 1, of_tomorrow: 2}"
    )
    path = write(f"model_list: [{{model_name: a, litellm_params: {{model: openai/x, {written}}}}}]")
    settings = settings_of(path, {"SHARE": "0.5"})
    [entry] = settings.models
    named = [warning.split(": ")[1].removeprefix("model_list[0].litellm_params.") for warning in settings.warnings]
    assert named == ["of_another_kind", "options.of_tomorrow"]
    assert entry.params.request_defaults == {
        "temperature": 0.7, "top_p": 0.5, "seed": 7, "store": True, "stop": ["a", "b"], "user": "7",
        "logit_bias": {"50256": -100}, "reasoning_effort": {"effort": "high", "summary": "auto"},
        "of_another_kind": [1], "thinking": {"type": "enabled", "budget_tokens": 1024}, "options": {"num_gpu": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "warned"), [("openai/x", True), ("gpt-4o", True), ("azure/x", False), ("watsonx/x", False)]
)
def test_an_api_version_that_no_address_carries_is_named(write: Write, model: str, warned: bool) -> None:
    params = f"{{model: {model}, api_base: 'http://h', api_version: '2024-02-01'}}"
    found = settings_of(write(f"model_list: [{{model_name: a, litellm_params: {params}}}]")).warnings
    expected = "gateway.yaml: model_list[0].litellm_params.api_version: not sent: only the addresses of"
    assert any(warning.startswith(expected) for warning in found) is warned


def test_a_description_of_the_model_among_its_parameters_is_named(write: Write) -> None:
    params = "{model: openai/x, mode: chat, health_check_model: openai/y, supports_vision: true, team_id: t}"
    draft = read_settings(write(f"model_list: [{{model_name: a, litellm_params: {params}}}]\n"), {})
    why = "not a parameter of a request: it belongs under model_info; it is ignored"
    assert list(draft.settings.warnings) == [
        f"gateway.yaml: model_list[0].litellm_params.{key}: {why}"
        for key in ("mode", "health_check_model", "supports_vision")
    ]
    assert list(draft.problems) == [
        "gateway.yaml: model_list[0].litellm_params.team_id: cannot be ignored: it belongs under model_info"
    ]


def test_what_would_change_the_price_of_a_request_is_no_default(write: Write) -> None:
    path = write(
        """
        model_list:
          - model_name: a
            litellm_params: {model: openai/gpt-4o-mini, n: 4, max_budget: 10, extra_body: {models: [openai/o1]}}
            model_info: {input_cost_per_tokn: 0.000001, tiered_pricing: [{range: [0, 1000]}], blocked: true}
        """
    )
    assert [problem.split(": ")[1] for problem in problems_of(path)] == [
        "model_list[0].model_info.input_cost_per_tokn", "model_list[0].model_info.tiered_pricing",
        "model_list[0].litellm_params.extra_body.models", "model_list[0].litellm_params.n",
        "model_list[0].litellm_params.max_budget", "model_list[0].model_info.blocked",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ("{max_tokens: 9000}", "max_tokens"),
        ("{max_completion_tokens: 9000}", "max_completion_tokens"),
        ("{max_new_tokens: 9000, top_k: 4}", "max_new_tokens"),
        ("{options: {num_ctx: 4096, num_predict: -1}}", "options.num_predict"),
        ("{generationConfig: {maxOutputTokens: 65536}}", "generationConfig.maxOutputTokens"),
        ("{inferenceConfig: {maxTokens: 9000}}", "inferenceConfig.maxTokens"),
    ],
)
def test_extra_body_cannot_lift_the_limit_for_which_money_is_held(write: Write, body: str, path: str) -> None:
    params = "{model: openai/x, api_base: 'http://h/v1', extra_body: %s}"
    (problem,) = problems_of(write(f"model_list: [{{model_name: a, litellm_params: {params % body}}}]\n"))
    assert problem == (
        f"gateway.yaml: model_list[0].litellm_params.extra_body.{path}: would exceed what is reserved for an answer: "
        "write litellm_params.max_tokens instead"
    )


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("extra_body: {service_tier: priority}", "extra_body.service_tier"),
        ("extra_body: {serviceTier: auto}", "extra_body.serviceTier"),
        ("serviceTier: priority", "serviceTier"),
        ("extra_body: {requestMetadata: {serviceTier: {type: priority}}}", "extra_body.requestMetadata.serviceTier"),
        ("performanceConfig: {latency: optimized}", "performanceConfig"),
        ("extra_body: {speed: fast}", "extra_body.speed"),
        ("extra_body: {n: 3}", "extra_body.n"),
        ("extra_body: {generationConfig: {candidateCount: 3}}", "extra_body.generationConfig.candidateCount"),
        ("generationConfig: {responseModalities: [IMAGE]}", "generationConfig.responseModalities"),
        ("extra_body: {modalities: [audio]}", "extra_body.modalities"),
        ("extra_body: {enable_search: true}", "extra_body.enable_search"),
        ("extra_body: {web_search_options: {search_context_size: low}}", "extra_body.web_search_options"),
        ("extra_body: {web_search_options: {}}", "extra_body.web_search_options"),
        ("extra_body: {search_parameters: {}}", "extra_body.search_parameters"),
        ("extra_body: {config: {tools: [{googleSearch: {}}]}}", "extra_body.config.tools"),
        ("extra_body: {requests: [{}, {googleSearch: {}}]}", "extra_body.requests[1].googleSearch"),
        ("requests: [{generationConfig: {maxOutputTokens: 9}}]", "requests[0].generationConfig.maxOutputTokens"),
        ("extra_body: {model: ''}", "extra_body.model"),
        ("extra_body: {model: an-expensive-one}", "extra_body.model"),
        ("extra_body: {messages: [{role: system, content: long}]}", "extra_body.messages"),
        ("system: [{type: text, text: long}]", "system"),
        ("extra_body: {mcp_servers: [{url: 'https://h'}]}", "extra_body.mcp_servers"),
        ("options: {num_predict: -1}", "options.num_predict"),
    ],
)
def test_no_default_makes_a_bill_higher_than_its_hold(write: Write, written: str, path: str) -> None:
    (problem,) = problems_of(
        write(f"model_list: [{{model_name: a, litellm_params: {{model: openai/x, {written}}}}}]\n")
    )
    assert problem.startswith(f"gateway.yaml: model_list[0].litellm_params.{path}: ")


@pytest.mark.parametrize(
    "name",
    [
        "X-Amzn-Bedrock-Service-Tier", "X-Amzn-Bedrock-PerformanceConfig-Latency", "X-Vertex-AI-LLM-Request-Type",
        "X-Vertex-AI-LLM-Shared-Request-Type",
    ],
)  # fmt: skip
def test_no_header_chooses_a_service_tier(write: Write, name: str) -> None:
    params = f"{{model: openai/x, extra_headers: {{{name}: priority}}}}"
    (problem,) = problems_of(write(f"model_list: [{{model_name: a, litellm_params: {params}}}]\n"))
    assert problem.startswith(f"gateway.yaml: model_list[0].litellm_params.extra_headers.{name}: cannot be a default")


@pytest.mark.parametrize(
    "body",
    [
        {"service_tier": "default", "chat_template_kwargs": {"documents": ["a"]}, "repetition_penalty": 1.1, "n": None},
        {"n": 1, "modalities": ["text"], "speed": "standard", "tools": [], "enable_search": False},
        {"generationConfig": {"candidateCount": 1, "responseModalities": ["TEXT"]}},
        {"performanceConfig": {"latency": "standard"}, "serviceTier": {"type": "default"}},
        {"guided_json": {"properties": {"tools": {"type": "array"}, "max_tokens": {"type": "integer"}}}},
    ],
)
def test_a_default_that_changes_no_price_is_sent(write: Write, body: dict[str, Any]) -> None:
    params = {"model": "openai/x", "extra_body": body}
    settings = settings_of(write(yaml.safe_dump({"model_list": [{"model_name": "a", "litellm_params": params}]})))
    assert settings.models[0].params.request_defaults == {"extra_body": body}


@pytest.mark.parametrize("written", ["n: 1", "modalities: [text]", "speed: standard", "messages: []"])
def test_a_default_that_is_never_sent_is_a_warning(write: Write, written: str) -> None:
    settings = settings_of(write(f"model_list: [{{model_name: a, litellm_params: {{model: openai/x, {written}}}}}]\n"))
    (warning,) = settings.warnings
    assert warning.startswith(f"gateway.yaml: model_list[0].litellm_params.{written.partition(':')[0]}: ")
    assert warning.endswith("it is ignored")
    assert settings.models[0].params.request_defaults == {}


def test_a_wildcard_and_a_router_of_litellm_s_are_no_models(write: Write) -> None:
    path = write(MINIMAL + "  - {model_name: 'openai/*', litellm_params: {model: 'openai/*'}}\n")
    (problem,) = problems_of(path)
    assert problem.startswith('gateway.yaml: model_list[1].model_name: "openai/*" is a wildcard: write one entry')
    path = write(MINIMAL + "  - {model_name: smart, litellm_params: {model: auto_router/x}}\n")
    settings = settings_of(path)
    assert [entry.model_name for entry in settings.models] == ["small"]
    assert "model_list[1].model_name: a router of LiteLLM; it is ignored" in settings.warnings[0]


def test_a_value_that_yaml_makes_endless_is_refused(write: Write) -> None:
    path = write("model_list: [{model_name: a, litellm_params: {model: x, extra_body: &a {b: *a}}}]\n")
    (problem,) = problems_of(path)
    assert problem.startswith("gateway.yaml: model_list[0].litellm_params.extra_body: expected JSON of at most")


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir"])
def test_a_tag_that_would_run_code_is_a_problem_and_runs_nothing(write: Write, tmp_path: Path, tag: str) -> None:
    made = tmp_path / "made"
    (problem,) = problems_of(write(MINIMAL + f"general_settings: !!python/{tag} [{made}]\n"))
    assert "could not determine a constructor for the tag" in problem
    assert not made.exists()


def test_a_price_per_million_tokens_is_taken_for_the_slip_that_it_is(write: Write) -> None:
    path = write(
        """
        model_list:
          - model_name: a
            litellm_params: {model: openai/x}
            model_info: {input_cost_per_token: 3, output_cost_per_token: 0.000015}
        """
    )
    assert problems_of(path) == (
        "gateway.yaml: model_list[0].model_info.input_cost_per_token: expected USD per token, at most 0.01, got 3"
        " (USD per million tokens? then 0.000003)",
    )


@pytest.mark.parametrize(
    "key",
    ["sk-1234", "sk-short", "notsk-Zq8rT2mLw5Vn9Kc3Xb7", "sk-change-me-please-change-me",
     "sk-aaaaaaaaaaaaaaaaaaaaaaaaaa", "sk-1234567890123456789012345", "sk-your-master-key-goes-here",
     "sk-Zq8rT2 mLw5Vn9Kc3Xb7Hd1"],
)  # fmt: skip
def test_a_weak_master_key_stops_the_start_and_is_not_repeated(write: Write, key: str) -> None:
    path = write(MINIMAL + f"general_settings: {{master_key: '{key}'}}\n")
    (problem,) = problems_of(path)
    assert problem.startswith("gateway.yaml: general_settings.master_key: expected ")
    assert key not in problem


def test_a_strong_master_key_is_accepted() -> None:
    assert weakness_of_master_key(MASTER_KEY) is None


def test_secrets_do_not_show_themselves(write: Write) -> None:
    path = write(
        f"""
        model_list:
          - model_name: a
            litellm_params: {{model: openai/x, api_key: sk-visible, extra_headers: {{X-Key: visible-too}},
                              aws_secret_access_key: visible-as-well}}
        general_settings: {{master_key: {MASTER_KEY}, database_url: "postgresql://u:visible@h/d"}}
        """
    )
    settings = settings_of(path)
    assert "visible" not in repr(settings)
    assert MASTER_KEY not in repr(settings)
    assert "visible" not in str(settings.general.database_url)
    assert settings.models[0].params.api_key == Secret("sk-visible")


def test_environment_variables_win_over_the_file(write: Write) -> None:
    path = write(MINIMAL + "general_settings: {hold_ttl_seconds: 100, sweep_seconds: 9, drain_seconds: 8}\n")
    settings = settings_of(
        path,
        {
            "SEQROUTE_HOLD_TTL_SECONDS": "2.5",
            "SEQROUTE_SWEEP_SECONDS": "0.5",
            "SEQROUTE_UPSTREAM_IDLE_SECONDS": "3",
            "SEQROUTE_MASTER_KEY": MASTER_KEY,
            "SEQROUTE_DATABASE_URL": "postgres://u@h/d",
        },
    )
    timings = settings.timings
    assert (timings.hold_ttl_s, timings.sweep_s, timings.drain_s, timings.upstream_idle_s) == (2.5, 0.5, 8.0, 3.0)
    assert settings.general == GeneralSettings(Secret(MASTER_KEY), Secret("postgresql://u@h/d"))


def test_a_bad_environment_variable_is_named_itself(write: Write) -> None:
    assert problems_of(write(MINIMAL), {"SEQROUTE_DRAIN_SECONDS": "soon", "SEQROUTE_MASTER_KEY": "sk-1234"}) == (
        f"SEQROUTE_MASTER_KEY: expected a secret key, got a well-known or placeholder one; {REMEDY}",
        'SEQROUTE_DRAIN_SECONDS: expected a number, got "soon"',
    )


def test_included_files_are_joined_and_their_problems_carry_their_names(write: Write) -> None:
    write("model_list:\n  - model_name: two\n    litellm_params: {model: openai/x, rpmm: 1}\n", "models.yaml")
    path = write("include: [models.yaml]\n" + MINIMAL)
    assert problems_of(path) == ('models.yaml: model_list[0].litellm_params.rpmm: unknown key, did you mean "rpm"?',)
    write("model_list:\n  - model_name: two\n    litellm_params: {model: openai/x}\n", "models.yaml")
    settings = settings_of(path)
    assert [entry.model_name for entry in settings.models] == ["small", "two"]
    assert [file.name for file in settings.files] == ["gateway.yaml", "models.yaml"]


def test_a_key_in_two_files_is_refused(write: Write) -> None:
    write("router_settings: {num_retries: 1}\n", "more.yaml")
    path = write("include: [more.yaml, missing.yaml]\nrouter_settings: {num_retries: 2}\n" + MINIMAL)
    assert problems_of(path) == (
        "more.yaml: router_settings.num_retries: already set at gateway.yaml: router_settings.num_retries",
        "missing.yaml: expected a readable file, got: No such file or directory",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "gateway.yaml: line 1, column 5: expected the node content, but found '<stream end>'"),
        ("- a", "gateway.yaml: expected a mapping, got a list"),
        ("model_list: 5", "gateway.yaml: model_list: expected a list, got 5"),
        ("model_list: []", "gateway.yaml: model_list: expected at least one model"),
        ("", "gateway.yaml: model_list: expected at least one model, got nothing"),
        ("router_settings: {}\nrouter_settings: {}", "gateway.yaml: line 2, column 1: duplicate key 'router_settings'"),
    ],
)
def test_a_file_that_is_no_configuration_says_where(write: Write, text: str, problem: str) -> None:
    assert problem in problems_of(write(text))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none.yaml") == (
        f"{tmp_path}/none.yaml: expected a configuration file, found none; `seqroute init` writes one",
    )


@pytest.mark.parametrize("name", ["auto", "auto@cheap"])
def test_the_policy_s_own_names_cannot_be_taken(write: Write, name: str) -> None:
    path = write(MINIMAL + f"  - model_name: {name}\n    litellm_params: {{model: openai/x}}\n")
    assert problems_of(path) == (
        f'gateway.yaml: model_list[1].model_name: "{name}" is reserved: it lets the policy choose',
    )


def test_fallbacks_and_aliases_must_name_models(write: Write) -> None:
    path = write(
        MINIMAL
        + """
router_settings:
  fallbacks: [{small: [large]}, {"*": [small]}]
  model_group_alias: {small: small, other: nowhere}
"""
    )
    assert problems_of(path) == (
        'gateway.yaml: router_settings.model_group_alias.small: "small" is already in use: choose another alias',
        'gateway.yaml: router_settings.model_group_alias.other: expected a model of model_list, got "nowhere"',
        'gateway.yaml: router_settings.fallbacks: expected models of model_list, got "large"',
    )


def test_fallbacks_may_be_written_as_their_model_with_messages(write: Write) -> None:
    path = write(
        MINIMAL
        + """
router_settings:
  fallbacks: [{small: [{model: small, messages: [{role: user, content: hi}]}]}, {model: small, messages: []}]
  context_window_fallbacks: [small]
  default_fallbacks: [{model: small}]
"""
    )
    settings = settings_of(path)
    assert settings.router.fallbacks == {"small": ("small",), "*": ("small",)}
    assert settings.router.context_window_fallbacks == {"*": ("small",)}
    assert settings.router.default_fallbacks == ("small",)
    ignored = "a fallback is sent the request as it is; it is ignored"
    assert settings.warnings == (
        f"gateway.yaml: router_settings.fallbacks[0].small[0].messages: {ignored}",
        f"gateway.yaml: router_settings.fallbacks[1].messages: {ignored}",
    )


def test_a_retry_policy_is_read_and_says_what_is_never_repeated(write: Write) -> None:
    policy = (
        "{RateLimitErrorRetries: 4, AuthenticationErrorRetries: 0, TimeoutErrorRetries: 3, BadRequestErrorRetries: 0}"
    )
    settings = settings_of(write(MINIMAL + f"router_settings: {{retry_policy: {policy}}}\n"))
    assert settings.router.retry_policy == {"RateLimitErrorRetries": 4, "AuthenticationErrorRetries": 0}
    assert settings.warnings == (
        "gateway.yaml: router_settings.retry_policy.TimeoutErrorRetries: a call that may have been billed is not "
        "repeated; it is ignored",
    )


@pytest.mark.parametrize(
    "url", ["sqlite:///", "sqlite://", "sqlite:///:memory:", "mysql://h/d", "postgresql://h", "postgresql://h:port/d"]
)
def test_a_database_that_cannot_keep_money_is_refused_without_its_password(write: Write, url: str) -> None:
    path = write(MINIMAL + f"general_settings: {{database_url: '{url}'}}\n")
    (problem,) = problems_of(path)
    assert problem.startswith("gateway.yaml: general_settings.database_url: expected sqlite:///FILE")
    with pytest.raises(SettingsError):
        read_database_url(path, {})


def test_files_are_found_from_the_configuration_s_folder(write: Write, tmp_path: Path) -> None:
    path = write(MINIMAL + "policy_settings: {directory: learned}\n")
    settings = settings_of(path)
    assert settings.general.database_url == Secret(f"sqlite:///{tmp_path}/seqroute.db")
    assert settings.policy.directory == tmp_path / "learned"
    assert read_database_url(path, {}) == settings.general.database_url


def test_the_database_url_can_be_read_without_the_providers_keys(write: Write, tmp_path: Path) -> None:
    path = write("model_list: [{model_name: a, litellm_params: {model: x, api_key: os.environ/NOT_HERE}}]\n")
    assert read_database_url(path, {}) == Secret(f"sqlite:///{tmp_path}/seqroute.db")


def test_presets_are_those_that_are_named_and_no_others(write: Write) -> None:
    assert settings_of(write(MINIMAL)).policy.lambda_presets == {}
    named = write(MINIMAL + "policy_settings: {lambda_presets: {cheap: 48050.2, balanced: }}\n")
    assert settings_of(named).policy.lambda_presets == {"cheap": 48050.2}
    (problem,) = problems_of(write(MINIMAL + "policy_settings: {lambda_presets: {cheep: 1}}\n"))
    assert problem == 'gateway.yaml: policy_settings.lambda_presets.cheep: unknown key, did you mean "cheap"?'


def test_what_yaml_calls_false_is_the_mode_off(write: Write) -> None:
    assert settings_of(write(MINIMAL + "policy_settings: {mode: off}\n")).policy.mode == "off"
    assert settings_of(write(MINIMAL + "policy_settings: {mode: on}\n")).policy.mode == "on"


def test_sessions_are_budgeted_as_the_file_says(write: Write) -> None:
    path = write(
        MINIMAL
        + """
session_settings: {default_budget_usd: "0.25", max_budget_usd: 2, idle_timeout: 2h, id_headers: X-Chat-Id,
                   over_budget: refuse, max_turns: 40}
"""
    )
    session = settings_of(path).session
    assert (session.default_budget_nanousd, session.max_budget_nanousd) == (250_000_000, 2_000_000_000)
    assert (session.idle_timeout_s, session.id_headers) == (7200.0, ("x-chat-id",))
    assert (session.over_budget, session.max_turns) == ("refuse", 40)


def test_a_default_budget_above_the_maximum_is_refused(write: Write) -> None:
    path = write(MINIMAL + "session_settings: {default_budget_usd: 3, max_budget_usd: 2}\n")
    assert problems_of(path) == ("gateway.yaml: session_settings.default_budget_usd: expected at most max_budget_usd",)


def test_a_draft_keeps_what_could_be_read(write: Write) -> None:
    draft = read_settings(write(MINIMAL + "policy_settings: {canary_fraction: x}\n"), {})
    assert len(draft.problems) == 1
    assert [entry.model_name for entry in draft.settings.models] == ["small"]


def test_an_azure_address_may_bring_its_api_version(write: Write) -> None:
    """As LiteLLM's pages for Azure AI show it."""
    address = "https://x.services.ai.azure.com/models/chat/completions"
    entry = "{model_name: a, litellm_params: {model: azure_ai/x, api_base: '%s?api-version=2024-05-01-preview'%s}}"
    for more, version in (("", "2024-05-01-preview"), (", api_version: v1", "v1")):
        params = settings_of(write(f"model_list: [{entry % (address, more)}]\n")).models[0].params
        assert (params.api_base, params.api_version) == (address, version)
    for model in ("openai/gpt-4o", "azure_ai/x, custom_llm_provider: openai"):
        other = entry.replace("azure_ai/x", model) % (address, "")
        (problem,) = problems_of(write(f"model_list: [{other}]\n"))
        assert "without query" in problem  # another provider would be sent no version


def test_an_address_with_a_query_or_another_scheme_is_refused(write: Write) -> None:
    for address in (
        "ftp://h",
        "https://",
        "https://h/v1?x=1",
        "https://h/#f",
        "http://h:99999",
        "https://h?api-version=1&x=2",
    ):
        path = write(f"model_list: [{{model_name: a, litellm_params: {{model: x, api_base: '{address}'}}}}]\n")
        assert problems_of(path) == (
            "gateway.yaml: model_list[0].litellm_params.api_base: expected http(s)://host[:port][/path]"
            " without query or fragment",
        )


_KEYS = st.sampled_from(
    "model_list model_name litellm_params model_info model api_key api_base rpm weight timeout extra_headers include"
    " credential_list credential_name credential_values litellm_credential_name input_cost_per_token max_tokens mode"
    " supports_vision quality_prior general_settings master_key database_url sweep_seconds router_settings num_retries"
    " fallbacks model_group_alias litellm_settings drop_params session_settings default_budget_usd idle_timeout"
    " id_headers over_budget policy_settings directory canary_fraction nonsense".split()
)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4),
    st.sampled_from(["os.environ/SET", "os.environ/UNSET", "os.environ/", "1e-7", "30m", "auto", "sqlite:///x.db"]),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=8
)
_BLOCKS = st.dictionaries(_KEYS, _VALUES, max_size=6)
_ENTRIES = st.fixed_dictionaries({}, optional={"model_name": _VALUES, "litellm_params": _BLOCKS, "model_info": _BLOCKS})
_DOCUMENTS = st.fixed_dictionaries(
    {"model_list": st.lists(_ENTRIES | _VALUES, max_size=3)},
    optional={
        "general_settings": _BLOCKS, "router_settings": _BLOCKS, "session_settings": _BLOCKS,
        "policy_settings": _BLOCKS, "litellm_settings": _BLOCKS, "credential_list": _VALUES, "include": _VALUES,
        "nonsense": _VALUES,
    },
)  # fmt: skip


@given(document=_DOCUMENTS)
@hypothesis.example(document={"model_list": [], "include": "\0"})
@hypothesis.settings(max_examples=150)
def test_no_file_whatsoever_crashes_the_reader(document: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.yaml"
        path.write_text(yaml.safe_dump(document))
        problems = read_settings(path, {"SET": "value"}).problems
    assert all("\n" not in problem and ": " in problem for problem in problems)


def test_a_text_is_read_with_its_files_and_refused_with_its_key_path(write: Write, tmp_path: Path) -> None:
    assert settings_of(write(MINIMAL)).policy.text == TextSettings("hashed")
    assert settings_of(write(MINIMAL + "policy_settings: {text: static}\n")).policy.text == TextSettings("static")
    (tmp_path / "e.onnx").write_bytes(b"")
    (tmp_path / "t.json").write_text("{}")
    files = "policy_settings: {text: onnx, text_model: e.onnx, text_tokenizer: t.json}\n"
    read = settings_of(write(MINIMAL + files)).policy.text
    assert read == TextSettings("onnx", tmp_path / "e.onnx", tmp_path / "t.json")
    assert problems_of(write(MINIMAL + "policy_settings: {text: onnx, text_model: none.onnx}\n")) == (
        "gateway.yaml: policy_settings.text_model: expected a file of the encoder, got none.onnx",
        "gateway.yaml: policy_settings.text_tokenizer: expected a file of the encoder, got nothing",
    )
    (problem,) = problems_of(write(MINIMAL + "policy_settings: {text: statik}\n"))
    assert problem == (
        'gateway.yaml: policy_settings.text: expected one of hashed, static, onnx, got "statik"; did you mean "static"?'
    )


def test_a_judge_is_read_with_its_rubric_and_refused_with_its_key_path(write: Write, tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("be strict\n")
    path = write(MINIMAL + "policy_settings: {judge: {model: small, sample: 0.5, rubric: rubric.txt}}\n")
    judge = load_settings(path, {}).policy.judge
    assert judge == JudgeSettings("small", 0.5, NANOUSD_PER_USD, "be strict")
    assert load_settings(write(MINIMAL), {}).policy.judge is None
    second = "policy_settings: {judge: {model: small, second_answers: 0.05, second_answers_usd_per_day: 2}}\n"
    judge = load_settings(write(MINIMAL + second), {}).policy.judge
    assert judge is not None
    assert (judge.second_answers, judge.second_budget_nanousd_per_day) == (0.05, 2 * NANOUSD_PER_USD)
    (problem,) = problems_of(write(MINIMAL + "policy_settings: {judge: {model: small, second_answers: 0.2}}\n"))
    assert "judge.second_answers" in problem
    bad = "policy_settings: {judge: {model: nobody, sample: 2, rubric: none.txt}}\n"
    problems = problems_of(write(MINIMAL + bad))
    assert [problem.split(": ")[1] for problem in problems] == [
        "policy_settings.judge.rubric", "policy_settings.judge.sample", "policy_settings.judge.model",
    ]  # fmt: skip
    (problem,) = problems_of(write(MINIMAL + "policy_settings: {judge: {sample: 0.5}}\n"))
    assert "judge.model: expected the model of model_list" in problem


def test_the_cooldown_of_litellm_settings_holds_unless_the_router_has_one(write: Write) -> None:
    litellm = MINIMAL + "litellm_settings: {allowed_fails: 5, cooldown_time: 9}\n"
    assert load_settings(write(litellm), {}).router.cooldown_s == 9.0
    assert load_settings(write(litellm + "router_settings: {cooldown_time: 12}\n"), {}).router.cooldown_s == 12.0
