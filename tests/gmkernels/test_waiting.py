"""Counts and times of kernels, in the folder of a cache. `test_pool` looks at those of processes that compile."""

import pytest

from gmkernels import waiting


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A folder, and a process that has waited for nothing and notes nothing as it ends."""
    monkeypatch.setattr(waiting, "process", waiting.Waiting())
    monkeypatch.setattr(waiting, "_keep_at_exit", lambda folder: None)
    return tmp_path


def test_a_folder_lists_what_was_compiled_and_the_process_counts_both(fresh):
    assert waiting.of_cache(fresh) == waiting.Waiting() and waiting.of_last_process(fresh) is None
    waiting.note_compiled(fresh, "first", 1.5)
    waiting.note_compiled(fresh, "second", 0.25)
    waiting.note_loaded(fresh, 0.125)
    assert waiting.of_cache(fresh) == waiting.Waiting(2, 1.75)
    assert waiting.process == waiting.Waiting(2, 1.75, 1, 0.125)
    assert str(waiting.process) == "compiled 2 in 1.75 s, loaded 1 in 0.12 s"


def test_a_folder_that_cannot_be_written_is_no_error(fresh):
    waiting.note_compiled(fresh / "missing", "first", 1.0)
    assert waiting.process.compiled == 1 and waiting.of_cache(fresh / "missing").compiled == 0


def test_a_broken_note_is_none(fresh):
    (fresh / "last.json").write_text("{")
    assert waiting.of_last_process(fresh) is None
