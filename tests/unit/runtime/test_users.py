"""Who the application is: names and numbers against an instance's passwd(5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from nativert.errors import NativertError
from nativert.runtime import users
from nativert.runtime.users import User

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment:x:5:5
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
web:x:33:44::/var/www:/bin/sh
huge:x:100000:100000::/:/bin/sh
digits:x:{digits}:7::/:/bin/sh
group:x:50:{digits}::/:/bin/sh
words:x:abc:def::/:/bin/sh
short:x
+::::::
""".format(digits="9" * 5000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    return tmp_path


def test_a_name_gives_the_ids_of_its_line(root: Path) -> None:
    assert users.find("web", root) == User(33, 44, "web", known=True)
    assert users.find("nobody", root) == User(65534, 65534, "nobody", known=True)


def test_a_number_is_its_own_group(root: Path) -> None:
    assert users.find(33, root) == User(33, 33, "web", known=True)
    assert users.find(1000, root) == User(1000, 1000, "app", known=False)


@pytest.mark.parametrize("name", ["absent", "short", "words", "digits", "", "# a comment", "+"])
def test_a_name_that_is_not_there_is_refused(root: Path, name: str) -> None:
    with pytest.raises(NativertError, match="no such user"):
        users.find(name, root)


@pytest.mark.parametrize("name", ["huge", "group"])
def test_ids_that_an_instance_does_not_have_are_refused(root: Path, name: str) -> None:
    with pytest.raises(NativertError, match=r"outside of 0\.\.65535"):
        users.find(name, root)


def test_without_a_passwd_a_number_is_taken_and_a_name_is_not(tmp_path: Path) -> None:
    assert users.find(1000, tmp_path) == User(1000, 1000, "app", known=False)
    with pytest.raises(NativertError, match="no such user"):
        users.find("web", tmp_path)


def test_the_application_is_added_to_what_is_there(root: Path, tmp_path: Path) -> None:
    user = users.find(1000, root)
    text = users.passwd_with(user, root)
    assert text.startswith(PASSWD.encode().rstrip())
    assert text.endswith(b"\napp:x:1000:1000::/data:/bin/sh\n")
    alone = users.passwd_with(user, tmp_path / "absent")
    assert alone.count(b"\n") == 2


def test_a_link_of_an_image_is_not_followed_to_the_host(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("stolen:x:77:77::/:/bin/sh\n")
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc/passwd").symlink_to(tmp_path / "secret")
    with pytest.raises(NativertError, match="no such user"):
        users.find("stolen", image)
