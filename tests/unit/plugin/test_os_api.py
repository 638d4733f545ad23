"""The OS plugin's functions, each as fog05 calls it, and `Os` made of them again."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import scale
from hypothesis import given
from hypothesis import strategies as st

from nativert.errors import Code, NativertError
from nativert.plugin.foreign_os import ForeignOs
from nativert.plugin.os_api import FUNCTIONS, LocalOsApi
from nativert.plugin.string_api import Reply, arguments
from nativert.runtime.download import LIMITS
from nativert.runtime.local_os import LocalOs
from nativert.runtime.protocols import DownloadLimits, Os

CALL = LocalOsApi(LocalOs()).call
OS: Os = ForeignOs(CALL)
ME = (os.getuid(), os.getgid())


def ask(function: str, /, **parameters: object) -> Any:
    reply = CALL(function, arguments(**parameters))
    assert set(reply) in ({"result"}, {"error", "error_msg"})
    return reply.get("result", reply.get("error"))


def stored(content: str) -> str:
    # As the SDK of fog05 makes it.
    return base64.b64encode(content.encode()).hex()


def test_directories(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert ask("dir_exists", dir_path=path) is False
    assert ask("create_dir", dir_path=path) is True
    assert ask("create_dir", dir_path=path) is False
    assert ask("dir_exists", dir_path=path) is True
    (path / "file").write_text("")
    assert ask("remove_dir", dir_path=tmp_path / "a") is True
    assert not (tmp_path / "a").exists()
    assert ask("remove_dir", dir_path=tmp_path / "a") is False


def test_remove_dir_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "link").symlink_to("victim")
    assert ask("remove_dir", dir_path=tmp_path / "link") < 0
    assert ask("remove_dir", dir_path="relative") < 0
    assert (tmp_path / "victim").is_dir()


class Spared(LocalOs):
    """Removes nothing, and says what it was asked to remove."""

    def remove_tree(self, path: Path) -> None:
        raise AssertionError(f"asked to remove {path}")


@pytest.mark.parametrize("path", ["/", "//", "///", "/..", "/tmp/..", "//tmp/..", "/.", "//."])
def test_remove_dir_spares_the_host(path: str) -> None:
    call = LocalOsApi(Spared()).call
    assert call("remove_dir", {"dir_path": path})["error"] < 0


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert ask("file_exists", file_path=path) is False
    assert ask("create_file", file_path=path) is True
    assert ask("store_file", content=stored("grüße;x=1"), file_path=tmp_path, filename="f") is True
    assert ask("create_file", file_path=path) is True
    assert ask("read_file", file_path=path, root=False) == "grüße;x=1"
    assert ask("file_exists", file_path=path) is True
    assert ask("file_exists", file_path=tmp_path) is False
    assert ask("checksum", file_path=path) == hashlib.sha256("grüße;x=1".encode()).hexdigest()
    assert ask("remove_file", file_path=path) is True
    assert ask("remove_file", file_path=path) is False
    assert ask("read_file", file_path=path) < 0
    assert ask("checksum", file_path=path) < 0


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", ".."])
def test_a_stored_file_is_where_it_was_asked_for(tmp_path: Path, name: str) -> None:
    assert ask("store_file", content=stored("x"), file_path=tmp_path, filename=name) < 0
    assert ask("store_file", content="no hex", file_path=tmp_path, filename="f") < 0
    assert list(tmp_path.iterdir()) == []


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xff\xfe")
    assert ask("read_file", file_path=tmp_path / "f") < 0


def test_download(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("content")
    uri = f"file://{tmp_path}/source"
    assert ask("download_file", url=uri, file_path=tmp_path / "target") is True
    assert (tmp_path / "target").read_text() == "content"
    missing = f"file://{tmp_path}/missing"
    assert ask("download_file", url=missing, file_path=tmp_path / "x") == Code.IMAGE.fog05
    assert ask("download_file", url="ftp://x/y", file_path=tmp_path / "x") == Code.IMAGE.fog05


def test_commands(tmp_path: Path) -> None:
    quoted = "printf '%s|' 'a b' \"c;d\""
    assert ask("execute_command", command=quoted, blocking=True) == "a b|c;d|"
    assert ask("execute_command", command="echo a | tr a b", blocking=True) == "b\n"
    external = f"touch {tmp_path}/made; echo told"
    assert ask("execute_command", command=external, blocking=True, external=True) == ""
    assert (tmp_path / "made").exists()
    assert ask("execute_command", command="sleep 0", blocking=False) == ""


def test_processes() -> None:
    for function, number in (("send_sig_int", signal.SIGINT), ("send_sig_kill", signal.SIGKILL)):
        with subprocess.Popen(["sleep", "1000"]) as child:
            assert ask("check_if_pid_exists", pid=child.pid) is True
            assert ask(function, pid=child.pid) is True
            assert child.wait(scale.LONG_S) == -number
        assert ask("check_if_pid_exists", pid=child.pid) is False
        assert ask(function, pid=child.pid) < 0
    for pid in (0, 1):
        assert ask("send_sig_kill", pid=pid) < 0


def test_interfaces() -> None:
    assert ask("get_intf_type", name="lo") == "loopback"
    assert ask("get_intf_type", name="no-such-link") < 0
    assert ask("get_intf_type", name="../../kernel") < 0
    api = LocalOsApi(LocalOs()).call

    def available() -> bool:
        links = api("get_network_informations", {})["result"]
        return next(bool(link["available"]) for link in links if link["intf_name"] == "lo")

    assert available()
    assert api("set_interface_unaviable", {"intf_name": "lo"}) == {"result": True}
    assert not available()
    assert api("set_interface_available", {"intf_name": "lo"}) == {"result": True}
    assert available()
    assert api("set_interface_available", {"intf_name": "no-such"})["error"] < 0


@given(
    st.sampled_from(FUNCTIONS),
    st.dictionaries(st.sampled_from(["dir_path", "pid", "name", "x"]), st.text(max_size=8)),
)
def test_bad_parameters_never_raise(function: str, parameters: dict[str, str]) -> None:
    if "pid" in parameters or function in ("remove_dir", "execute_command", "create_dir"):
        parameters = {"nonsense": "1"}
    reply = CALL(function, parameters)
    assert set(reply) in ({"result"}, {"error", "error_msg"})


# -- and back: Os made of a plugin ---------------------------------------------------------


def test_os_through_both_adapters(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    OS.make_dir(path, mode=0o750, owner=ME)
    OS.make_dir(path, mode=0o700)
    assert path.stat().st_mode & 0o7777 == 0o700
    OS.write_file(path / "f", b"\x00\xffbytes", mode=0o640, owner=ME)
    assert (path / "f").read_bytes() == b"\x00\xffbytes"
    assert (path / "f").stat().st_mode & 0o7777 == 0o640
    OS.write_file(path / "t", "grüße".encode())
    assert OS.read_file(path / "t") == "grüße".encode()
    with pytest.raises(OSError, match="longer"):
        OS.read_file(path / "t", limit=3)
    assert OS.exists(path)
    assert OS.exists(path / "t")
    OS.chown_tree(tmp_path / "a", ME)
    assert OS.free_bytes(tmp_path) > 0
    OS.remove_tree(path / "t")
    OS.remove_tree(tmp_path / "a")
    OS.remove_tree(tmp_path / "a")
    assert not OS.exists(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        OS.read_file(path / "t")


def test_a_download_through_both_adapters(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("content")
    told: list[tuple[int, int | None]] = []
    uri, target = f"file://{tmp_path}/source", tmp_path / "target"
    OS.download(uri, target, limits=LIMITS, progress=lambda *p: told.append(p))
    assert (target.read_text(), told) == ("content", [(7, 7)])
    small = DownloadLimits(3, 1.0, 1.0, 1.0)
    with pytest.raises(OSError, match="longer than 3"):
        OS.download(uri, target, limits=small, progress=None)
    assert not target.exists()


def broken(**answers: object) -> ForeignOs:
    def call(name: str, parameters: Mapping[str, str]) -> Reply:
        return {"result": answers[name]} if name in answers else CALL(name, parameters)

    return ForeignOs(call)


@pytest.mark.parametrize(
    ("answers", "act"),
    [
        # The reference's remove_dir says that all is well and removes nothing.
        ({"remove_dir": None}, lambda host, path: host.remove_tree(path)),
        ({"execute_command": ""}, lambda host, path: host.make_dir(path)),
        ({"execute_command": ""}, lambda host, path: host.chown_tree(path, ME)),
        ({"execute_command": "much"}, lambda host, path: host.free_bytes(path)),
        (
            {"download_file": None},
            lambda host, path: host.download("file:///x", path / "x", limits=LIMITS, progress=None),
        ),
    ],
)
def test_a_plugin_that_only_says_so_is_found_out(
    tmp_path: Path, answers: dict[str, object], act: Callable[[ForeignOs, Path], None]
) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        act(broken(**answers), tmp_path)


@pytest.mark.parametrize("name", ["a b", "$(touch x)", "a;b", "'", "*", "a\nb", "~"])
def test_no_path_is_read_as_a_command(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="cannot be passed"):
        OS.chown_tree(tmp_path / name, ME)
    with pytest.raises(OSError, match="cannot be passed"):
        OS.make_dir(tmp_path / name)


def test_an_error_of_the_plugin_is_ours() -> None:
    host = ForeignOs(lambda *_: {"error": -1, "error_msg": "went wrong"})
    with pytest.raises(NativertError, match="dir_exists /x: went wrong"):
        host.exists(Path("/x"))
