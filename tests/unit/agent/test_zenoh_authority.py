"""`nativert zenoh init`: what it makes, for whom, and that it makes it whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from nativert.agent import config as configuration
from nativert.agent.authority import certificates, folder, installation
from nativert.agent.authority.folder import Wanted
from nativert.errors import Code, NativertError
from nativert.plugin import zenoh_credentials

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

TWO = Wanted(nodes={"a": ["10.0.0.1", "a.example"], "b": []}, clients=("me",), plugins=("p",))


def make(directory: Path, wanted: Wanted = TWO, *, password: bool = False, force: bool = False):
    return folder.create(directory, wanted, port=7000, password=password, force=force)


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def census(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


def test_everybody_gets_a_certificate_of_the_role(tmp_path: Path) -> None:
    made = make(tmp_path / "d")
    below = {str(path.relative_to(tmp_path / "d")) for path in made}
    assert below == {"nodes/a", "nodes/b", "clients/me", "plugins/p"}
    ca = tmp_path / "d/ca.pem"
    for path, role in (
        ("nodes/a/zenoh/node.pem", "nativert-node"),
        ("clients/me/client.pem", "nativert-client"),
        ("plugins/p/plugin.pem", "nativert-plugin"),
    ):
        certificate = tmp_path / "d" / path
        assert "OK" in openssl("verify", "-CAfile", ca, "-purpose", "sslclient", certificate)
        subject = openssl("x509", "-in", certificate, "-noout", "-subject", "-nameopt", "RFC2253")
        assert subject.strip() == f"subject=CN={role}"
        assert (certificate.parent / "ca.pem").read_bytes() == ca.read_bytes()
    node = openssl("x509", "-in", tmp_path / "d/nodes/a/zenoh/node.pem", "-noout", "-text")
    for name in ("DNS:a,", "IP Address:10.0.0.1", "DNS:a.example", "IP Address:127.0.0.1"):
        assert name in node
    client = tmp_path / "d/clients/me/client.pem"
    # Nobody passes for a node with a client's key.
    assert "Server" not in openssl("x509", "-in", client, "-noout", "-text")


def test_no_secret_can_be_read_by_others(tmp_path: Path) -> None:
    make(tmp_path / "d", password=True)
    assert (tmp_path / "d").stat().st_mode & 0o077 == 0
    files = [path for path in (tmp_path / "d").rglob("*") if path.is_file()]
    secret = [path for path in files if path.suffix in (".key", ".toml") or path.name == "users"]
    assert len(secret) >= 8
    assert [path for path in secret if path.stat().st_mode & 0o777 != 0o600] == []


def test_a_node_finds_its_keys_and_the_others(tmp_path: Path) -> None:
    make(tmp_path / "d")
    etc = tmp_path / "etc"
    shutil.copytree(tmp_path / "d/nodes/b", etc)
    zenoh = configuration.read(etc / "config.toml", needed=False).zenoh
    assert zenoh is not None
    assert zenoh.listen == ("tls/0.0.0.0:7000",)
    assert zenoh.connect == ("tls/10.0.0.1:7000",)
    assert zenoh.scouting == ""
    assert zenoh.tls is not None
    assert zenoh.tls.users is None
    for path in (zenoh.tls.ca, zenoh.tls.certificate, zenoh.tls.key):
        assert Path(path).is_relative_to(etc)
        assert Path(path).is_file()
    shown = zenoh_credentials.read(tmp_path / "d/clients/me/credentials.toml")
    assert shown.certificate == str(tmp_path / "d/clients/me/client.pem")


def test_with_passwords_each_role_has_one(tmp_path: Path) -> None:
    make(tmp_path / "d", password=True)
    text = (tmp_path / "d/users").read_text()
    users = dict(line.split(":") for line in text.splitlines())
    assert sorted(users) == ["nativert-client", "nativert-node", "nativert-plugin"]
    assert len(set(users.values())) == 3
    assert all(len(password) >= 32 for password in users.values())
    assert (tmp_path / "d/nodes/a/zenoh/users").read_text() == text
    for path, role in (("clients/me", "nativert-client"), ("plugins/p", "nativert-plugin")):
        shown = zenoh_credentials.read(tmp_path / "d" / path / "credentials.toml")
        assert (shown.user, shown.password) == (role, users[role])
        assert shown.certificate is None


def test_more_is_made_with_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path / "d")
    before = census(tmp_path / "d")
    made = folder.extend(tmp_path / "d", Wanted(nodes={"c": ["::5"]}), force=False)
    assert made == [tmp_path / "d/nodes/c"]
    after = census(tmp_path / "d")
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"authority.json"}
    assert json.loads(after["authority.json"])["nodes"]["c"] == ["::5"]
    assert "tls/10.0.0.1:7000" in after["nodes/c/conf.d/zenoh.toml"].decode()
    assert "OK" in openssl("verify", "-CAfile", tmp_path / "d/ca.pem", made[0] / "zenoh/node.pem")


def test_nothing_is_replaced_unless_told(tmp_path: Path) -> None:
    make(tmp_path / "d")
    before = census(tmp_path / "d")
    with pytest.raises(NativertError, match="is there already") as there:
        make(tmp_path / "d")
    assert there.value.code is Code.NAME_TAKEN
    with pytest.raises(NativertError, match="nodes/a: is there already"):
        folder.extend(tmp_path / "d", Wanted(nodes={"z": [], "a": []}), force=False)
    assert census(tmp_path / "d") == before
    folder.extend(tmp_path / "d", Wanted(nodes={"a": ["10.0.0.9"]}), force=True)
    after = census(tmp_path / "d")
    assert after["ca.key"] == before["ca.key"]
    assert after["nodes/a/zenoh/node.key"] != before["nodes/a/zenoh/node.key"]
    make(tmp_path / "d", force=True)
    assert census(tmp_path / "d")["ca.key"] != before["ca.key"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_force_replaces_nothing_but_an_authority(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/mine").write_text("kept")
    with pytest.raises(NativertError, match="is there already"):
        make(tmp_path / "d", force=True)
    assert census(tmp_path / "d") == {"mine": b"kept"}


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    real, left = certificates._openssl, at

    def fails(*arguments: str) -> None:
        nonlocal left
        if left == 0:
            raise NativertError("openssl: fails")
        left -= 1
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_openssl", fails)
        with pytest.raises(NativertError, match="openssl: fails"):
            make(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "d")
    before = census(tmp_path / "d")
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_openssl", fails)
        for force in (False, True):
            left = min(at, 1)
            with pytest.raises(NativertError, match="openssl: fails"):
                wanted = Wanted(nodes={"y": [], "a": []} if force else {"y": [], "z": []})
                folder.extend(tmp_path / "d", wanted, force=force)
    assert census(tmp_path / "d") == before
    assert not [path for path in (tmp_path / "d").iterdir() if path.name.startswith(".")]


def test_without_openssl_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativertError, match="openssl is not installed") as missing:
        make(tmp_path / "d")
    assert missing.value.code is Code.REQUIREMENTS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(nodes={"../a": []}),
        Wanted(nodes={"a b": []}),
        Wanted(nodes={}, clients=("a/b",)),
        Wanted(nodes={"a": ["1.2.3.4:80/x"]}),
        Wanted(nodes={"a": ["x\nCN = y"]}),
        Wanted(nodes={"a": [""]}),
    ],
)
def test_names_and_addresses_are_checked(tmp_path: Path, wanted: Wanted) -> None:
    with pytest.raises(NativertError, match=r"is not a name|is neither an IP") as refused:
        make(tmp_path / "d", wanted)
    assert refused.value.code is Code.USAGE
    assert list(tmp_path.iterdir()) == []


def test_who_has_no_authority_cannot_make_more(tmp_path: Path) -> None:
    with pytest.raises(NativertError, match="no authority is there") as missing:
        folder.extend(tmp_path / "d", TWO, force=False)
    assert missing.value.code is Code.NOT_FOUND


def test_this_host_gets_its_files(tmp_path: Path) -> None:
    make(tmp_path / "d")
    etc = tmp_path / "etc/nativert"
    etc.mkdir(parents=True)
    (etc / "config.toml").write_text('log_level = "debug"\n')
    installation.check(etc, force=False)
    goals = installation.install(tmp_path / "d/nodes/a", etc)
    assert {str(goal.relative_to(etc)) for goal in goals} == {
        "conf.d/zenoh.toml", "zenoh/ca.pem", "zenoh/node.key", "zenoh/node.pem",
    }  # fmt: skip
    assert list(etc.rglob(".*")) == []
    assert (etc / "zenoh/node.key").stat().st_mode & 0o777 == 0o600
    assert configuration.read(etc / "config.toml", needed=True).zenoh is not None
    with pytest.raises(NativertError, match="is there already"):
        installation.check(etc, force=False)
    installation.check(etc, force=True)
    (etc / "config.toml").write_text("[zenoh]\n")
    with pytest.raises(NativertError, match="has a table zenoh"):
        installation.check(etc, force=True)
