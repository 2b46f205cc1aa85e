from __future__ import annotations

from pathlib import Path

import pytest

from train.rollout.journal import NAME, Journal, JournalError


def test_what_was_written_is_found_again_and_the_last_word_counts(tmp_path: Path) -> None:
    with Journal(tmp_path, "x") as journal:
        journal.write("answer", "n1", {"text": "hi\nthere"})
        journal.write("answer", "n1", {"text": "again"})
    with Journal(tmp_path, "x") as journal:
        assert journal.find("answer", "n1") == {"text": "again"}
        assert journal.find("grade", "n1") is None


@pytest.mark.parametrize("torn", ['{"kind": "answer", "na', '{"kind": "answer", "name": "n2", "text": "b"}'])
def test_a_line_that_a_kill_tore_is_cut_off_and_the_next_begins_on_its_own(tmp_path: Path, torn: str) -> None:
    with Journal(tmp_path, "x") as journal:
        journal.write("answer", "n1", {"text": "a"})
    path = tmp_path / NAME
    path.write_text(path.read_text() + torn)
    with Journal(tmp_path, "x") as journal:
        assert journal.find("answer", "n2") is None
        journal.write("answer", "n3", {"text": "c"})
    with Journal(tmp_path, "x") as journal:
        assert (journal.find("answer", "n1"), journal.find("answer", "n3")) == ({"text": "a"}, {"text": "c"})


def test_a_journal_belongs_to_one_rollout_and_one_process(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, "x"),
        pytest.raises(JournalError, match="another process writes to it"),
        Journal(tmp_path, "x"),
    ):
        pass
    with pytest.raises(JournalError, match="other tasks, models or options"), Journal(tmp_path, "y"):
        pass
    with Journal(tmp_path, "x") as journal:
        assert journal.find("rollout", "identity") == {"identity": "x"}
