"""The reference pages are complete and true: every setting, command, option and route stands there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.applications import Starlette

from gateway import app as gateway_app
from gateway.api.admission import Admission
from gateway.catalog import build as catalog
from gateway.config import credentials, model_entry, prices
from gateway.config.load import ENVIRONMENT_OVERRIDES
from gateway.config.master_key import with_stored_master_key
from gateway.config.reader import Section
from gateway.database.tables import ledger_entries
from gateway.errors import GatewayError
from gateway.ledger.types import SPENDING_KINDS, Balance, EntryKind
from gateway.metrics import Metrics
from gateway.turn.headers import TurnReport
from tests.harness.reference import commands, pages

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def sections(page: str) -> dict[str, str]:
    """Heading of level 2 or 3 -> the text below it."""
    parts = re.split(r"^##+ (.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def listed_keys(text: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


# Configuration.


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Block -> the keys that the reader asks for, taken down while it reads a file with every block."""
    found: dict[str, set[str]] = {}
    take = Section._take

    def taking(self: Section, key: str) -> Any:
        block = re.sub(r"^[^:]*(: )?", "", self.where)
        block = re.sub(r"\[\d+]", "", block) or "Top level"
        found.setdefault(block, set()).add(key)
        return take(self, key)

    monkeypatch.setattr(Section, "_take", taking)
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "model_list: [{model_name: a, litellm_params: {model: openai/gpt-4o-mini, litellm_credential_name: c}}]\n"
        "credential_list: [{credential_name: c, credential_values: {}}]\n"
    )
    catalog.load(path, {})
    return found


def test_every_setting_is_documented_and_every_documented_setting_is_read(asked: dict[str, set[str]]) -> None:
    page = sections("configuration.md")
    documented = {
        block: listed_keys(page[block])
        for block in ("general_settings", "router_settings", "litellm_settings", "session_settings", "policy_settings",
                      "policy_settings.judge",
                      "model_list", "credential_list")
    }  # fmt: skip
    assert documented == {block: asked[block] for block in documented}
    assert listed_keys(page["Top level"]) == asked["Top level"] | {"include"}


def test_every_key_of_a_deployment_is_documented(asked: dict[str, set[str]]) -> None:
    page = sections("configuration.md")
    params = page["model_list.litellm_params"]
    named = listed_keys(params) | set(re.findall(r"`(\w+)`[,.]", params.partition("Passed to LiteLLM")[2]))
    assert named == asked["model_list.litellm_params"] | credentials.OTHER_NAMES.keys()
    info = listed_keys(page["model_list.model_info"])
    priced = {key for key in info if "cost" in key}
    assert info - priced == asked["model_list.model_info"]
    others = {*prices.UNIT_PRICE_KEYS, *prices.TOOL_PRICE_KEYS, "search_context_cost_per_query"}
    assert all(prices.PRICE_KEY.fullmatch(key) or key in others for key in priced)
    assert set(model_entry.PROVIDER_PARAMS) <= named


def test_every_environment_variable_is_documented() -> None:
    listed = listed_keys(sections("configuration.md")["Environment variables"])
    assert listed == {*ENVIRONMENT_OVERRIDES, "SEQROUTE_CONFIG"}


def test_the_shipped_configuration_needs_no_environment() -> None:
    settings, models = catalog.load(ROOT / "gateway.yaml", {})
    assert settings.warnings == models.warnings == ()
    assert models.chat_models


# Commands and metrics.


def test_the_generated_tables_are_up_to_date() -> None:
    stale = [name for name, text in pages().items() if text != (DOCS / name).read_text()]
    assert stale == [], "run make reference"


# HTTP.


def test_every_route_is_documented(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("model_list: [{model_name: a, litellm_params: {model: openai/gpt-4o-mini}}]\n")
    settings, models = catalog.load(path, {})
    built = gateway_app.build(with_stored_master_key(settings).settings, models)
    assert isinstance(built, Admission)
    assert isinstance(built.app, Starlette)
    served = {
        f"{verb} {re.sub(r'{(w*)[^}]*}', '{}', str(getattr(route, 'path', '')).removeprefix('/v1'))}"
        for route in built.app.routes
        for verb in (getattr(route, "methods", None) or ())
        if verb != "HEAD" and not str(getattr(route, "path", "")).startswith("/ui")  # docs/dashboard.md
    }
    page = (DOCS / "http.md").read_text()
    written = {
        f"{verb} {re.sub(r'{[^}]*}', '{}', where.removeprefix('/v1'))}"
        for verb, where in re.findall(r"^\| `(GET|POST|PATCH|PUT|DELETE) (/[^`]*)` \|", page, flags=re.MULTILINE)
    }
    assert written == served


def test_every_error_code_is_documented_with_its_status_and_every_documented_one_exists() -> None:
    def below(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    raised = {(kind.status, kind.code) for kind in below(GatewayError)}
    table = sections("http.md")["Errors"]
    rows = re.findall(r"^\| (\d{3}) \| ((?:`\w+`(?:, )?)+) \|", table, flags=re.MULTILINE)
    written = {(int(status), code) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert written == raised


HEADERS_OF_OTHERS = {
    "x-amzn-bedrock-input-token-count", "x-amzn-bedrock-output-token-count", "x-amzn-errortype",
    "x-content-type-options", "x-gzip", "x-ms-retry-after-ms",
}  # fmt: skip
"""Headers of every web page, of Azure and of Amazon, and a content coding."""
NOT_READ = {"x-litellm-customer-id"}
"""Named in the manual because it is no session's id."""


def test_every_header_is_documented_and_every_documented_header_exists() -> None:
    """Headers are constants in the code: the request's own, the clients' names of a session, the response's."""
    constants = {
        node.value.lower()
        for path in (ROOT / "gateway").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[xX]-[\w-]+", node.value)
    }
    report = TurnReport(
        "dec", "s", "m", "p", "policy", 1, 1, ("user",), "low", "wrap-up", 1, "reported", Balance(1, 0, 1),
        Balance(1, 0, 1), 1, None, 0, True,
    )  # fmt: skip
    named = {name.removeprefix("x-seqroute-") for name in report.as_headers()}
    table = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \|", sections("http.md")["Response headers"], flags=re.MULTILINE)
    assert {name for cell in table for name in re.findall(r"`([a-z-]+)`", cell)} == named | {"replayed"}

    pages_text = ((DOCS / "http.md").read_text() + (DOCS / "configuration.md").read_text()).lower()
    known = {name for name in constants if not name.startswith("x-seqroute-")} - HEADERS_OF_OTHERS
    assert [name for name in sorted(known) if f"`{name}" not in pages_text] == []
    written = set(re.findall(r"`(x-[a-z-]+)", pages_text)) - NOT_READ
    assert [name for name in sorted(written) if not any(name.startswith(each) for each in constants)] == []


# Metrics.


def test_every_metric_is_written_and_has_bounded_labels() -> None:
    described = {name: each for name, each in vars(Metrics()).items() if name != "registry"}
    code = "\n".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))
    written = r"(?:metrics|target|self)\.{}(?:\.labels\([^)]*\))?\.(?:inc|observe|set|set_function)\b"
    assert [name for name in described if not re.search(written.format(name), code)] == []
    labels = {label for each in described.values() for label in each._labelnames}
    assert labels <= {"model", "status", "code", "lane", "kind", "outcome", "action"}


# All pages.


PAGES = (*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "bench" / "README.md")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()), flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w -]", "", shown).replace(" ", "-"))
    return {anchor + (f"-{before}" if (before := found[:at].count(anchor)) else "") for at, anchor in enumerate(found)}


def test_links_between_pages_lead_to_a_page_and_a_heading_that_exist() -> None:
    broken = []
    for page in PAGES:
        links = re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
        for target, anchor in links:
            aim = page.parent / target if target else page
            if not aim.exists() or (anchor and anchor not in anchors(aim)):
                broken.append(f"{page.relative_to(ROOT)}: {target}#{anchor}")
    assert broken == []


def test_files_named_in_the_pages_exist() -> None:
    """A path may begin at any folder: `routing/guard.py`, or a file's name alone."""
    folders = "bench demo deploy docs examples gateway migrations policy tests train".split()
    files = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    known = {"/".join(parts[at:]) for path in files for parts in [path.relative_to(ROOT).parts] for at in range(9)}
    unknown = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
        for name in re.findall(r"(?<![\w./*{}-])((?:[\w-]+/)*[\w-]+\.(?:py|md|toml|sh|sql|js))(?![\w*/-])", span)
        if name not in known
    ]
    assert unknown == []


FIRST_FILES = {
    "a request or response header": ("gateway/turn/headers.py", "read_turn_headers"),
    "a provider for the direct lane": ("gateway/providers/direct.py", "PLAIN_PROVIDERS"),
    "an API dialect": ("gateway/dialects/dialect.py", "Dialect"),
    "a kind of ledger entry": ("gateway/ledger/types.py", "EntryKind"),
    "a feature of the observation": ("policy/features.py", "CANDIDATE_FEATURES"),
    "a metric": ("gateway/metrics.py", "Metrics"),
    "a command": ("gateway/cli/commands.py", "build"),
    "the reward": ("train/log/reward.py", "Signal"),
    "a rule of the gate": ("train/evaluate/gate.py", "judge"),
    "a settings key": ("gateway/config/settings.py", "SessionSettings"),
    "an admin endpoint": ("gateway/api/admin.py", "Admin"),
    "a baseline of the benchmark": ("train/replay/baselines.py", "families"),
    "how much a turn reserves": ("gateway/routing/estimates.py", "_hold"),
    "a client's header that names the session": ("gateway/routing/session.py", "ALIAS_HEADERS"),
    "what a client is told when money is spent": ("gateway/turn/exhausted.py", "exhausted"),
    "a rate limit": ("gateway/ledger/rates.py", "TurnLimits"),
    "parallel requests, overload": ("gateway/api/admission.py", "Admission"),
    "when a call is retried, and where": ("gateway/turn/retry.py", "next_attempt"),
    "an implicit quality signal": ("gateway/turn/signals.py", "implicit_signals"),
    "a webhook event": ("gateway/webhooks/outbox.py", "WebhookEvent"),
    "a parameter that a provider refuses or spells otherwise": ("gateway/providers/parameters.py", "shaped"),
    "a reason why a model cannot serve a turn": ("gateway/routing/guard.py", "TOO_SMALL"),
    "which logged turns training reads": ("gateway/decisions/trainable.py", "why_not_trained"),
    "what a claim of a signed token means": ("gateway/accounts/jwt.py", "TokenVerifier"),
    "the price of cached or written tokens": ("gateway/catalog/prices.py", "Prices"),
    "a page of the dashboard": ("gateway/ui/pages.py", "Dashboard"),
    "what the judge is asked": ("gateway/turn/judge.py", "Judge"),
    "how long the log is kept": ("train/log/retention.py", "retain"),
    "what a report on spend says": ("gateway/decisions/report.py", "report"),
    "what a prior quality is without a stated one": ("gateway/catalog/build_model.py", "DEFAULT_QUALITY_PRIOR"),
}
"""The usual changes: the file that each begins with, and a name that this file defines."""


def test_the_page_on_architecture_leads_each_usual_change_to_its_file() -> None:
    table = sections("architecture.md")["Where to make a change"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:3] != "|--"]
    found = {row[0]: row[1:] for row in rows if len(row) == 3 and row[0] != "change"}
    assert found.keys() == FIRST_FILES.keys()
    for change, (first, name) in FIRST_FILES.items():
        start, then = (re.findall(r"`([\w.]+(?:/[\w.]*)+)`", cell) for cell in found[change])
        assert start[0] == first, change
        paths = start + then
        assert [path for path in paths if not (ROOT / path).exists()] == [], change
        text = (ROOT / first).read_text()
        assert re.search(rf"^(?:class |def )?{name}\b", text, flags=re.MULTILINE), change


def test_every_kind_of_ledger_entry_is_in_the_table_of_the_database_and_of_the_page() -> None:
    kinds = set(get_args(EntryKind))
    [check] = [c for c in ledger_entries.constraints if c.name == "ledger_entries_kind"]
    assert set(re.findall(r"'(\w+)'", str(check.sqltext))) == kinds  # type: ignore[attr-defined]
    rows = re.findall(r"^\| `(\w+)` \| [a-z]", (DOCS / "budget.md").read_text(), flags=re.MULTILINE)
    assert kinds <= set(rows)
    assert set(SPENDING_KINDS) < kinds


def test_the_index_lists_every_page() -> None:
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"} | {"decisions/README.md"}
    assert set(re.findall(r"\]\(([^)#]+)\)", (DOCS / "README.md").read_text())) == pages


def test_decisions_are_numbered_in_sequence_and_indexed() -> None:
    """A new decision takes the next number, in its file name and in its title."""
    pages = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    assert [path.name[:4] for path in pages] == [f"{number:04d}" for number in range(1, len(pages) + 1)]
    titles = [re.match(r"# (\d+)\. (\S.*)", path.read_text()) for path in pages]
    assert [title and int(title[1]) for title in titles] == list(range(1, len(pages) + 1))
    index = (DOCS / "decisions" / "README.md").read_text()
    rows = [f"| [{title[1]}]({path.name}) | {title[2]} |" for path, title in zip(pages, titles, strict=True) if title]
    assert re.findall(r"^\| \[.*", index, flags=re.MULTILINE) == rows


def test_references_to_decisions_exist() -> None:
    known = {path.name[:4] for path in (DOCS / "decisions").glob("[0-9]*.md")}
    code = [
        path for folder in ("gateway", "policy", "train", "tests", "bench") for path in (ROOT / folder).rglob("*.py")
    ]
    broken = [
        f"{path.relative_to(ROOT)}: {number}"
        for path in code
        for number in re.findall(r"docs/decisions/(\d+)", path.read_text())
        if number not in known
    ]
    assert broken == []


def test_commands_shown_in_the_pages_exist() -> None:
    known = {name.split()[1] for name in commands() if name.startswith("seqroute ")}
    unknown = [
        f"{page.relative_to(ROOT)}: seqroute {word}"
        for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "gateway.yaml"]
        for word in re.findall(r"(?:^\s*|`|\$ )seqroute ([a-z][a-z-]+)", page.read_text(), flags=re.MULTILINE)
        if word not in known
    ]
    assert unknown == []


def test_make_targets_shown_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    unknown = [
        f"{page.relative_to(ROOT)}: make {word}"
        for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
        for word in re.findall(r"(?:^\s+|`|\$ )make ([a-z]+)", page.read_text(), flags=re.MULTILINE)
        if word not in targets
    ]
    assert unknown == []


# Cases from the field.


def test_every_case_from_the_field_has_a_test_or_a_decision() -> None:
    page = DOCS / "field-cases.md"
    rows = [line.strip("|").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    cases = [row for row in rows if row[0].strip() != "what they do"]
    tests = {
        f"{path.relative_to(ROOT / 'tests')}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE)
    }
    wrong = []
    for row in cases:
        named = set(re.findall(r"`([\w/]+\.py::\w+)`", row[-1]))
        decided = re.findall(r"\(decisions/([\w-]+\.md)\)", row[-1])
        wrong += [f"{row[0].strip()}: {name}" for name in sorted(named - tests)]
        wrong += [f"{row[0].strip()}: {name}" for name in decided if not (DOCS / "decisions" / name).exists()]
        if len(row) != 3 or not (named or decided):
            wrong.append(f"{row[0].strip()}: expected a test or a decision in its last column")
    assert wrong == []
    assert len(cases) >= 76
