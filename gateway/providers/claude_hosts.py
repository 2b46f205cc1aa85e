"""Claude's Messages at Bedrock, Vertex AI and Azure: form, address and credentials.

All of it is LiteLLM's: what a host does not take is filtered by LiteLLM's own configuration for it, and what that
changes is named. Like the direct client's transforms these are no public interface, and are used only with the reviewed
version; with another one such requests are translated.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import orjson
from yarl import URL

from gateway.catalog.claude_hosts import AZURE_TOKEN, ClaudeHost, carries, claude_host, placed
from gateway.dialects.claude_history import has_system_turns, without_tool_changes
from gateway.dialects.forwarded import ForwardedRequest
from gateway.providers.aws_access import AwsAccess, AwsEnvironment, aws_access
from gateway.providers.call import NO_KEY, Call, ProviderNames
from gateway.providers.claude_forms import ClaudeForms
from gateway.providers.direct import VERIFIED_LITELLM, request_headers
from gateway.providers.errors import (
    AWS_CREDENTIALS,
    AZURE_CREDENTIALS,
    GOOGLE_CREDENTIALS,
    CredentialFault,
    credentials_of,
)
from gateway.providers.exchange import KEY_HEADERS
from gateway.providers.litellm_clients import key_for
from gateway.providers.transport import DirectRequest

_log = logging.getLogger("seqroute.providers")

TOKEN_WAIT_S = 20.0
"""How long a turn waits for a token of Google's; others get one in less than a second."""
BETA = "anthropic-beta"
_CLAUDE = re.compile(r"claude-[a-z0-9.@-]+")
_VERSION = re.compile(r"-v\d+$|-default$")
_MARKED_BY_CLIENTS = frozenset({"bedrock", "vertex_ai"})
"""Hosts that do not place the cache mark of a whole body themselves."""
_EXPECTED: Mapping[ClaudeHost, str] = {
    "bedrock": AWS_CREDENTIALS, "vertex_ai": GOOGLE_CREDENTIALS, "azure_ai": AZURE_CREDENTIALS
}  # fmt: skip
_BECOME_BETAS = ("tools[].eager_input_streaming",)
"""Fields for which LiteLLM sends a beta instead."""
_INTERLEAVED = "interleaved-thinking-"
_CLEARS_THINKING = "clear_thinking_"
_NATIVE_SCHEMAS = "supports_native_structured_output"


def own_name(model: str) -> str:
    """Anthropic's own name of a model: `us.anthropic.claude-opus-4-6-v1:0` is `claude-opus-4-6`."""
    found = _CLAUDE.search(model.lower())
    return model if found is None else _VERSION.sub("", found[0].replace("@", "-"))


class ClaudeHosts:
    """The hosts beside Anthropic's own. Create it once, after importing LiteLLM."""

    def __init__(self, litellm: Any, aws: AwsEnvironment) -> None:
        self._aws = aws
        self._configs: dict[ClaudeHost, Any] = {}
        if importlib.metadata.version("litellm") != VERIFIED_LITELLM:
            return
        partners = "litellm.llms.vertex_ai.vertex_ai_partner_models.anthropic.experimental_pass_through.transformation"
        azure: Any = importlib.import_module("litellm.llms.azure_ai.anthropic.messages_transformation")
        betas: Any = importlib.import_module("litellm.anthropic_beta_headers_manager")
        turns: Any = importlib.import_module("litellm.llms.anthropic.pass_through.messages.mid_conversation_system")
        self._as_users = turns.convert_mid_conversation_system_turns
        self._kept_betas = betas.filter_and_transform_beta_headers
        self._params: Any = importlib.import_module("litellm.types.router").GenericLiteLLMParams
        self._supports: Any = importlib.import_module("litellm.utils").supports_factory
        self._sign: Any = importlib.import_module("litellm.llms.bedrock.base_aws_llm").run_aws_signing
        self._configs = {
            "bedrock": litellm.AmazonAnthropicClaudeMessagesConfig(),
            "vertex_ai": importlib.import_module(partners).VertexAIPartnerModelsAnthropicMessagesConfig(),
            "azure_ai": azure.AzureAnthropicMessagesConfig(),
        }

    def host_of(self, call: Call, found: ProviderNames) -> ClaudeHost | None:
        """The host of a call; None for one whose deployment takes no Messages."""
        host = claude_host(found.provider, found.model, call.base_model)
        if host is None or not carries(host, call.defaults, call.options):
            return None
        return host if host == "anthropic" or host in self._configs else None

    def has_key(self, host: ClaudeHost, call: Call, found: ProviderNames) -> bool:
        """False where Azure's key is only the environment's, or a token that LiteLLM has to fetch."""
        stated = not KEY_HEADERS.isdisjoint(map(str.lower, call.extra_headers))
        return host != "azure_ai" or AZURE_TOKEN in call.options or stated or key_for(call, found, "") != NO_KEY

    def takes_schemas(self, host: ClaudeHost, call: Call, found: ProviderNames) -> bool:
        """False where Bedrock would only tell the model of a schema in words."""
        if host != "bedrock":
            return True
        model = call.base_model or found.model
        return bool(self._supports(model=model, custom_llm_provider=host, key=_NATIVE_SCHEMAS))

    def fitted(
        self, host: ClaudeHost, call: Call, found: ProviderNames, forwarded: ForwardedRequest, forms: ClaudeForms
    ) -> tuple[ForwardedRequest, tuple[str, ...]]:
        """The request as the host takes it, and the names of what that changes."""
        if not forms.system_turns and has_system_turns(forwarded.body["messages"]):
            plain = {**forwarded.body, "messages": without_tool_changes(forwarded.body["messages"])}
            gone = tuple(_changes(forwarded.body, plain, ""))
            fitted, names = self._at_host(host, call, found, replace(forwarded, body=plain), forms)
            return fitted, (*gone, *names)
        return self._at_host(host, call, found, forwarded, forms)

    def _at_host(
        self, host: ClaudeHost, call: Call, found: ProviderNames, forwarded: ForwardedRequest, forms: ClaudeForms
    ) -> tuple[ForwardedRequest, tuple[str, ...]]:
        if host == "anthropic":
            if forms.system_turns or not has_system_turns(forwarded.body["messages"]):
                return forwarded, ()
            body = {**forwarded.body, "messages": list(self._as_users(forwarded.body["messages"]))}
            return replace(forwarded, body=body), tuple(_changes(forwarded.body, body, ""))
        body = _moved(forwarded.body, marked=host in _MARKED_BY_CLIENTS)
        offered = body if host != "bedrock" else _without_clearing_thinking(body)
        changed: dict[str, Any] = orjson.loads(orjson.dumps(offered))  # LiteLLM writes into what it is given
        changed.setdefault("max_tokens", call.max_tokens)
        for tool in changed.get("tools") or ():
            (tool.get("cache_control") or {}).pop("scope", None)  # LiteLLM does it in texts alone
        sent: dict[str, Any] = self._configs[host].transform_anthropic_messages_request(
            model=call.base_model or found.model,
            messages=changed.pop("messages"),
            anthropic_messages_optional_request_params=changed,
            litellm_params=self._params(),
            headers={BETA: ",".join(forwarded.betas)},
        )
        for name in {"model", "max_tokens"} - body.keys():
            sent.pop(name, None)
        if isinstance(body.get("system"), str) and sent.get("system") == [{"type": "text", "text": body["system"]}]:
            sent["system"] = body["system"]
        kept = [each for beta in forwarded.betas for each in self._kept_betas([beta], host)]
        asked = [beta for beta in forwarded.betas if beta.startswith(_INTERLEAVED)]
        if host == "bedrock" and forms.interleaves and asked:  # which LiteLLM leaves out for every model
            sent["anthropic_beta"] = sorted({*(sent.get("anthropic_beta") or ()), *asked})
            kept += asked
        names = [*_changes(body, sent, ""), *([BETA] if len(kept) < len(forwarded.betas) else ())]
        names = [name for name in names if name not in _BECOME_BETAS]
        return replace(forwarded, body=sent, betas=tuple(kept)), tuple(dict.fromkeys(names))

    async def request(self, host: ClaudeHost, call: Call, found: ProviderNames, body: dict[str, Any]) -> DirectRequest:
        """The request with its credentials. Raises CredentialFault without any."""
        try:
            if host == "bedrock":  # finding the credentials may ask a server of Amazon's
                access = aws_access(call)
                access = replace(access, api_key=await self._aws.key(access))
                made: DirectRequest = await self._sign(self._for_bedrock, call, access, found, body)
                return made
            if host == "vertex_ai":
                return self._for_vertex(await self._google_token(call), call, found, body)
            if self.has_key(host, call, found):
                return self._for_azure(call, found, body)
            _log.error("a call for %s has no api_key and no azure_ad_token", call.litellm_model[:120])
        except Exception as error:  # noqa: BLE001 - each cloud's code has errors of its own, which may repeat a key
            _log.error("a call for %s has no credentials: %s", call.litellm_model[:120], type(error).__name__)
            raise CredentialFault.missing(credentials_of(error) or _EXPECTED[host]) from None
        raise CredentialFault.missing(_EXPECTED[host])

    def _for_bedrock(self, call: Call, access: AwsAccess, found: ProviderNames, body: dict[str, Any]) -> DirectRequest:
        config, options = self._configs["bedrock"], dict(access.options)
        region, model = placed(found.model)
        if region is not None:
            options.setdefault("aws_region_name", region)
        stated, headers = _split(access.headers)
        body = {name: value for name, value in body.items() if name not in ("model", "stream")}
        if betas := list(dict.fromkeys([*stated, *(body.get("anthropic_beta") or ())])):
            body["anthropic_beta"] = betas
        base = None if call.api_base is None else call.api_base.rstrip("/")
        url = config.get_complete_url(
            api_base=base, api_key=None, model=model, optional_params=options, litellm_params={},
            stream=call.stream,
        )  # fmt: skip
        signed, raw = config.sign_request(
            headers=headers, optional_params=options, request_data=body, api_base=url, api_key=access.api_key,
            model=model,
            stream=call.stream,
        )  # fmt: skip
        # What was signed is the path as it is written, with an ARN's colons in percents.
        return DirectRequest(URL(url, encoded=True), request_headers(signed, None), raw)

    async def _google_token(self, call: Call) -> tuple[str, str]:
        """A token and its project, for which Google's server may be asked.

        One that hangs must not hold up turns with another account, nor these for as long as google-auth waits.
        """
        config, options = self._configs["vertex_ai"], dict(call.options)
        asked: asyncio.Future[tuple[str, str]] = asyncio.ensure_future(
            config.get_access_token_async(
                config.safe_get_vertex_ai_credentials(options), config.safe_get_vertex_ai_project(options)
            )
        )
        try:
            await asyncio.wait([asked], timeout=TOKEN_WAIT_S)
            if not asked.done():
                raise TimeoutError
            return asked.result()
        finally:
            asked.cancel()  # not waited for: LiteLLM's thread cannot be stopped

    def _for_vertex(
        self, token: tuple[str, str], call: Call, found: ProviderNames, body: dict[str, Any]
    ) -> DirectRequest:
        stated, headers = _split(call.extra_headers)
        config = copy(self._configs["vertex_ai"])
        config._ensure_access_token = lambda **_: token
        made, url = config.validate_anthropic_messages_environment(
            headers=_with_client_betas(headers, call), model=found.model, messages=body["messages"],
            optional_params=body, litellm_params=dict(call.options),
            api_base=None if call.api_base is None else call.api_base.rstrip("/"),
        )  # fmt: skip
        body = {name: value for name, value in body.items() if name != "model"}
        headers = self._with_betas("vertex_ai", made, stated)
        return DirectRequest(URL(url, encoded=True), request_headers(headers, None), orjson.dumps(body))

    def _for_azure(self, call: Call, found: ProviderNames, body: dict[str, Any]) -> DirectRequest:
        config = self._configs["azure_ai"]
        stated, headers = _split(call.extra_headers)
        headers = _with_client_betas(headers, call)
        base = call.api_base or found.api_base
        key = key_for(call, found, base or "")
        made, base = config.validate_anthropic_messages_environment(
            headers={"api-key": key, **headers}, model=found.model, messages=body["messages"], optional_params=body,
            litellm_params={}, api_base=base,
        )  # fmt: skip
        made = {name: value for name, value in made.items() if value != NO_KEY}
        if key == NO_KEY and (token := call.options.get(AZURE_TOKEN)):  # as LiteLLM has it, a key comes first
            made["authorization"] = f"Bearer {token}"
        url = config.get_complete_url(
            api_base=base, api_key=None, model=found.model, optional_params={}, litellm_params={}, stream=call.stream
        )
        headers = self._with_betas("azure_ai", made, stated)
        return DirectRequest(URL(url), request_headers(headers, None), orjson.dumps(body))

    def _with_betas(self, host: ClaudeHost, made: Mapping[str, Any], stated: Iterable[str]) -> dict[str, Any]:
        """The headers with the betas that the host knows, and the operator's."""
        asked = [beta for beta in str(made.get(BETA) or "").split(",") if beta]
        betas = dict.fromkeys([*stated, *self._kept_betas(asked, host)])
        others = {name: value for name, value in made.items() if name != BETA}
        return others | ({BETA: ",".join(betas)} if betas else {})


def _split(headers: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The operator's betas, and the other headers."""
    lowered = {name.lower(): value for name, value in headers.items()}
    stated = lowered.pop(BETA, "")
    return [beta.strip() for beta in stated.split(",") if beta.strip()], lowered


def _with_client_betas(headers: Mapping[str, str], call: Call) -> dict[str, str]:
    """The headers with the client's betas."""
    betas = () if call.forwarded is None else call.forwarded.betas
    return {**headers, **({BETA: ",".join(betas)} if betas else {})}


def _moved(body: Mapping[str, Any], *, marked: bool) -> dict[str, Any]:
    """The body with what has another place at these hosts in that place."""
    made = dict(body)
    shape = made.pop("output_format", None)
    if shape:
        made["output_config"] = {"format": shape} | (made.get("output_config") or {})
    mark = made.pop("cache_control", None) if marked else None
    *earlier, last = made["messages"]
    content = last["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if mark and "cache_control" not in blocks[-1]:
        made["messages"] = [*earlier, {**last, "content": [*blocks[:-1], {**blocks[-1], "cache_control": mark}]}]
    return made


def _without_clearing_thinking(body: dict[str, Any]) -> dict[str, Any]:
    """The body without an edit that Bedrock lacks; LiteLLM would turn thinking on for it."""
    managed = body.get("context_management") or {}
    edits = managed.get("edits") or ()
    kept = [edit for edit in edits if not str(edit.get("type")).startswith(_CLEARS_THINKING)]
    if len(kept) == len(edits):
        return body
    others = {name: value for name, value in body.items() if name != "context_management"}
    return others | ({"context_management": {**managed, "edits": kept}} if kept else {})


def _changes(before: Any, after: Any, where: str) -> Iterator[str]:
    """The paths, without indexes, of what another value or none has taken the place of."""
    if before == after or before is None:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name, value in before.items():
            yield from _changes(value, after.get(name), f"{where}.{name}" if where else name)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for old, new in zip(before, after, strict=True):
            yield from _changes(old, new, f"{where}[]")
    else:
        yield where
