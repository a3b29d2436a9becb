"""Chunks of answers: shared by processes, gone on with, and joined in the rows' order."""

import pytest

from peftcls.inference import answer_parts
from peftcls.inference.answer_parts import AnswerParts

ROWS = 23


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(answer_parts, "CHUNK_ROWS", 5)


@pytest.fixture
def parts(tmp_path):
    return AnswerParts(tmp_path / "a.part", {"rows": "these"}, ROWS)


def fill(parts, starts):
    for start in starts:
        parts.write(start, [[row] for row in range(start, min(start + 5, ROWS))])


def test_each_process_begins_with_its_share_and_then_helps_from_the_end(parts):
    with parts.opened(resume=False):
        assert list(parts.missing(0, 2)) == [0, 10, 20, 15, 5]
        assert list(parts.missing(1, 2)) == [5, 15, 20, 10, 0]
        assert list(parts.missing(2, 3)) == [10, 20, 15, 5, 0]


def test_what_another_process_has_answered_meanwhile_is_not_answered_again(parts):
    with parts.opened(resume=False):
        mine = parts.missing(0, 2)
        assert next(mine) == 0
        fill(parts, [0, 5, 15, 20])
        assert list(mine) == [10]


def test_all_answers_come_in_the_rows_order(parts):
    with parts.opened(resume=False):
        fill(parts, [20, 0, 10, 15, 5])
        assert list(parts.read()) == [[row] for row in range(ROWS)]
        assert parts.answered() == ROWS


def test_a_process_that_is_late_leaves_nothing_behind(parts):
    with parts.opened(resume=False):
        fill(parts, range(0, ROWS, 5))
        late = parts.missing(1, 2)
        parts.remove()
    assert list(late) == []
    fill(parts, [5])
    assert not parts.folder.exists()


@pytest.mark.parametrize("damage", [b"", b"[0]\n", b'{"sum": "0"}\n[0]\n[1]\n[2]\n[3]\n[4]\n'])
def test_a_damaged_chunk_is_answered_again(parts, damage):
    with parts.opened(resume=False):
        fill(parts, range(0, ROWS, 5))
    (parts.folder / "000000000005.jsonl").write_bytes(damage)
    with pytest.raises(ValueError, match=r"000000000005\.jsonl is damaged"):
        list(parts.read())
    with parts.opened(resume=True):
        assert list(parts.missing(0, 1)) == [5]


def test_answers_to_other_rows_are_left_alone(parts):
    with parts.opened(resume=False):
        fill(parts, [0])
    other = AnswerParts(parts.folder, {"rows": "others"}, ROWS)
    with pytest.raises(ValueError, match=r"belongs to other rows"), other.opened(resume=True):
        pytest.fail("opened")
    sentence = r"holds answers of a run that was not finished; go on with --resume"
    with pytest.raises(ValueError, match=sentence), parts.opened(resume=False):
        pytest.fail("opened")
    with parts.opened(resume=True):
        assert list(parts.missing(0, 1)) == [5, 10, 15, 20]


def test_a_run_that_answers_nothing_leaves_nothing(parts):
    with pytest.raises(KeyboardInterrupt), parts.opened(resume=False):
        raise KeyboardInterrupt
    assert not parts.folder.exists()


def test_a_file_in_the_folders_place_is_refused(parts):
    parts.folder.write_text("{}")
    sentence = r"a\.part holds answers of an earlier version"
    with pytest.raises(ValueError, match=sentence), parts.opened(resume=True):
        pytest.fail("opened")


def test_a_long_table_has_larger_chunks(tmp_path):
    assert AnswerParts(tmp_path / "a.part", {}, 2**20 + 1).chunk_rows == 4096
