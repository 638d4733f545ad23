"""What a refusal must look like, and that nothing of the instance is left after it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import census
import pytest
from nodes import make_descriptor

from nativert.errors import Code, NativertError
from nativert.runtime.node import Node


@contextmanager
def refused(code: Code, *words: str) -> Iterator[None]:
    """The block raises a NativertError with this code, whose text has these words."""
    with pytest.raises(NativertError) as caught:
        yield
    text = str(caught.value)
    assert caught.value.code is code, text
    for word in words:
        assert word in text, text
    # One line, no full stop, no Python in it.
    assert "\n" not in caught.value.message
    assert not text.endswith(".")
    assert "Traceback" not in text
    assert "Errno" not in text, text


def assert_nothing_of(node: Node, ref: str) -> None:
    """Nothing of the instance is on the host but its entry, its empty data and its log."""
    assert node.get(ref).state == "DEFINED"
    context = node._context
    assert f"i-{ref}" not in context.driver.names()
    assert not context.paths.instance_run(ref).exists()
    assert context.network.links() == ()
    assert context.claims.ports(context.identity.id).get(ref) is None
    left = [path for path in context.paths.instance_lib(ref).rglob("*") if path.is_file()]
    assert left == []
    assert [f for f in node.gc(dry_run=True) if ref in f.name or f.kind == "link"] == []
    assert not [line for line in census.take() if ref[:8] in line]


def configure_refused(node: Node, code: Code, *words: str, **fields: Any) -> str:
    ref = node.define(make_descriptor(**fields)).instance
    with refused(code, *words):
        node.configure(ref)
    assert_nothing_of(node, ref)
    return ref


def tar_with(*members: tarfile.TarInfo) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        program = tarfile.TarInfo("bin/app")
        program.mode, program.size = 0o755, 10
        tar.addfile(program, io.BytesIO(b"#!/bin/sh\n"))
        for member in members:
            tar.addfile(member)
    return archive.getvalue()


def member(name: str, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def image_of(path: Path, **fields: str) -> dict[str, object]:
    return {"uri": f"file://{path}", **fields}
