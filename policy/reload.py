"""Hot reload of the serving policies: verify, warm up, then swap one reference.

The gateway passes in the wanted state of the policies table. A turn reads `slot.lineup` once and keeps it to its end,
so no turn mixes two policies. When a new champion fails to load, the old one stays, or the shipped network
serves if the old one was rejected; a shadow or canary that fails does not serve.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policy.answer_lengths import AnswerLengths
from policy.checkpoint import PARAMS, load
from policy.exploration import GREEDY, Exploration
from policy.fallback import check_decision
from policy.learned import lengths_from, policy_from
from policy.manifest import MANIFEST, CheckpointError
from policy.mdp import COST_LEVELS, CandidateView, Observation, Policy, PolicyFault, SessionView
from policy.rules import LAMBDA_PRESETS, builtin_rules
from policy.text import STATS_DIM, TEXT_DIM, TEXT_VERSION

DEFAULT_RULE = "rule:resolving"
"""The rule that decides when a policy faults."""
PRETRAINED = "pretrained-1"
"""The shipped network, which serves until another policy is published; its folder is next to this module."""
PRETRAINED_FOLDER = Path(__file__).parent / "pretrained" / PRETRAINED
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A policy by id and, when the table has it, its manifest's SHA-256; rules have no folder."""

    policy_id: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class StagedPolicies:
    """The stages of the policies table. Without a champion the shipped network serves."""

    champion: CheckpointRef | None = None
    canary: CheckpointRef | None = None
    shadow: CheckpointRef | None = None
    withdrawn: bool = False
    """The champion that serves was rejected: it does not stay where its successor fails to load."""


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A warmed-up policy with the lambda presets it was calibrated for.

    `lengths` predicts the answers' lengths from the turn; None: only each model's own distribution is known.
    """

    policy: Policy
    reference: CheckpointRef
    lambda_presets: Mapping[str, float]
    lengths: AnswerLengths | None = None


@dataclass(frozen=True, slots=True)
class ServingPolicies:
    """The serving policies by role. Frozen: a turn keeps one instance to its end."""

    champion: LoadedPolicy
    canary: LoadedPolicy | None = None
    shadow: LoadedPolicy | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """Result of a refresh; `problems` has one line for every wanted policy that does not serve."""

    changed: bool
    problems: tuple[str, ...]


class HotSwap:
    """Holder of the serving policies. `refresh` blocks on disk: call it from a thread."""

    def __init__(
        self, directory: Path, exploration: Exploration = GREEDY, text_version: str | None = TEXT_VERSION
    ) -> None:
        self._directory = directory
        self._text_version = text_version
        self._exploration = exploration
        self._rules = {
            policy_id: LoadedPolicy(rule, CheckpointRef(policy_id), LAMBDA_PRESETS)
            for policy_id, rule in builtin_rules(exploration).items()
        }
        self._refreshing = threading.Lock()
        self._refused: dict[CheckpointRef, tuple[object, str]] = {}
        self._shortfall: tuple[str, ...] = ()
        try:
            self._first = pretrained(exploration)
        except CheckpointError as error:  # an incomplete installation must still serve
            self._first, self._shortfall = self.rule, (f"{PRETRAINED}: {error}"[:300],)
        self._lineup = ServingPolicies(self._first)

    @property
    def lineup(self) -> ServingPolicies:
        """The policies that serve now."""
        return self._lineup

    @property
    def rule(self) -> LoadedPolicy:
        """The rule that decides when a policy faults."""
        return self._rules[DEFAULT_RULE]

    def refresh(self, wanted: StagedPolicies) -> Refresh:
        """Replace the serving policies by the wanted ones, as far as they verify and warm up."""
        with self._refreshing:
            now, problems = self._lineup, list(self._shortfall)
            made: dict[str, LoadedPolicy | None] = {}
            for role in ("champion", "canary", "shadow"):
                reference: CheckpointRef | None = getattr(wanted, role)
                try:
                    made[role] = None if reference is None else self._served(reference, now)
                except (CheckpointError, PolicyFault) as error:
                    problems.append(f"{role} {reference.policy_id if reference else ''}: {error}"[:300])
                    made[role] = now.champion if role == "champion" and not wanted.withdrawn else None
            lineup = ServingPolicies(made["champion"] or self._first, made["canary"], made["shadow"])
            changed = lineup != now
            if changed:
                self._lineup = lineup
            return Refresh(changed, tuple(problems))

    def check(self, reference: CheckpointRef) -> None:
        """Load a policy as a refresh does, without serving it. Raises CheckpointError, PolicyFault."""
        with self._refreshing:
            self._served(reference, self._lineup)

    def _served(self, reference: CheckpointRef, now: ServingPolicies) -> LoadedPolicy:
        if reference.policy_id in self._rules:
            return self._rules[reference.policy_id]
        if reference.policy_id == PRETRAINED:
            return self._first
        for served in (now.champion, now.canary, now.shadow):
            if served is not None and served.reference == reference:
                return served
        if not _FOLDER.fullmatch(reference.policy_id):
            raise CheckpointError("expected a policy id of letters, digits, '.', '_' and '-', or a built-in rule's")
        stamp = self._stamp(reference)
        refused = self._refused.get(reference)
        if refused is not None and refused[0] == stamp:
            raise CheckpointError(refused[1])
        try:
            served = self._made(reference)
        except (CheckpointError, PolicyFault) as error:
            self._refused[reference] = (stamp, str(error))
            raise
        self._refused.pop(reference, None)
        return served

    def _made(self, reference: CheckpointRef) -> LoadedPolicy:
        folder = self._directory / reference.policy_id
        loaded = load(folder, sha256=reference.sha256, text_version=self._text_version)
        try:
            policy = policy_from(loaded, self._exploration)
            warm_up(policy)
        except PolicyFault:
            raise
        except Exception as error:  # on any failure to build, the old policy stays
            raise PolicyFault(f"cannot be built from its checkpoint ({type(error).__name__})") from error
        return LoadedPolicy(policy, reference, loaded.recipe.lambda_presets, lengths_from(loaded))

    def _stamp(self, reference: CheckpointRef) -> object:
        """Version stamp of the folder: a refused checkpoint is read again only after it changes.

        It covers the folder and both files, because the manifest of a copy in progress may arrive before the rest.
        """
        folder = self._directory / reference.policy_id
        return tuple(_version(path) for path in (folder, folder / MANIFEST, folder / PARAMS))


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def pretrained(exploration: Exploration = GREEDY) -> LoadedPolicy:
    """Load the shipped network. Raises CheckpointError when the installation is incomplete."""
    loaded = load(PRETRAINED_FOLDER)
    policy = policy_from(loaded, exploration)
    return LoadedPolicy(policy, CheckpointRef(PRETRAINED), loaded.recipe.lambda_presets)


def builtin_policies(exploration: Exploration = GREEDY) -> dict[str, Policy]:
    """Policies that may be promoted by id without a checkpoint: rules and the shipped network."""
    shipped = pretrained(exploration).policy
    return builtin_rules(exploration) | {shipped.policy_id: shipped}


def warm_up(policy: Policy) -> None:
    """Decide a few synthetic turns and check the decisions. Raises PolicyFault."""
    for count in (1, 3, 20):
        observation = synthetic_observation(count)
        for uniform in (0.0, 0.999):
            check_decision(observation, policy.decide(observation, uniform))


def synthetic_observation(count: int) -> Observation:
    """A plausible first turn over `count` candidates whose prices grow threefold."""
    candidates = tuple(
        CandidateView(
            name=f"model-{k}",
            input_usd_per_mtok=0.1 * 1.5**k,
            cached_input_usd_per_mtok=0.01 * 1.5**k,
            output_usd_per_mtok=0.4 * 1.5**k,
            quality_prior=0.5 + 0.4 * k / count,
            context_limit_tokens=128_000,
            input_tokens=400,
            warm_tokens=0,
            output_tokens_mean=250.0,
            cost_quantiles_usd=tuple(1e-4 * 1.5**k * (0.2 + 3.0 * level) for level in COST_LEVELS),
            cost_max_usd=1e-3 * 1.5**k,
            served_last=False,
            failure_rate=0.0,
            latency_s=0.5,
            feasible=True,
        )
        for k in range(count)
    )
    session = SessionView(
        turn=0,
        expected_turns=None,
        budget_usd=1.0,
        remaining_usd=1.0,
        tenant_remaining_usd=100.0,
        spent_usd=0.0,
        tokens_so_far=0,
        failures=0,
        regenerations=0,
        tool_errors=0,
        last_quality=None,
        mean_quality=None,
        last_model=None,
        seconds_since_last=None,
        tool_loop=False,
    )
    text, stats = np.zeros(TEXT_DIM, np.float32), np.zeros(STATS_DIM, np.float32)
    return Observation(text, stats, session, candidates, 1.0)
