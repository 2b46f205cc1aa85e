"""Server-rendered dashboard for operators.

Every page goes through `_page` or `_action`, which require a signed cookie and a usable key, for actions also the admin
role and the form's CSRF token. A strict Content-Security-Policy forbids resources from other sites.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any
from urllib.parse import urlencode

import jinja2
import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.accounts import keys, sessions, tenants
from gateway.accounts.auth import MASTER_KEY_ID, Authenticator
from gateway.accounts.keys import NewKey
from gateway.accounts.trees import describe_tree, tree_rows
from gateway.catalog.live import Configuration
from gateway.clock import Clock, now_ms
from gateway.database.database import Database
from gateway.decisions import log
from gateway.decisions.forecasts import SessionForecasts
from gateway.decisions.report import out_of_money
from gateway.decisions.rollups import DAY_MS, HOUR_MS
from gateway.errors import Forbidden, GatewayError, NotFound, http_status
from gateway.http import query_values
from gateway.ledger import audit
from gateway.policies import registry, trials
from gateway.policies.registry import PolicyRegistry
from gateway.ui import queries, words
from gateway.ui.actions import Actions
from gateway.ui.asked import PERIODS_DAYS, choice_of, number_of, period_days, read_form, text_of
from gateway.ui.charts import burn_down, candidate_costs, front_chart, front_points, reliability_chart, spend_series
from gateway.ui.format import FILTERS
from gateway.ui.insights import Insights
from gateway.ui.sign_in import COOKIE, SIGNED_IN_S, SignIn, Viewer

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_STATIC_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

Page = Callable[[Request, Viewer], Awaitable[Response]]
Action = Callable[[Viewer, Mapping[str, str]], Awaitable[str | NewKey]]


class Dashboard:
    """The pages and actions below `/ui`."""

    def __init__(
        self,
        *,
        configuration: Callable[[], Configuration],
        database: Database,
        authenticator: Authenticator,
        policies: PolicyRegistry,
        forecasts: SessionForecasts,
        actions: Actions,
        sign_in: SignIn,
        clock: Clock,
    ) -> None:
        self._configuration = configuration
        self._database = database
        self._authenticator = authenticator
        self._policies = policies
        self._forecasts = forecasts
        self._actions = actions
        self._sign_in = sign_in
        self._clock = clock
        self._insights = Insights(database, clock)
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("gateway.ui"), autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters.update(FILTERS)

    def routes(self) -> list[BaseRoute]:
        """All routes of the dashboard."""
        pages: list[tuple[str, Page]] = [
            ("/ui", self.overview),
            ("/ui/sessions", self.session_list),
            ("/ui/sessions/{tenant_id}/{session_id}", self.session),
            ("/ui/decisions/{decision_id}", self.decision),
            ("/ui/policies", self.policy_list),
            ("/ui/policies/{policy_id}", self.policy),
            ("/ui/tenants", self.tenant_list),
            ("/ui/tenants/{tenant_id}", self.tenant),
            ("/ui/ledger", self.ledger),
            ("/ui/report", self.report),
            ("/ui/front", self.front),
            ("/ui/health", self.health),
        ]
        actions: list[tuple[str, Action]] = [
            ("/ui/tenants/create", self._actions.create_tenant),
            ("/ui/tenants/budget", self._actions.set_budget),
            ("/ui/keys/create", self._actions.create_key),
            ("/ui/keys/revoke", self._actions.revoke_key),
            ("/ui/sessions/budget", self._actions.set_session_budget),
            ("/ui/policies/act", self._actions.act_on_policy),
        ]
        return [
            Route("/ui/static/{name}", self.static, methods=["GET"]),
            Route("/ui/sign-in", self.sign_in, methods=["POST"]),
            Route("/ui/sign-out", self.sign_out, methods=["POST"]),
            *(Route(path, self._action(act), methods=["POST"]) for path, act in actions),
            *(Route(path, self._page(page), methods=["GET"]) for path, page in pages),
        ]

    # -- authentication ----------------------------------------------------------------------------------------------

    def _page(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            viewer = await self._viewer(request)
            if viewer is None:
                signing_in = self._render("sign_in.html", None, status=200 if request.url.path == "/ui" else 401)
                if request.headers.get("hx-request"):  # a part that keeps itself up to date: show the whole page
                    signing_in.headers["HX-Redirect"] = "/ui"
                return signing_in
            try:
                return await page(request, viewer)
            except GatewayError as error:
                return self._render("error.html", viewer, status=http_status(error), message=str(error))

        return endpoint

    def _action(self, act: Action) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            viewer = await self._viewer(request)
            if viewer is None:
                return self._render("sign_in.html", None, status=401)
            try:
                form = await read_form(request)
                if not hmac.compare_digest(form.get("csrf", "").encode(), viewer.csrf.encode()):
                    raise Forbidden("this form is out of date: load the page again")
                if not viewer.may_change:
                    raise Forbidden("a read-only key cannot change anything")
                done = await act(viewer, form)
                if isinstance(done, NewKey):
                    return self._render("key_made.html", viewer, key=done.key, secret=done.secret)
                return RedirectResponse(done, 303, HEADERS)
            except GatewayError as error:
                return self._render("error.html", viewer, status=http_status(error), message=str(error))

        return endpoint

    async def _viewer(self, request: Request) -> Viewer | None:
        """The viewer named by the cookie, while the key is usable: revoking a key signs it out."""
        viewer = self._sign_in.viewer(request.cookies.get(COOKIE))
        if viewer is None or viewer.key_id == MASTER_KEY_ID:
            return viewer
        try:
            key = await self._database.read(lambda c: keys.get_key(c, viewer.key_id))
        except NotFound:
            return None
        usable = key.usable(now_ms(self._clock)) and key.role == viewer.role
        return viewer if usable else None

    async def sign_in(self, request: Request) -> Response:
        """Sign in with a pasted key, which is not stored."""
        try:
            form = await read_form(request)
            caller = await self._authenticator.reader({"authorization": f"Bearer {form.get('key', '')}"})
        except GatewayError as error:
            return self._render("sign_in.html", None, status=http_status(error), problem="Unknown key.")
        cookie = self._sign_in.cookie_for(caller)
        if cookie is None:
            return self._render(
                "sign_in.html",
                None,
                status=403,
                problem="Expected the master key, or a key of role admin or read-only.",
            )  # fmt: skip
        response = RedirectResponse("/ui", 303, HEADERS)
        response.set_cookie(
            COOKIE, cookie, max_age=int(SIGNED_IN_S), path="/ui", httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    async def sign_out(self, request: Request) -> Response:
        """Delete the cookie."""
        response = RedirectResponse("/ui", 303, HEADERS)
        response.delete_cookie(COOKIE, path="/ui")
        return response

    async def static(self, request: Request) -> Response:
        """A script, style sheet or icon of the dashboard."""
        name = request.path_params["name"]
        kind = _STATIC_TYPES.get("." + name.rpartition(".")[2])
        file = resources.files("gateway.ui") / "static" / name
        if kind is None or "/" in name or name.startswith(".") or not file.is_file():
            return self._render("error.html", None, status=404, message="No such file.")
        headers = {**HEADERS, "cache-control": "max-age=3600"}
        return Response(file.read_bytes(), media_type=kind, headers=headers)

    # -- pages -------------------------------------------------------------------------------------------------------

    async def overview(self, request: Request, viewer: Viewer) -> Response:
        """Spend, savings and sessions near their budget, over the last days."""
        days, at_ms = period_days(request, 7), now_ms(self._clock)
        step_ms = HOUR_MS if days <= 7 else DAY_MS

        def read(connection: Any) -> dict[str, Any]:
            period = queries.last_days(days, at_ms, viewer.tenant_id)
            usage, by_tenant = queries.usage(connection, period, step_ms), queries.spend_by_tenant(connection, period)
            return {
                "totals": queries.totals(usage),
                "by_model": queries.spend_by_model(usage),
                "by_tenant": by_tenant,
                "tenant_names": queries.tenant_names(connection, [tenant_id for tenant_id, _, _ in by_tenant]),
                "out": out_of_money(connection, viewer.tenant_id, period.since_ms),
                "near": queries.near_their_budget(connection, period),
                "series": spend_series(usage, period, step_ms),
            }

        found, insight = await self._database.read(read), await self._insights.of(days, viewer.tenant_id)
        lineup = self._policies.lineup()
        return self._render(
            "overview.html", viewer, insight=insight, days=days, choices=PERIODS_DAYS,
            champion=lineup.champion.policy.policy_id, problems=self._policies.problems,
            chart=orjson.dumps(found.pop("series")).decode(), at_ms=at_ms, **found,
        )  # fmt: skip

    async def session_list(self, request: Request, viewer: Viewer) -> Response:
        """Search results, or only their rows for htmx."""
        asked = query_values(request, "q", "only", "before", "tenant", "session")
        search = text_of(asked, "q", 128)
        only = choice_of(asked, "only", ("", "near", "refused", *sessions.STATES), "")
        used_ms = number_of(asked, "before")
        after = None
        if used_ms is not None:
            after = used_ms, text_of(asked, "tenant", 128), text_of(asked, "session", 128)
        rows = await self._database.read(
            lambda c: queries.find_sessions(c, tenant_id=viewer.tenant_id, search=search, only=only, after=after)
        )
        more = None
        if len(rows) == queries.PAGE_ROWS:
            last = rows[-1]
            place = {"before": last["updated_at_ms"], "tenant": last["tenant_id"], "session": last["session_id"]}
            more = "?" + urlencode({"q": search, "only": only, **place})
        # A refresh would undo "Show more", and a search may read the whole table.
        refresh = "?" if after is None and not search and not only else None
        part = "sessions_rows.html" if request.headers.get("hx-request") else "sessions.html"
        return self._render(
            part, viewer, rows=rows, search=search, only=only, more=more, refresh=refresh, first=after is None,
            at_ms=now_ms(self._clock),
        )  # fmt: skip

    async def session(self, request: Request, viewer: Viewer) -> Response:
        """One session with its turns and ledger entries. Raises NotFound."""
        tenant_id, session_id = request.path_params["tenant_id"], request.path_params["session_id"]
        if viewer.tenant_id not in (None, tenant_id):
            raise NotFound("session: no such session")

        def read(connection: Any) -> dict[str, Any]:
            found = sessions.get_session(connection, tenant_id, session_id)
            whole = viewer.tenant_id is None
            turns = [log.explain(turn, whole=whole) for turn in queries.turns_of(connection, tenant_id, session_id)]
            return {
                "session": found,
                "turns": turns,
                "tree": tree_rows(describe_tree(connection, found)["children"]),
                "entries": queries.newest_entries(connection, tenant_id=tenant_id, session_id=session_id),
                "refused": queries.refused_in(connection, tenant_id, session_id),
                "forecast": self._forecasts.read(connection, tenant_id, session_id, found.balance.available_nanousd)
                if found.state != "closed"
                else {"available": False, "why_not": "the session is closed"},
            }

        found = await self._database.read(read)
        chart = burn_down(found["turns"], found["forecast"], found["session"].balance.available_nanousd)
        return self._render(
            "session.html",
            viewer,
            chart=orjson.dumps(chart).decode(),
            costs=candidate_costs(found["turns"]),
            at_ms=now_ms(self._clock),
            **found,
        )

    async def decision(self, request: Request, viewer: Viewer) -> Response:
        """One decision in words and numbers. Raises NotFound."""
        decision_id = request.path_params["decision_id"]
        row = await self._database.read(lambda c: log.find(c, decision_id, viewer.tenant_id))
        if row is None:
            raise NotFound("decision: no such decision")
        decision = log.explain(row, whole=viewer.tenant_id is None)
        return self._render("decision.html", viewer, decision=decision, sentences=words.explain(decision))

    async def policy_list(self, request: Request, viewer: Viewer) -> Response:
        """All policies and the current champion."""
        rows = await self._database.read(registry.list_policies)
        lineup = self._policies.lineup()
        built_in = sorted(registry.BUILT_IN - {row.policy_id for row in rows})
        return self._render(
            "policies.html", viewer, rows=rows, champion=lineup.champion.policy.policy_id,
            problems=self._policies.problems, actions=registry.ACTIONS, built_in=built_in, at_ms=now_ms(self._clock),
        )  # fmt: skip

    async def policy(self, request: Request, viewer: Viewer) -> Response:
        """One policy with its history and report. Raises NotFound."""
        policy_id, settings = request.path_params["policy_id"], self._configuration().settings.policy
        found = await self._database.read(lambda c: trials.describe_policy(c, policy_id, settings, now_ms(self._clock)))
        return self._render(
            "policy.html", viewer, policy=found,
            report=orjson.dumps(found.get("report") or {}, option=orjson.OPT_INDENT_2).decode(),
            actions=registry.ACTIONS, at_ms=now_ms(self._clock),
        )  # fmt: skip

    async def tenant_list(self, request: Request, viewer: Viewer) -> Response:
        """The tenants that the viewer may see."""

        def read(connection: Any) -> list[tenants.Tenant]:
            if viewer.tenant_id is not None:
                return [tenants.get_tenant(connection, viewer.tenant_id)]
            return tenants.list_tenants(connection)

        rows = await self._database.read(read)
        return self._render("tenants.html", viewer, rows=rows, at_ms=now_ms(self._clock))

    async def tenant(self, request: Request, viewer: Viewer) -> Response:
        """One tenant with its keys. Raises NotFound."""
        tenant_id = request.path_params["tenant_id"]
        if viewer.tenant_id not in (None, tenant_id):
            raise NotFound("tenant: no such tenant")
        found = await self._database.read(
            lambda c: (tenants.get_tenant(c, tenant_id), keys.list_keys(c, tenant_id=tenant_id, limit=200))
        )
        return self._render("tenant.html", viewer, tenant=found[0], keys=found[1], at_ms=now_ms(self._clock))

    async def ledger(self, request: Request, viewer: Viewer) -> Response:
        """Ledger entries; with `check=1`, for an admin, also an audit."""
        asked = query_values(request, "before", "check")
        before_id, check = number_of(asked, "before"), asked.get("check") == "1" and viewer.tenant_id is None

        def read(connection: Any) -> dict[str, Any]:
            return {
                "entries": queries.newest_entries(connection, tenant_id=viewer.tenant_id, before_id=before_id),
                "violations": [str(violation) for violation in audit.audit(connection)] if check else None,
                "changes": queries.newest_changes(connection) if viewer.tenant_id is None else [],
            }

        found = await self._database.read(read)
        entries = found["entries"]
        more = f"?before={entries[-1]['entry_id']}" if len(entries) == queries.PAGE_ROWS else None
        return self._render("ledger.html", viewer, more=more, at_ms=now_ms(self._clock), **found)

    async def report(self, request: Request, viewer: Viewer) -> Response:
        """Totals and savings over the last days."""
        days, at_ms = period_days(request, 30), now_ms(self._clock)

        def read(connection: Any) -> dict[str, Any]:
            period = queries.last_days(days, at_ms, viewer.tenant_id)
            usage = queries.usage(connection, period, period.until_ms)
            return {
                "totals": queries.totals(usage),
                "by_model": queries.spend_by_model(usage),
                "baselines": queries.baselines(connection, period),
                "out": out_of_money(connection, viewer.tenant_id, period.since_ms),
            }

        found, insight = await self._database.read(read), await self._insights.of(days, viewer.tenant_id)
        return self._render(
            "report.html", viewer, insight=insight, days=days, choices=PERIODS_DAYS, at_ms=at_ms, **found
        )  # fmt: skip

    async def front(self, request: Request, viewer: Viewer) -> Response:
        """Cost and quality over lambda, with today's point."""
        days = period_days(request, 7)
        insight = await self._insights.of(days, viewer.tenant_id)
        points = front_points(insight.savings)
        default_lambda = self._configuration().settings.policy.default_lambda
        place = min(range(len(points)), key=lambda i: abs(points[i]["lambda_per_usd"] - default_lambda), default=0)
        return self._render(
            "front.html", viewer, insight=insight, days=days, choices=PERIODS_DAYS, points=points, place=place,
            default_lambda=default_lambda,
            chart=orjson.dumps(front_chart(points, insight.savings["today"])).decode(),
            slider=orjson.dumps({"points": points, "today": insight.savings["today"]}).decode(),
        )  # fmt: skip

    async def health(self, request: Request, viewer: Viewer) -> Response:
        """Calibration and drift of predictions, and what serves."""
        days = period_days(request, 7)
        insight = await self._insights.of(days, viewer.tenant_id)
        lineup = self._policies.lineup()
        return self._render(
            "health.html", viewer, insight=insight, days=days, choices=PERIODS_DAYS, problems=self._policies.problems,
            champion=lineup.champion.policy.policy_id,
            chart=orjson.dumps(reliability_chart(insight.calibration)).decode(),
        )  # fmt: skip

    def _render(self, template: str, viewer: Viewer | None, *, status: int = 200, **values: Any) -> Response:
        defaults = {"problem": None, "viewer": viewer, "page": template.partition(".")[0]}
        body = self._templates.get_template(template).render(defaults | values)
        return Response(body, status, HEADERS, media_type="text/html; charset=utf-8")
