"""Prometheus metrics of one worker."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from policy.exploration import Price


def _counter(name: str, text: str, *labels: str) -> Any:
    return field(default_factory=lambda: Counter(name, text, labels, registry=None))


def _gauge(name: str, text: str, *labels: str) -> Any:
    return field(default_factory=lambda: Gauge(name, text, labels, registry=None))


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Any:
    return field(default_factory=lambda: Histogram(name, text, labels, registry=None, buckets=buckets))


@dataclass(eq=False)
class Metrics:
    """All metrics in their own registry; no label has a value that a client can choose."""

    turns: Counter = _counter("seqroute_turns_total", "Turns by model and how they ended.", "model", "status")
    turn_seconds: Histogram = _histogram(
        "seqroute_turn_seconds",
        "Turns from request to settlement.",
        buckets=(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    )
    added_seconds: Histogram = _histogram(
        "seqroute_added_seconds",
        "From the look-up of a turn's session to its first call: decision, reservation, waits for held money.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
    )
    refused: Counter = _counter("seqroute_refused_total", "Requests answered with an error, by its code.", "code")
    running: Gauge = _gauge("seqroute_running_requests", "Requests that hold a slot.")
    waiting: Gauge = _gauge("seqroute_waiting_requests", "Requests that wait for a slot.")
    upstream_calls: Counter = _counter(
        "seqroute_upstream_calls_total", "Calls of providers, by the lane they took.", "lane"
    )

    spent: Counter = _counter("seqroute_spent_usd_total", "Settled cost in USD, by model.", "model")
    alarms: Counter = _counter("seqroute_money_alarms_total", "Bills beyond what was held, or beyond belief.", "kind")
    live_holds: Gauge = _gauge("seqroute_live_holds", "Holds of calls under way.")
    unresolved: Gauge = _gauge("seqroute_unposted_bills", "Bills waiting for the database to come back.")
    prompt_tokens: Counter = _counter("seqroute_prompt_tokens_total", "Prompt tokens billed, by model.", "model")
    cached_tokens: Counter = _counter(
        "seqroute_cached_prompt_tokens_total", "Billed prompt tokens read from the provider's cache, by model.", "model"
    )
    price_change: Gauge = _gauge(
        "seqroute_next_price_change_timestamp_seconds",
        "When the next configured prices of a model apply.",
        "model",
    )

    decision_seconds: Histogram = _histogram(
        "seqroute_decision_seconds",
        "Features and policy of one turn, and of those decided with it.",
        buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05),
    )
    policy_faults: Counter = _counter("seqroute_policy_faults_total", "Decisions that fell back to the rule.")
    trials: Counter = _counter(
        "seqroute_policy_trials_total", "Trials of a policy that this replica ended, by what was done.", "action"
    )
    exploration_usd: Counter = _counter(
        "seqroute_exploration_expected_usd_total", "What exploring was expected to cost beyond the best choices."
    )
    exploration_quality: Counter = _counter(
        "seqroute_exploration_expected_quality_total", "Quality that exploring was expected to give up, in points."
    )
    exploration_today: Gauge = _gauge(
        "seqroute_exploration_today_usd", "Expected cost of exploring since midnight UTC, all replicas together."
    )
    exploring: Gauge = _gauge("seqroute_exploring", "1 while the day's exploration budget has anything left.")

    cost_ratio: Histogram = _histogram(
        "seqroute_cost_ratio",
        "Bill of a whole answer over what was predicted for it, by model.",
        "model",
        buckets=(0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2, 4, 8),
    )
    forecast_level: Histogram = _histogram(
        "seqroute_forecast_level",
        "Lowest level of the predicted bills that covers the bill, by model: the share below 0.9 should be 0.9.",
        "model",
        buckets=(0.1, 0.5, 0.9, 0.95, 0.99),
    )
    cached_share: Histogram = _histogram(
        "seqroute_cached_tokens_ratio",
        "Prompt tokens reported as cached over those predicted, by model.",
        "model",
        buckets=(0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2),
    )
    quality_error: Histogram = _histogram(
        "seqroute_quality_error",
        "Score that feedback brought minus the quality predicted for that answer.",
        buckets=(-0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1),
    )

    judged: Counter = _counter("seqroute_judged_total", "Answers drawn for the judge, by what came of it.", "outcome")
    second_answers: Counter = _counter(
        "seqroute_second_answers_total", "Turns drawn for a second model's answer, by what came of it.", "outcome"
    )
    own_turns_queue: Gauge = _gauge(
        "seqroute_own_turns_queue", "Answers that wait for the judge, or for a second model's answer.", "kind"
    )
    webhooks: Counter = _counter(
        "seqroute_webhooks_total", "Webhook messages sent, by what the receiver said.", "outcome"
    )
    webhook_queue: Gauge = _gauge(
        "seqroute_webhook_queue", "Webhook messages that wait to be sent, of all replicas together."
    )

    def __post_init__(self) -> None:
        metrics = list(vars(self).values())
        self.registry = CollectorRegistry()
        for metric in metrics:
            self.registry.register(metric)

    def count_refusal(self, code: str) -> None:
        """Count one error that a client got; only the gateway and a fixed list name codes."""
        self.refused.labels(code).inc()

    def explored(self, paid: Price) -> None:
        """Count the expected cost of one turn's exploration."""
        self.exploration_usd.inc(paid.extra_usd)
        self.exploration_quality.inc(paid.quality)


@dataclass(frozen=True, slots=True)
class OfModel:
    """The metrics of one model that every bill counts in."""

    spent: Counter
    prompt_tokens: Counter
    cached_tokens: Counter
    cost_ratio: Histogram
    forecast_level: Histogram

    @classmethod
    def among(cls, metrics: Metrics, model: str) -> OfModel:
        """Look them up; to be kept, since that takes longer than counting."""
        return cls(*(getattr(metrics, entry.name).labels(model) for entry in fields(cls)))
