"""`seqroute demo`: sessions through the gateway, a training run, sessions to compare.

1. a simulated provider and a gateway on SQLite start; a tenant and a key are created
2. learning sessions are played under the policy that serves before any training; every answer is graded
3. `seqroute-train nightly` turns that log into a policy, and its gate decides whether it may serve
4. the running gateway loads the new policy
5. new sessions, which training never saw, are played under the new and the previous policy, and with the
   weakest and the strongest model pinned
6. the table, the audit and the bill: every number is read from the database
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo import results
from demo.command_line import OneLineParser
from demo.conversations import Conversation, make_conversation
from demo.models import MODELS
from demo.player import Playbill, Tally, play
from demo.stage import Stage, StageError, StageSettings, command, last_line, run_stage
from gateway.wording import counted

RELOAD_TIMEOUT_S = 60.0
WEAKEST, STRONGEST = MODELS[0].name, MODELS[-1].name


@dataclass(frozen=True, slots=True)
class Options:
    """Command line options; `learn` and `held_out` are numbers of sessions."""

    learn: int
    held_out: int
    turns: int
    budget_usd: float
    seed: int
    parallel: int
    port: int
    latency_scale: float
    exploration: float
    exploration_after: float
    folder: Path
    keep: bool
    training: Path | None


class Narrator:
    """Progress output: a progress bar on a terminal, plain lines in a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line with the elapsed time."""
        after = f"[{time.monotonic() - self._began:6.1f} s]"
        self.console.print(f"{after} {line}", markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar; call the yielded function with the turns completed."""
        if not self.console.is_terminal:
            yield lambda turns: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda turns: bar.advance(task, turns)

    @contextlib.contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """A spinner for work without progress reports."""
        if not self.console.is_terminal:
            yield
            return
        with self.console.status(title):
            yield

    def table(self, sheet: results.Sheet) -> None:
        """Print a table."""
        self.console.print()
        if self.console.is_terminal:
            table = Table(*sheet.header, box=None, header_style="bold", pad_edge=False)
            for line in sheet.lines:
                table.add_row(*line)
            self.console.print(table)
            return
        rows = [sheet.header, *sheet.lines]
        widths = [max(len(row[i]) for row in rows) for i in range(len(sheet.header))]
        for row in rows:
            self.console.print(
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(),
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0, or 1 when any part failed."""
    options = parse(arguments)
    narrator = Narrator(Console())
    # On SIGTERM, stop the provider and the gateway too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    settings = StageSettings(options.folder, options.port, options.seed, options.latency_scale)
    try:
        narrator.say(f"starting a simulated provider and a gateway in {options.folder}")
        with run_stage(settings) as stage:
            problems = Show(options, stage, narrator).run()
    except StageError as error:
        print(f"seqroute demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for problem in problems:
        print(f"seqroute demo: {problem}", file=sys.stderr)
    return 1 if problems else 0


def parse(arguments: Sequence[str] | None) -> Options:
    """Parse the command line."""
    parser = OneLineParser(
        prog="seqroute demo",
        description="Sessions through the gateway, a training run, and new sessions to compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--sessions", type=_positive, default=300, help="sessions to learn from")
    parser.add_argument("--held-out", type=_positive, default=60, help="new sessions to compare the policies on")
    parser.add_argument("--turns", type=_positive, default=8, help="turns in every session")
    parser.add_argument("--budget-usd", type=float, default=0.014, help="budget of an average session")
    parser.add_argument(
        "--seed", type=int, default=7, help="the same seed gives the same questions and the same errors of the models"
    )
    parser.add_argument("--parallel", type=_positive, default=12, help="sessions played at once")
    parser.add_argument("--port", type=int, default=0, help="the gateway's port; 0 takes a free one")
    parser.add_argument("--latency-scale", type=float, default=1.0, help="0: the provider answers immediately")
    parser.add_argument(
        "--exploration", type=float, default=0.5, help="exploration floor during the sessions to learn from"
    )
    parser.add_argument(
        "--exploration-after", type=float, default=0.02, help="exploration floor while policies are compared"
    )
    parser.add_argument("--folder", type=Path, default=Path("var/demo"), help="folder for all output")
    parser.add_argument("--training", type=Path, default=None, help="a training file for `seqroute-train nightly`")
    parser.add_argument("--keep", action="store_true", help="leave provider and gateway running until Ctrl-C")
    given = parser.parse_args(arguments)
    return Options(
        learn=given.sessions, held_out=given.held_out, turns=given.turns, budget_usd=given.budget_usd,
        seed=given.seed, parallel=given.parallel, port=given.port, latency_scale=given.latency_scale,
        exploration=given.exploration, exploration_after=given.exploration_after,
        folder=given.folder, keep=given.keep, training=given.training,
    )  # fmt: skip


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return number


class Show:
    """The steps of the demo, on running processes."""

    def __init__(self, options: Options, stage: Stage, narrator: Narrator) -> None:
        self._options, self._stage, self._narrator = options, stage, narrator
        self._admin = httpx.Client(base_url=stage.gateway_url, timeout=60.0)
        self._key = ""
        self._initial_policy = ""
        self._problems: list[str] = []

    def run(self) -> list[str]:
        """Run every step; return what went wrong."""
        options, stage = self._options, self._stage
        with self._admin:
            with stage.gateway(options.exploration):
                self._key = self._open_account()
                learning = self._conversations("learn", options.learn)
                self._initial_policy = self._serving_policy()
                self._play("learn", "auto", learning, f"learning sessions under {self._initial_policy}")
                promoted = self._train()
            with stage.gateway(options.exploration_after):
                self._narrator.say(f"the gateway was restarted with exploration {options.exploration_after:g}")
                labels = self._compare(self._conversations("held-out", options.held_out), promoted)
                self._report(labels, promoted)
                self._settle_up()
                self._compare_report(labels)
                if options.keep:
                    self._keep()
        return self._problems

    def _conversations(self, split: str, count: int) -> list[Conversation]:
        options = self._options
        return [make_conversation(options.seed, split, index, options.turns) for index in range(count)]

    def _open_account(self) -> str:
        """Create a tenant with a budget and a key, and return the key."""
        stage = self._stage
        self._narrator.say(f"the gateway answers at {stage.gateway_url}/v1, the provider at {stage.provider_url}/v1")
        self._admin.headers["Authorization"] = f"Bearer {stage.master_key()}"
        tenant = self._ask("POST", "/admin/tenants", {"name": "demo", "budget_usd": "100", "max_session_usd": "1"})
        key = self._ask("POST", "/admin/keys", {"tenant_id": tenant["id"], "role": "service"})
        self._narrator.say(f"tenant {tenant['id']} and a key for it were created")
        return str(key["key"])

    def _play(self, label: str, model: str, conversations: Sequence[Conversation], title: str) -> Tally:
        options = self._options
        self._narrator.say(f"{title}: {len(conversations)} sessions of {options.turns} turns")
        bill = Playbill(label, model, conversations, options.budget_usd, options.parallel)
        with self._narrator.progress(title, len(conversations) * options.turns) as advance:
            tally = asyncio.run(play(bill, base_url=self._stage.gateway_url, api_key=self._key, advance=advance))
        for problem in sorted(set(tally.unexpected or [])):
            self._problems.append(f"{label}: {problem}, {(tally.unexpected or []).count(problem)} times")
        return tally

    def _train(self) -> str | None:
        """Run `seqroute-train nightly`; the promoted policy's id, or None when the gate refused."""
        self._narrator.say("seqroute-train nightly: log -> relabel -> fit -> evaluate off-policy -> gate -> publish")
        arguments = ["train", "nightly", "--config", str(self._stage.config)]
        if self._options.training is not None:
            arguments += ["--training", str(self._options.training.absolute())]
        with self._narrator.waiting("training"), command(self._stage, "nightly", arguments) as process:
            for line in process.stdout or ():
                self._narrator.say(f"  {line.rstrip()}")
        if process.returncode != 0:
            log = self._stage.folder / "nightly.log"
            raise StageError(f"seqroute-train nightly ended with status {process.returncode}: {last_line(log)}")
        trained = results.trained_policies(self._stage.database)
        if not trained or trained[0].stage != "champion":
            self._narrator.say("the gate did not promote a new policy; the previous one goes on serving")
            return None
        champion = trained[0].policy_id
        self._wait_for(champion)
        self._narrator.say(f"the running gateway has loaded {champion}")
        return champion

    def _compare(self, held_out: Sequence[Conversation], promoted: str | None) -> list[tuple[str, str]]:
        """Play the same new conversations with each contender; (label, name) in table order."""
        labels = [("before", "before training")]
        if promoted is not None:
            self._play("after", "auto", held_out, "new sessions under the promoted policy")
            self._ask("POST", "/admin/policies/rollback", {})
            self._wait_for(self._initial_policy)
            self._narrator.say(f"rolled back, so that {self._initial_policy} meets the same sessions")
        self._play("before", "auto", held_out, f"the same new sessions under {self._initial_policy}")
        if promoted is not None:
            self._ask("POST", f"/admin/policies/{promoted}/promote", {})
            self._wait_for(promoted)
            labels.append(("after", "after training"))
        for label, model in (("weakest", WEAKEST), ("strongest", STRONGEST)):
            self._play(label, model, held_out, f"the same new sessions with {model} pinned")
            labels.append((label, f"only {model}"))
        return labels

    def _wait_for(self, policy_id: str) -> None:
        """Wait until the running gateway decides with this policy. Raises StageError."""
        deadline = time.monotonic() + RELOAD_TIMEOUT_S
        while (serving := self._serving_policy()) != policy_id:
            if time.monotonic() >= deadline:
                raise StageError(
                    f"the gateway did not load {policy_id} within {RELOAD_TIMEOUT_S:.0f} s, it serves {serving!r}"
                )
            time.sleep(0.2)

    def _serving_policy(self) -> str:
        """The policy that serves now, by a dry run, which costs nothing."""
        body = {"model": "auto", "messages": [{"role": "user", "content": "Question 1. Compute 1 + 1."}]}
        reply = self._admin.post("/v1/route", json=body, headers={"Authorization": f"Bearer {self._key}"})
        return str(reply.json().get("policy")) if reply.status_code == 200 else f"status {reply.status_code}"

    def _report(self, labels: Sequence[tuple[str, str]], promoted: str | None) -> None:
        passes = {label: results.read_pass(self._stage.database, label) for label, _ in labels}
        for label, played in passes.items():
            if played.graded != played.answered:
                self._problems.append(f"{label}: {played.answered} answers, but {played.graded} grades stored")
        contenders = [(name, passes[label]) for label, name in labels]
        self._narrator.table(results.outcome_sheet(contenders))
        self._narrator.table(results.conduct_sheet(contenders))
        self._narrator.console.print()
        if promoted is not None:
            gain = results.paired(passes["after"], passes["before"])
            better = "better" if gain.low > 0 else "worse" if gain.high < 0 else "not significantly different"
            self._narrator.say(
                f"after minus before, same sessions: {gain.mean:+.3f} quality per turn "
                f"(95 % {gain.low:+.3f} to {gain.high:+.3f}): {better}"
            )
        for line in gate_words(results.trained_policies(self._stage.database)):
            self._narrator.say(f"the gate: {line}")

    def _settle_up(self) -> None:
        """Audit the ledger and compare it with the provider's bill."""
        with command(self._stage, "audit", ["gateway", "audit", "--config", str(self._stage.config)]) as process:
            words = (process.communicate()[0] or "").strip().splitlines()
        self._narrator.say(f"seqroute audit: {words[-1] if words else 'no output'}")
        if process.returncode != 0:
            self._problems.append(f"seqroute audit ended with status {process.returncode}")
        billed = int(httpx.get(f"{self._stage.provider_url}/__bill").json()["total_nano_usd"])
        totals = results.ledger_totals(self._stage.database)
        self._narrator.say(
            f"provider billed {usd(billed)} USD, ledger settled {usd(totals['settled'])} USD, "
            f"still reserved {usd(totals['reserved'])} USD"
        )
        if billed != totals["settled"] or totals["reserved"]:
            self._problems.append("the provider's bill and the ledger disagree")

    def _compare_report(self, labels: Sequence[tuple[str, str]]) -> None:
        """Check that `seqroute report` counts the sessions out of money that the tables count; say what is next."""
        config = shown(self._stage.config)
        with command(
            self._stage, "report", ["gateway", "report", "--config", str(self._stage.config), "--json"]
        ) as run:
            found = json.loads(run.communicate()[0] or "{}")
        tables = {label: results.read_pass(self._stage.database, label).bankrupt for label, _ in labels}
        learning = results.read_pass(self._stage.database, "learn").bankrupt
        expected = learning + sum(tables.values())
        self._narrator.say(
            f"seqroute report: {counted(found.get('bankrupt_sessions', 0), 'session')} ran out of money; the tables "
            f"count {sum(tables.values())}, and {learning} did while learning"
        )
        if found.get("bankrupt_sessions") != expected:
            self._problems.append(f"seqroute report counts another number of sessions without money than {expected}")
        self._narrator.say(f"explore: seqroute report --config {config} --html report.html")
        if not self._options.keep:
            self._narrator.say(
                f"dashboard: seqroute serve --config {config}, then http://127.0.0.1:4000/ui with the key in "
                f"{shown(self._stage.folder / 'seqroute.master-key')}"
            )

    def _keep(self) -> None:
        """Keep provider and gateway running until Ctrl-C."""
        self._narrator.say(f"provider and gateway run until Ctrl-C; the dashboard: {self._stage.gateway_url}/ui")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = self._admin.request(method, path, json=body)
        if reply.status_code >= 300:
            raise StageError(f"{method} {path}: expected success, got {reply.status_code} {reply.text[:300]}")
        answer: dict[str, Any] = reply.json()
        return answer


def gate_words(trained: Sequence[results.PolicyRow]) -> list[str]:
    """The gate's reasons, each once, and the stage of every policy."""
    reasons = dict.fromkeys(reason for row in trained for reason in row.reasons)
    return [*reasons, *(f"{row.policy_id} is {row.stage}" for row in trained)] or ["no policy was written"]


def shown(path: Path) -> Path:
    """A path relative to the current folder where possible."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def usd(nanousd: int) -> str:
    """Nano-USD as USD with nine decimals."""
    return f"{nanousd / 10**9:.9f}"


if __name__ == "__main__":
    sys.exit(main())
