"""Schemathesis over the description of the API: no input causes a fault or costs a connection."""

from __future__ import annotations

from pathlib import Path

from tests.harness.schema_fuzz import play


async def test_no_generated_request_causes_a_fault_or_is_left_without_an_answer(
    tmp_path: Path, sqlite_url: str
) -> None:
    """A small share of `make fuzz`, which also looks at the time that each answer takes."""
    report = await play(tmp_path, sqlite_url, seed=1, examples=1, prefix="/v1")
    assert (report.failures, report.errors) == ([], [])
    assert set(report.phases) >= {"coverage", "fuzzing"}
    assert report.requests > 500
