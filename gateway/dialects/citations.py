"""Citations of a chat answer in the forms of the other dialects.

They are OpenAI's annotations, Claude's own citations as LiteLLM hands them on, or Perplexity's lists beside the
choices. What is not known of one (where in the text it stands, what the source says) is empty or 0: clients require
the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.unchecked import listed, mapping, objects_in

Note = Mapping[str, Any]
"""A citation: an annotation with its fields beside its type, or one of Claude's."""


def notes_in(message: Mapping[str, Any]) -> list[Note]:
    """The citations in a message or delta; Claude's own come before what was made of them."""
    fields = mapping(message.get("provider_specific_fields"))
    own = [*_citations(fields.get("citations")), *_citations(fields.get("citation"))]
    return own or [note for each in objects_in(message.get("annotations")) if (note := _flat(each)) is not None]


def sources_of(body: Mapping[str, Any]) -> list[Note]:
    """The pages that an answer's provider lists beside its choices."""
    for name in ("search_results", "citations"):
        pages = [{"url": each} if isinstance(each, str) else each for each in listed(body.get(name))]
        found: list[Note] = [
            {"type": "url_citation", **each} for each in objects_in(pages) if isinstance(each.get("url"), str)
        ]
        if found:
            return found
    return []


def as_annotation(note: Note) -> dict[str, Any]:
    """A citation in the form of OpenAI's Responses."""
    url = note.get("url") or note.get("source")
    if note["type"] == "url_citation" or url:
        places = {name: note.get(name) or 0 for name in ("start_index", "end_index")}
        return {"type": "url_citation", "url": url or "", "title": note.get("title") or "", **places}
    if "cited_text" in note:
        file = {"file_id": note.get("file_id") or "", "filename": note.get("document_title") or ""}
        return {"type": "file_citation", **file, "index": note.get("document_index") or 0}
    return dict(note)


def as_claude_s(note: Note) -> dict[str, Any] | None:
    """A citation in Claude's form; None for a kind that has none there."""
    if "cited_text" in note:
        return dict(note)
    if note["type"] != "url_citation":
        return None
    said = note.get("content") or note.get("snippet")
    return {
        "type": "web_search_result_location",
        "url": note.get("url") or "",
        "title": note.get("title") or None,
        "cited_text": said if isinstance(said, str) else "",
        "encrypted_index": "",
    }


def is_made_here(citation: object) -> bool:
    """True for a citation that `as_claude_s` made, which Claude's servers would refuse."""
    return isinstance(citation, Mapping) and citation.get("encrypted_index") == ""


def _citations(given: object) -> Iterator[Note]:
    """Claude's citations: one, or lists of them for each of its texts."""
    if isinstance(given, list):
        for each in given:
            yield from _citations(each)
    elif isinstance(given, Mapping) and isinstance(given.get("type"), str) and "cited_text" in given:
        yield given


def _flat(note: Mapping[str, Any]) -> Note | None:
    """An annotation of chat, which has its fields in an object."""
    inner = note.get(str(note.get("type")))
    return {"type": note["type"], **inner} if isinstance(inner, Mapping) else None
