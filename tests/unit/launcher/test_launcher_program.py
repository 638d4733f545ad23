"""What becomes of an init that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nativert.launcher import server


def test_an_init_that_is_not_built_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "__file__", str(tmp_path / "server.py"))
    with pytest.raises(FileNotFoundError, match="run scripts/setup") as missing:
        server.open_program()
    assert missing.value.filename == str(tmp_path / "init/nativert-init")
