"""CPU of a turn by issue: `python -m bench.issues now.prof then.prof --loop-us 1022 928`.

The files are cProfile's of `python -m bench.turn --databases sqlite --profile FOLDER`, of this code and of that of 25
November (`git worktree add FOLDER 7f86350`), whose functions are told apart by `THEN`. Each function's own time, with
that of the builtins and libraries which it calls itself, counts for the feature that it was written for; a line of a
feature within an older function counts for the rest, and the database's thread is not profiled. `--loop-us` is what
the loop's thread takes for a turn without the profiler (/proc/PID/task/TID/schedstat): all rows are scaled to it.
"""

from __future__ import annotations

import argparse
import pstats
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.rig.tables import print_table

NOW: tuple[tuple[str, str], ...] = (
    (
        "J: agent sessions",
        r"turn/(stall|stall_rule|notes|wrap_up)\.py"
        r"|turn/turn\.py:(_ordinary_or_last|_reserved|_wraps_up)|turn/(reserve|waiting)\.py:(arriving|company)"
        r"|turn/prepare\.py:(_parent|closing)|turn/headers\.py:(_parent|_share|_switch|_budget_visible)"
        r"|turn/context\.py:(funds_of_accounts|_granted_less|wrapped_up|effort)|turn/funds\.py"
        r"|turn/settle\.py:(_homes|_wrapped_nanousd|_learn)|turn/call\.py:(cache_key|_defaults)"
        r"|routing/session\.py:(home_of|matching_prefix)"
        r"|routing/estimates\.py:(cache_mark|_fresh_femtousd|level_of)"
        r"|catalog/(cache_hits|efforts|service_tiers|web_search|hosted_tools|call_cost)\.py"
        r"|catalog/prices\.py:(of|tier_names)|catalog/usage(_reading|_names)?\.py:(_fold|_tier|with_facts|_with_facts)"
        r"|ledger/(sqlite_trees|records)\.py:(as_parent|chain_of|links_of|attach)|accounts/(trees|remaining)\.py"
        r"|ledger/types\.py:(free_nanousd|kept_from_now_on|spendable_nanousd)|webhooks/",
    ),
    (
        "H: the network decides, quotas",
        r"^policy/(value_|network_policy|catalogue_statistics|fixed_plans|valuetable|fallback|decision|learned|quality"
        r"|kernel|rules|budgeting|exploration)|routing/(router|answers|exploration)\.py|turn/second_draw\.py"
        r"|catalog/answer_length\.py:quantile_of|turn/decide\.py:_answer_tokens",
    ),
    (
        "G: providers, requests, answers, limits",
        r"providers/(parameters|history|inband|decoding|redaction|litellm_|balance|cooldown|waiting|acompletion)"
        r"|providers/(providers|replies|exchange|call|direct|transport)\.py"
        r"|dialects/(repair|usage_report|loose_json|documents|native_forms|older_functions|arguments|schema)"
        r"|catalog/(usage|addresses)\.py|routing/guard\.py|turn/(demand|rate_limits|retry|follow_up|call|fallback)\.py"
        r"|ledger/(rates|sqlite_limits)\.py|config/settings\.py",
    ),
    ("I: dialects", r"dialects/(sealed_state|forwarded|dialect|fields|message_digests)\.py"),
    (
        "K: what people see",
        r"request_ids\.py|logs\.py|decisions/(refused_turns|failures|trainable)\.py|^gateway/metrics",
    ),
    ("L: overload, odd requests", r"api/(admission|places|slots|server|one_response|whole_request|refusals)\.py"),
)
"""Features, by the files or functions that are theirs; the first that matches counts."""
THEN: tuple[tuple[str, str], ...] = (
    ("J: agent sessions", r"gateway/(settling\.py:_learn|sessions\.py:warm_tokens|scene\.py)"),
    ("H: the network decides, quotas", r"^policy/(?!text|features|mdp)|gateway/(router|exploring)\.py"),
    (
        "G: providers, requests, answers, limits",
        r"gateway/(upstream|lanes|wire|pool|chunks|replies|calls|acompletion|arguments|usage|guard|breaker|retrying)\.py"
        r"|gateway/turn\.py:(_reached|_call)",
    ),
    ("K: what people see", r"gateway/health\.py"),
    ("L: overload, odd requests", r"gateway/(admission|protocol)\.py"),
)
"""Their counterparts in the code of 25 November, whose files lay in one folder."""
REST, LIBRARIES = "the rest", "libraries by themselves"
_OWN = re.compile(r".*/((?:gateway|policy)/.*\.py)$")
_TURN = (("chat_of", "dialects/request.py"), ("parse_chat", "gateway/chat.py"))
"""Functions that a turn calls once, in both versions."""
RARE = 0.1
"""Calls a turn below which a function belongs to the start or to the background."""


def us_of(file: Path, features: tuple[tuple[str, str], ...], loop_us: float) -> dict[str, float]:
    """Microseconds a turn by feature, in all `loop_us`, from cProfile's file."""
    statistics: dict[tuple[str, int, str], Any] = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    turns = max(
        v[1] for (path, _, name), v in statistics.items() if any(n == name and path.endswith(p) for n, p in _TURN)
    )
    found: dict[str, float] = defaultdict(float)
    total_s = 0.0
    for (path, _, name), (_, calls, own_s, _, callers) in statistics.items():
        if calls < RARE * turns:
            continue
        total_s += own_s
        if _OWN.match(path):
            found[_feature(path, name, features)] += own_s
            continue
        for (caller, _, calling), (_, calls_here, under_s, _) in callers.items():
            if _OWN.match(caller) and calls_here >= RARE * turns:
                found[_feature(caller, calling, features)] += under_s
    found[LIBRARIES] = total_s - sum(found.values())
    return {feature: own_s / total_s * loop_us for feature, own_s in found.items()}


def _feature(path: str, name: str, features: tuple[tuple[str, str], ...]) -> str:
    own = _OWN.match(path)
    assert own is not None
    where = f"{own[1]}:{name}"
    return next((feature for feature, pattern in features if re.search(pattern, where)), REST)


def main() -> None:
    """Print one row per issue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("now", type=Path, help="cProfile's file of this code")
    parser.add_argument("then", type=Path, help="that of 25 November")
    parser.add_argument(
        "--loop-us", type=float, nargs=2, required=True, help="CPU of the loop's thread a turn, of both"
    )
    options = parser.parse_args()
    now, then = us_of(options.now, NOW, options.loop_us[0]), us_of(options.then, THEN, options.loop_us[1])
    rows = []
    for feature in [*(name for name, _ in NOW), REST, LIBRARIES]:
        before_us, after_us = then.get(feature, 0.0), now.get(feature, 0.0)
        more_us = after_us - before_us
        rows.append(
            [feature, f"{before_us:.0f}", f"{after_us:.0f}", f"{more_us:+.0f}", f"{more_us / sum(then.values()):+.1%}"]
        )
    print_table("the loop's thread, us a turn", ["feature", "then", "now", "more", "of then"], rows)


if __name__ == "__main__":
    main()
