"""What a child tells when it has no memory left to find words."""

from __future__ import annotations

import errno
import json
import os

import pytest

from nativert.launcher import child
from nativert.launcher.plan import Program


def test_a_report_that_cannot_be_made_is_replaced_by_the_one_that_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, made = child._report, []

    def once(step: str, error: BaseException) -> bytes:
        if made:
            raise MemoryError
        made.append(step)
        return make(step, error)

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(child, "_report", once)
    monkeypatch.setattr(os, "_exit", end)
    # The first step fails: nothing of this process is changed.
    monkeypatch.setattr(os, "setsid", lambda: os.stat("/no/such/file"))
    program = Program(["x"], {}, "/", 0, 0, [], 0, {}, 0)
    report, report_w = os.pipe()
    with pytest.raises(SystemExit) as ended:
        child._become(program, None, (0, 1, 2), report_w, terminal=False)  # type: ignore[arg-type]
    os.close(report_w)
    with open(report, "rb") as pipe:
        told = json.load(pipe)["error"]
    assert ended.value.code == 127
    assert (told["step"], told["errno"]) == ("limits", errno.ENOMEM)
