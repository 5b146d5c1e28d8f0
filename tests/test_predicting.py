"""Items as they come: answered at once, in order, and what reading them raised is raised."""

import threading

import pytest

from modernbert.predicting import ready


def test_what_is_there_is_taken_and_what_is_not_is_not_waited_for():
    go_on = threading.Event()

    def items():
        yield from ("a", "b")
        assert go_on.wait(20)
        yield "c"

    windows = ready(items())
    first = next(windows)
    if len(first) < 2:  # the reader was slower than we
        first += next(windows)
    assert first == ["a", "b"]
    go_on.set()
    assert list(windows) == [["c"]]


def test_all_items_come_in_order_however_they_are_cut():
    found = list(ready(iter(range(5000))))
    assert [item for window in found for item in window] == list(range(5000))
    assert max(map(len, found)) <= 1024


def test_an_error_comes_behind_the_items_before_it():
    def items():
        yield 1
        raise ValueError("line 2")

    windows = ready(items())
    assert next(windows) == [1]
    with pytest.raises(ValueError, match="line 2"):
        next(windows)


def test_nothing_gives_nothing():
    assert list(ready(iter(()))) == []
