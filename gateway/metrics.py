"""Prometheus metrics of one worker."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from policy.exploration import Price


class Metrics:
    """All metrics in their own registry; no label has a value that a client can choose."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.webhooks = Counter(
            "seqroute_webhooks_total", "Webhook messages sent, by what the receiver said.", ("outcome",),
            registry=self.registry,
        )  # fmt: skip
        self.webhook_queue = Gauge(
            "seqroute_webhook_queue", "Webhook messages that wait to be sent, of all replicas together.",
            registry=self.registry,
        )  # fmt: skip
        self.turns = Counter(
            "seqroute_turns_total", "Turns by model and how they ended.", ("model", "status"), registry=self.registry
        )
        self.refused = Counter(
            "seqroute_refused_total", "Requests answered with an error, by its code.", ("code",), registry=self.registry
        )
        self.spent = Counter(
            "seqroute_spent_usd_total", "Settled cost in USD, by model.", ("model",), registry=self.registry
        )
        self.upstream_calls = Counter(
            "seqroute_upstream_calls_total", "Calls of providers, by the lane they took.", ("lane",),
            registry=self.registry,
        )  # fmt: skip
        self.policy_faults = Counter(
            "seqroute_policy_faults_total", "Decisions that fell back to the rule.", registry=self.registry
        )
        self.cost_ratio = Histogram(
            "seqroute_cost_ratio", "Bill of a whole answer over what was predicted for it, by model.", ("model",),
            buckets=(0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2, 4, 8), registry=self.registry,
        )  # fmt: skip
        self.forecast_level = Histogram(
            "seqroute_forecast_level",
            "Lowest level of the predicted bills that covers the bill, by model: the share below 0.9 should be 0.9.",
            ("model",), buckets=(0.1, 0.5, 0.9, 0.95, 0.99), registry=self.registry,
        )  # fmt: skip
        self.cached_share = Histogram(
            "seqroute_cached_tokens_ratio", "Prompt tokens reported as cached over those predicted, by model.",
            ("model",), buckets=(0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2), registry=self.registry,
        )  # fmt: skip
        self.quality_error = Histogram(
            "seqroute_quality_error", "Score that feedback brought minus the quality predicted for that answer.",
            buckets=(-0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1), registry=self.registry,
        )  # fmt: skip
        self.judged = Counter(
            "seqroute_judged_total", "Answers drawn for the judge, by what came of it.", ("outcome",),
            registry=self.registry,
        )  # fmt: skip
        self.second_answers = Counter(
            "seqroute_second_answers_total", "Turns drawn for a second model's answer, by what came of it.",
            ("outcome",), registry=self.registry,
        )  # fmt: skip
        self.own_turns_queue = Gauge(
            "seqroute_own_turns_queue", "Answers that wait for the judge, or for a second model's answer.", ("kind",),
            registry=self.registry,
        )  # fmt: skip
        self.exploration_usd = Counter(
            "seqroute_exploration_expected_usd_total", "What exploring was expected to cost beyond the best choices.",
            registry=self.registry,
        )  # fmt: skip
        self.exploration_quality = Counter(
            "seqroute_exploration_expected_quality_total", "Quality that exploring was expected to give up, in points.",
            registry=self.registry,
        )  # fmt: skip
        self.exploration_today = Gauge(
            "seqroute_exploration_today_usd", "Expected cost of exploring since midnight UTC, all replicas together.",
            registry=self.registry,
        )  # fmt: skip
        self.exploring = Gauge(
            "seqroute_exploring", "1 while the day's exploration budget has anything left.", registry=self.registry
        )
        self.trials = Counter(
            "seqroute_policy_trials_total", "Trials of a policy that this replica ended, by what was done.",
            ("action",), registry=self.registry,
        )  # fmt: skip
        self.alarms = Counter(
            "seqroute_money_alarms_total", "Bills beyond what was held, or beyond belief.", ("kind",),
            registry=self.registry,
        )  # fmt: skip
        self.decision_seconds = Histogram(
            "seqroute_decision_seconds", "Features and policy of one turn, and of those decided with it.",
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05), registry=self.registry,
        )  # fmt: skip
        self.turn_seconds = Histogram(
            "seqroute_turn_seconds", "Turns from request to settlement.",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300), registry=self.registry,
        )  # fmt: skip
        self.added_seconds = Histogram(
            "seqroute_added_seconds",
            "From the look-up of a turn's session to its first call: decision, reservation, waits for held money.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1), registry=self.registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "seqroute_prompt_tokens_total", "Prompt tokens billed, by model.", ("model",), registry=self.registry
        )
        self.cached_tokens = Counter(
            "seqroute_cached_prompt_tokens_total", "Billed prompt tokens read from the provider's cache, by model.",
            ("model",), registry=self.registry,
        )  # fmt: skip
        self.running = Gauge("seqroute_running_requests", "Requests that hold a slot.", registry=self.registry)
        self.waiting = Gauge("seqroute_waiting_requests", "Requests that wait for a slot.", registry=self.registry)
        self.price_change = Gauge(
            "seqroute_next_price_change_timestamp_seconds", "When the next configured prices of a model apply.",
            ("model",), registry=self.registry,
        )  # fmt: skip
        self.live_holds = Gauge("seqroute_live_holds", "Holds of calls under way.", registry=self.registry)
        self.unresolved = Gauge(
            "seqroute_unposted_bills", "Bills waiting for the database to come back.", registry=self.registry
        )

    def count_refusal(self, code: str) -> None:
        """Count one error that a client got; only the gateway and a fixed list name codes."""
        self.refused.labels(code).inc()

    def explored(self, paid: Price) -> None:
        """Count the expected cost of one turn's exploration."""
        self.exploration_usd.inc(paid.extra_usd)
        self.exploration_quality.inc(paid.quality)
