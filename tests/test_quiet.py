"""`set_quiet`: no progress bar and no message, and both again."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from small_runs import build

from peftcls import set_quiet
from peftcls.logs import logger, show_messages, shows_bars, without_bars


@pytest.fixture
def messages():
    """Messages are shown on the standard output, and afterwards all is as it was."""
    handlers, level = list(logger.handlers), logger.level
    show_messages(logging.INFO)
    yield
    set_quiet(False)
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_quiet_training_shows_nothing(bert, text_rows, tmp_path, messages, capsys):
    set_quiet()
    build(bert, tmp_path / "quiet", text_rows).fit(text_rows)
    logger.warning("a warning")
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""
    set_quiet(False)
    build(bert, tmp_path / "loud", text_rows).fit(text_rows)
    shown = capsys.readouterr()
    assert "saved to" in shown.out
    assert "row" in shown.err


def test_an_error_is_raised_all_the_same(bert, text_rows, tmp_path, messages):
    set_quiet(True)
    with pytest.raises(ValueError, match="has no column 'text'"):
        build(bert, tmp_path / "one", text_rows).fit([{"label": "yes"}])


@pytest.mark.parametrize("wrong", [None, 1, "yes"])
def test_the_switch_is_on_or_off(wrong, messages):
    with pytest.raises(ValueError, match="expected True or False"):
        set_quiet(wrong)


def test_bars_come_back_when_the_last_block_ends():
    def hide(_):
        with without_bars():
            return shows_bars()

    with ThreadPoolExecutor(4) as threads, without_bars():
        assert not any(threads.map(hide, range(100)))
        assert not shows_bars()
    assert shows_bars()
