"""`seqroute-train import-logs`: a policy and priors from other programs' logs.

Learned: answer lengths and costs (per model), session lengths, and, from scores, the quality of each model by turn. Not
learned, and reported: anything that needs the probability with which a model was chosen. Such logs have none, so
nothing can be evaluated off-policy or promoted: the policy goes on trial as a shadow at most, and its numbers are
printed as priors for gateway.yaml.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gateway.catalog.answer_length import OutputForecast
from gateway.catalog.models import Catalog, Model
from gateway.catalog.prices import Rates
from gateway.database.database import transaction
from gateway.wording import counted
from policy.features import encode
from policy.manifest import Recipe
from policy.mdp import COST_LEVELS, CandidateView, Observation, SessionView
from policy.text import HASHED, TextSpace, embed_conversation, stats
from train.config import TrainConfig
from train.errors import InputError
from train.fit.network import Fitted, fit
from train.fit.presets import calibrate_presets, learn_horizon
from train.fit.tune import as_arrays, predictions_by_turn
from train.log.episodes import Episodes, blank_episodes
from train.log.transcripts import LoggedTurn, read_transcripts
from train.nightly.nightly import MIN_TURNS_TO_FIT
from train.nightly.publish import publish, write_folder

Session = Sequence[tuple[Model, LoggedTurn]]
USD_PER_FEMTOUSD = 1e-15
NOT_LEARNED = (
    "no propensities: probabilities of models are not logged, so no policy can be evaluated off-policy on this file",
    "nothing is promoted: a policy fitted on it goes on trial as a shadow and is judged by the gateway's own log",
)


@dataclass(frozen=True)
class Import:
    """An import's job: the file, its catalogue, and where to publish a policy."""

    file: Path
    catalog: Catalog
    database_url: str
    directory: Path
    now_ms: int
    shadow: bool = False
    space: TextSpace = HASHED


def import_logs(
    job: Import, config: TrainConfig, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Read, fit, and with `shadow` publish on trial. Returns the report. Raises InputError."""
    turns, left_out = read_transcripts(job.file)
    sessions, foreign = by_session(turns, job.catalog)
    left_out.update(foreign)
    known = [turn for session in sessions for turn in session]
    if not known:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(left_out.items()))
        found = f"{counted(left_out.total(), 'record')}, none usable ({reasons})" if reasons else "no records"
        raise InputError(
            f"{job.file}: expected turns of models of the catalogue, found {found}; give each record "
            "`model`, a name or alias of the configuration, and `usage` with prompt_tokens and completion_tokens"
        )
    forecast = OutputForecast()
    for model, turn in sorted(known, key=lambda item: item[1].moment):
        forecast.observe(model.name, turn.output_tokens)
    episodes = compose_episodes(sessions, job.catalog, forecast, job.space)
    graded = int(np.isfinite(episodes.reward).sum())
    report: dict[str, Any] = {
        "file": str(job.file),
        "turns": len(known),
        "sessions": len(sessions),
        "graded_turns": graded,
        "left_out": dict(left_out),
        "models": models_report(known, forecast, config),
        "horizon": {"mean_turns": float(episodes.lengths.mean()) if sessions else None},
        "not_learned": list(NOT_LEARNED),
    }
    if graded < MIN_TURNS_TO_FIT:
        report["policy"] = None
        report["not_learned"].insert(
            0, f"quality by turn: {graded} graded turns with a known model, at least {MIN_TURNS_TO_FIT} are needed"
        )
        return report
    fitted = fit(
        episodes,
        config,
        jax.random.key(config.seed),
        None if progress is None else lambda done, total: progress("fit", done, total),
    )
    report["quality_model"] = quality_report(fitted, episodes)
    report["policy"] = publish_on_trial(
        job, replace(recipe_of(fitted, episodes, report), text_version=job.space.version), fitted
    )
    return report


def by_session(
    turns: Sequence[LoggedTurn], catalog: Catalog
) -> tuple[list[list[tuple[Model, LoggedTurn]]], Counter[str]]:
    """Sessions in order of their start, with each turn's catalogue model; counts unknown models."""
    found: dict[str, list[tuple[Model, LoggedTurn]]] = defaultdict(list)
    foreign: Counter[str] = Counter()
    for turn in sorted(turns, key=lambda turn: turn.moment):
        model = next((m for name in turn.names if (m := find_model(name, catalog)) is not None), None)
        if model is None:
            foreign[f"{turn.names[0]}: not in the catalogue"] += 1
        else:
            found[turn.session].append((model, turn))
    return list(found.values()), foreign


def find_model(name: str, catalog: Catalog) -> Model | None:
    """The catalogue's model for a logged name: by name, alias or a deployment's upstream name."""
    known = catalog.models.get(catalog.aliases.get(name, name))
    if known is not None:
        return known
    bare = name.rpartition("/")[2]
    for model in catalog.models.values():
        if any(name == d.litellm_model or bare == d.litellm_model.rpartition("/")[2] for d in model.deployments):
            return model
    return None


def compose_episodes(
    sessions: Sequence[Sequence[tuple[Model, LoggedTurn]]],
    catalog: Catalog,
    forecast: OutputForecast,
    space: TextSpace = HASHED,
) -> Episodes:
    """The turns as the gateway's observations, with every model of the catalogue a candidate.

    Propensities are unknown and set to 1: nothing that reads them may be run on these episodes.
    """
    models = sorted(catalog.models.values(), key=lambda model: model.name)
    longest = max((len(session) for session in sessions), default=1)
    encoded = [
        [encode(observe(models, session, j, forecast, space)) for j in range(len(session))] for session in sessions
    ]
    first = encoded[0][0] if encoded else None
    sizes = (1, 1) if first is None else (first.state.size, first.candidates.shape[1])
    e = blank_episodes(
        (f"s{i:08d}" for i in range(len(sessions))), ("imported",) * len(sessions),
        tuple(model.name for model in models), ("imported",), (len(sessions), longest, len(models), *sizes),
    )  # fmt: skip
    for i, session in enumerate(sessions):
        for j, (model, turn) in enumerate(session):
            at = encoded[i][j]
            e.valid[i, j] = True
            e.state[i, j], e.candidates[i, j] = at.state, at.candidates
            e.cost_quantiles_usd[i, j] = at.cost_quantiles_usd
            e.mask[i, j] = e.offered[i, j] = True
            e.model[i, j] = np.arange(len(models))
            e.prior_quality[i, j] = [m.quality_prior for m in models]
            e.action[i, j] = models.index(model)
            e.reward[i, j] = np.nan if turn.score is None else turn.score
            e.cost_usd[i, j] = bill_usd(model, turn)
            e.budget_usd[i, j] = e.remaining_usd[i, j] = 1.0
    return e


def observe(
    models: Sequence[Model], session: Session, j: int, forecast: OutputForecast, space: TextSpace
) -> Observation:
    """Turn j as an observation; what the log lacks (cache, health, feedback so far) is neutral."""
    turn = session[j][1]
    last = session[j - 1][0].name if j else None
    candidates = tuple(candidate(model, turn, forecast, model.name == last) for model in models)
    so_far = sum(earlier.prompt_tokens + earlier.output_tokens for _, earlier in session[:j])
    view = SessionView(
        turn=j, expected_turns=None, budget_usd=1.0, remaining_usd=1.0, tenant_remaining_usd=1.0, spent_usd=0.0,
        tokens_so_far=so_far, failures=0, regenerations=0, tool_errors=0, last_quality=None, mean_quality=None,
        last_model=last, seconds_since_last=None if j == 0 else 30.0, tool_loop=False,
    )  # fmt: skip
    newest = turn.user_texts[-1] if turn.user_texts else ""
    return Observation(
        text=embed_conversation(turn.user_texts, space.embed),
        text_stats=stats(
            newest,
            history_chars=turn.history_chars,
            tools=turn.tools,
            images=turn.images,
            json_output=turn.json_output,
        ),
        session=view,
        candidates=candidates,
        lambda_per_usd=0.0,
    )


def candidate(model: Model, turn: LoggedTurn, forecast: OutputForecast, served_last: bool) -> CandidateView:
    """The candidate's view of a turn, with costs at the catalogue's prices."""
    rates = model.prices.at(turn.prompt_tokens)
    lengths = forecast.quantiles(model.name, model.max_output_tokens)
    costs = tuple(cost_usd(rates, turn.prompt_tokens, tokens) for tokens in lengths)
    return CandidateView(
        name=model.name,
        input_usd_per_mtok=rates.input_femtousd * 1e-9,
        cached_input_usd_per_mtok=rates.cached_input_femtousd * 1e-9,
        output_usd_per_mtok=rates.output_femtousd * 1e-9,
        quality_prior=model.quality_prior,
        context_limit_tokens=model.max_input_tokens,
        input_tokens=turn.prompt_tokens,
        warm_tokens=0,
        output_tokens_mean=float(np.mean(lengths)),
        cost_quantiles_usd=costs,
        cost_max_usd=costs[-1],
        served_last=served_last,
        failure_rate=0.0,
        latency_s=1.0,
        feasible=True,
    )


def cost_usd(rates: Rates, prompt_tokens: float, output_tokens: float) -> float:
    """Cost of a turn at these rates."""
    return (prompt_tokens * rates.input_femtousd + output_tokens * rates.output_femtousd) * USD_PER_FEMTOUSD


def bill_usd(model: Model, turn: LoggedTurn) -> float:
    """The logged cost of a turn, else its cost at the catalogue's prices."""
    if turn.cost_usd is not None:
        return turn.cost_usd
    return cost_usd(model.prices.at(turn.prompt_tokens), turn.prompt_tokens, turn.output_tokens)


def models_report(
    turns: Sequence[tuple[Model, LoggedTurn]], forecast: OutputForecast, config: TrainConfig
) -> dict[str, Any]:
    """Turns, bills, answer lengths and, with scores, a quality prior for `model_info`, by model."""
    mine: dict[str, list[LoggedTurn]] = defaultdict(list)
    models = {model.name: model for model, _ in turns}
    for model, turn in turns:
        mine[model.name].append(turn)
    return {
        name: model_report(models[name], logged, forecast, config.quality.prior_strength)
        for name, logged in sorted(mine.items())
    }


def model_report(
    model: Model, logged: Sequence[LoggedTurn], forecast: OutputForecast, prior_strength: float
) -> dict[str, Any]:
    """Summary of one model.

    The prior is (strength * old prior + sum of scores) / (strength + scores), shrunk like the reward model's means.
    `bill_ratio` is the logged cost over that at the catalogue's prices; null without logged costs.
    """
    scores = [turn.score for turn in logged if turn.score is not None]
    billed = [turn for turn in logged if turn.cost_usd is not None]
    expected = sum(
        cost_usd(model.prices.at(turn.prompt_tokens), turn.prompt_tokens, turn.output_tokens) for turn in billed
    )
    lengths = forecast.quantiles(model.name, model.max_output_tokens)
    return {
        "turns": len(logged),
        "cost_usd": sum(bill_usd(model, turn) for turn in logged),
        "bill_ratio": sum(turn.cost_usd or 0.0 for turn in billed) / expected if expected > 0 else None,
        "output_tokens_median": lengths[COST_LEVELS.index(0.5)],
        "output_tokens_95": lengths[COST_LEVELS.index(0.95)],
        "graded_turns": len(scores),
        "quality_prior": (prior_strength * model.quality_prior + sum(scores)) / (prior_strength + len(scores))
        if scores
        else None,
    }


def quality_report(fitted: Fitted, episodes: Episodes) -> dict[str, Any]:
    """Out-of-fold error of the reward model and, for comparison, of each model's mean."""
    reward = episodes.reward[episodes.valid]
    seen = np.isfinite(reward)
    picked = np.take_along_axis(episodes.model, episodes.action[..., None], axis=-1)[..., 0][episodes.valid]
    of_means = float(np.mean((fitted.quality.means[picked[seen]] - reward[seen]) ** 2))
    return {"out_of_fold_error": fitted.quality.out_of_fold_error, "error_of_means": of_means}


def recipe_of(fitted: Fitted, episodes: Episodes, report: Mapping[str, Any]) -> Recipe:
    """Recipe of the network trained on these turns, with redrawn money and horizons."""
    digest = hashlib.sha256(episodes.digest().encode()).hexdigest()[:12]
    return Recipe(
        policy_id=f"imported-{digest}",
        rule="network",
        lambda_presets=calibrate_presets(episodes, predictions_by_turn(episodes, fitted.grades)),
        horizon=learn_horizon(episodes.lengths),
        average_quality=dict(zip(episodes.models, (float(x) for x in fitted.quality.means), strict=True)),
        sizes=fitted.network.sizes,
        models=episodes.models,
        report={
            "outcome": "imported",
            "reasons": list(NOT_LEARNED),
            **{key: report[key] for key in ("turns", "sessions", "graded_turns")},
        },
    )


def publish_on_trial(job: Import, recipe: Recipe, fitted: Fitted) -> dict[str, Any]:
    """The folder; with `shadow` also the row, on the shadow's stage if it is free."""
    params = fitted.network.parts() | {"quality": fitted.quality.served(recipe.models).arrays()}
    sha256 = write_folder(job.directory, recipe, as_arrays(params))
    done = {"policy_id": recipe.policy_id, "stage": "unpublished", "note": "say --shadow to put it on trial"}
    if job.shadow:
        path = job.directory / recipe.policy_id
        with transaction(job.database_url) as connection:
            put = publish(connection, recipe, path, sha256, recipe.report, stage="shadow", now_ms=job.now_ms)
        done |= {"stage": put.stage, "note": put.note}
    return done


def describe(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    lines = [
        f"{counted(report['turns'], 'turn')} of {counted(report['sessions'], 'session')}, "
        f"{report['graded_turns']:,} graded",
        *(f"left out: {count:,} {reason}" for reason, count in sorted(report["left_out"].items())),
    ]
    for name, found in report["models"].items():
        quality = found["quality_prior"]
        prior = "no score" if quality is None else f"quality_prior: {quality:.3f}"
        lines.append(
            f"{name}: {counted(found['turns'], 'turn')}, {found['cost_usd']:.4f} USD, "
            f"answers of {found['output_tokens_median']:.0f} tokens (95 %: {found['output_tokens_95']:.0f}), {prior}"
        )
    if report["policy"] is not None:
        lines.append(f"policy {report['policy']['policy_id']}: {report['policy']['stage']} {report['policy']['note']}")
    return lines + [f"not learned: {reason}" for reason in report["not_learned"]]
