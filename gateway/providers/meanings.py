"""Classifies the codes and messages of providers' errors: a status, and a code for clients.

Messages are only classified; no part of them enters a response, a log or a metric.
"""

from __future__ import annotations

import re

CONTEXT, FILTER, QUOTA, MODEL = (
    "context_length_exceeded", "content_filter", "insufficient_quota", "model_not_found",
)  # fmt: skip
"""Error codes that clients handle."""

Meaning = tuple[int, str]
"""The status that an error means, and its client-visible code or ""."""

# Patterns for an error's code, type or status, compared without separators; the first match applies.
_BY_NAME: tuple[tuple[str, int, str], ...] = (
    (
        r"contextlength|contextwindow|contextsize|prompttoolong|inputtoolong|maxprompttokens|inputtokensexceeded"
        r"|stringabovemaxlength|^tokenslimitreached",
        400, CONTEXT,
    ),
    (
        r"contentfilter|contentpolicy|contentviolation|contentsecurity|moderation|safety|sensitive|datainspection"
        r"|responsibleai",
        400, FILTER,
    ),
    (r"insufficientquota|quotaexceeded|exceededquota|exceededcurrentquota|billinghardlimit", 429, QUOTA),
    (r"ratelimit|toomanyrequest|resourceexhausted|throttl|concurrency|^limitexceeded|qpsoverflow", 429, ""),
    (r"insufficientbalance|insufficientcredit|insufficientfund|billing|payment|arrear", 402, QUOTA),
    (
        r"modelnotfound|nosuchmodel|modelnotexist|modelnotavailable|unknownmodel|deploymentnotfound"
        r"|modeldecommissioned|invalidmodel",
        404, MODEL,
    ),
    (r"authentic|apikey|unauthor|invalidtoken|credential", 401, ""),
    (r"permission|forbidden|accessdenied", 403, ""),
    (r"requesttoolarge|payloadtoolarge", 413, ""),
    (r"notfound", 404, ""),
    (r"invalidrequest|invalidargument|invalidparam|badrequest|validation|unprocessable|unsupported", 400, ""),
    (r"timeout|deadline|timedout", 504, ""),
    (r"overload|unavailable|capacity|busy", 503, ""),
    (r"internal|servererror|apierror", 500, ""),
)  # fmt: skip

# Patterns for the message of an error with an unspecific code and type.
_BY_MESSAGE: tuple[tuple[str, int, str], ...] = (
    (
        r"maximum (?:supported )?(?:context|prompt|input|sequence) length|context[ _-]?(?:length|window|size|limit)"
        r"|(?:prompt|input|request|conversation) (?:is|was) too long|too long for (?:the |this )?(?:requested )?model"
        r"|max_seq_len|max length of|n_keep: \d+ >= n_ctx"
        r"|max_model_len|max_new_tokens|max_tokens must be at least 1, got -|must have less than \d+ tokens"
        r"|input tokens? (?:count|exceed)"
        r"|too many (?:input )?tokens(?!, please wait)"
        r"|number of input tokens|prompt token count .{0,20}exceeds|prompt exceeds|model token limit|total tokens limit"
        r"|range of input length|max(?:imum)? tokens of \d+ exceeded"
        r"|reduce the length of (?:the |your |either )?(?:messages|prompt|input|one)"
        r"|exceeds? the (?:maximum|max)(?: allowed)? (?:number of )?(?:input )?tokens|max size: \d+ tokens|超长",
        400, CONTEXT,
    ),
    (
        r"content (?:filter|management|policy|violat|exists risk)|content filtering|flagged|safety system"
        r"|usage guidelines|prohibited[ _]content|blocked (?:by|due to|because of) .{0,20}(?:safety|content)"
        r"|inappropriate content|sensitive (?:content|information|word)|unsafe (?:content|or )|moderation|敏感|不安全",
        400, FILTER,
    ),
    (
        r"exceeded your current quota|insufficient (?:balance|credit|funds|quota)|credit balance is too low"
        r"|requires more credits|out of credits|account balance|余额不足|欠费",
        402, QUOTA,
    ),
    (
        r"rate.?limit|too many requests|requests? (?:per (?:minute|day)|limit)|tokens per (?:minute|day)"
        r"|速率限制|请求频率|并发|限流",
        429, "",
    ),
    (
        r"models?\b.{0,100}(?:does not exist|not exist|not found|decommissioned|is not available)|no such model"
        r"|unknown model|^not found the model |^no endpoints found for [^ ]+$|^model: |not a valid model|invalid model"
        r"|model identifier is invalid"
        r"|not have access to (?:the )?model|n't have access to (?:the )?model",
        404, MODEL,
    ),
    (r"api.?key|unauthori[sz]ed|not authenticated|authentication", 401, ""),
    (
        r"overloaded|temporarily (?:unavailable|exceeded)|try again later|(?:is|currently|still) loading"
        r"|访问量过大|稍后再试",
        503, "",
    ),
)  # fmt: skip
_MAX_WORDS = 2_000
# Whole messages of providers that refuse a key or an account with a status of the request and without a name for it.
_OF_ACCOUNT: tuple[tuple[str, int], ...] = (
    (
        r"incorrect api key provided(?:: \S*\*\S*)?(?:\.(?: you can obtain an api key from https://console\.x\.ai\.?)?)?",
        401,
    ),
    (
        r"your credit balance is too low to (?:access|use) the (?:anthropic )?api"
        r"(?:\.(?: please go to plans & billing to upgrade or purchase credits\.?)?)?",
        402,
    ),
    (
        r"account \S{1,100} is suspended, possibly due to reaching the monthly spending limit or failure to pay past"
        r" invoices\.?(?: please go to https://fireworks\.ai/\S* for more information\.?)?",
        402,
    ),
    (r"user location is not supported for the api use(?: without a billing account linked)?\.?", 403),
)


def of_name(name: str) -> Meaning | None:
    """The meaning of a code, type or status name."""
    letters = re.sub(r"[^a-z]", "", name[:_MAX_WORDS].lower())
    return _matched(_BY_NAME, letters) if letters else None


def of_words(words: str) -> Meaning | None:
    """The meaning of an error message."""
    return _matched(_BY_MESSAGE, words[:_MAX_WORDS].lower())


def of_account(words: str) -> int:
    """401 to 403 for a message that as a whole is about the gateway's key or account, else 0.

    One that only mentions them may repeat a text of the client's, who would stop the deployment for everyone.
    """
    said = words[:_MAX_WORDS].strip().lower()
    return next((status for pattern, status in _OF_ACCOUNT if re.fullmatch(pattern, said)), 0)


def _matched(table: tuple[tuple[str, int, str], ...], text: str) -> Meaning | None:
    return next(((status, code) for pattern, status, code in table if re.search(pattern, text)), None)
