"""The background deleter: rounds, failures and the end, without a kernel."""

from __future__ import annotations

import threading

import pytest
import scale

from nativert.isolation.network import deleter
from nativert.isolation.network.deleter import GroupDeleter

DEADLINE_S = scale.LONG_S


def test_what_comes_during_a_round_goes_with_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    started, go = threading.Event(), threading.Event()
    groups: list[int] = []

    def delete_group(_: object, group: int) -> None:
        groups.append(group)
        started.set()
        assert go.wait(DEADLINE_S)

    monkeypatch.setattr(deleter, "delete_group", delete_group)
    made = GroupDeleter(7)
    made.delete()
    assert started.wait(DEADLINE_S)
    for _ in range(50):
        made.delete()
    go.set()
    made.flush()
    assert groups == [7, 7]
    made.close()


def test_close_finishes_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    monkeypatch.setattr(deleter, "delete_group", lambda _, group: groups.append(group))
    made = GroupDeleter(7)
    made.delete()
    made.close()
    assert groups == [7]
    made.close()
    with pytest.raises(RuntimeError, match="closed"):
        made.delete()


def test_unused_it_has_no_thread() -> None:
    before = threading.active_count()
    made = GroupDeleter(7)
    assert threading.active_count() == before
    made.flush()
    made.close()


@pytest.mark.parametrize("end", ["flush", "close"])
def test_a_refusal_is_raised_once(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "refused")

    monkeypatch.setattr(deleter, "delete_group", refuse)
    made = GroupDeleter(7)
    made.delete()
    with pytest.raises(OSError, match="refused"):
        getattr(made, end)()
    made.close()
