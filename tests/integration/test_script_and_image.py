"""What configure prepares for the application: the script's work, and an image."""

from __future__ import annotations

import hashlib
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import scale
from nodes import log_text, make_descriptor, run_inside, start

from nativert.errors import Code, NativertError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


def test_the_script_runs_inside_before_the_application(node: Node) -> None:
    configuration = {
        "conf_type": "SCRIPT",
        "script": "id -u > /data/made\nhostname >> /data/made\n",
    }
    app = node.define(
        make_descriptor(name="scripted", shell="cat made", configuration=configuration)
    ).instance
    assert node.configure(app).state == "CONFIGURED"
    node.run(app)
    node.wait(app, timeout_s=scale.LONG_S)
    assert log_text(node, app) == "1000\nscripted\n"


def test_a_failing_script_fails_configure_with_its_output(node: Node, root: Path) -> None:
    script = "echo to stdout; echo to stderr >&2; (setsid sleep 1000 &); exit 9"
    app = node.define(
        make_descriptor(shell=SLEEP, veth=True, configuration={"script": script})
    ).instance
    with pytest.raises(NativertError) as failed:
        node.configure(app)
    assert failed.value.code is Code.CONFIGURE
    assert "code 9" in failed.value.message
    assert "to stdout" in failed.value.message
    assert "to stderr" in failed.value.message
    assert node.get(app).state == "DEFINED"
    assert list((root / "run/nativert/i").iterdir()) == []
    assert {found.name for found in node.gc(dry_run=True) if app in found.name} == set()


@pytest.fixture(scope="module")
def static_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs nothing around it: it says where it is and what it was given."""
    directory = tmp_path_factory.mktemp("static")
    source = directory / "hello.c"
    source.write_text(
        "#include <stdio.h>\n#include <dirent.h>\n#include <unistd.h>\n"
        "int main(int n, char **v) {\n"
        '  DIR *d = opendir("/"); struct dirent *e;\n'
        '  printf("%s %d\\n", v[0], getuid());\n'
        "  while ((e = readdir(d))) if (e->d_name[0] != '.') printf(\"%s \", e->d_name);\n"
        '  printf("\\n"); return n - 1; }\n'
    )
    subprocess.run(["gcc", "-static", "-O1", "-o", directory / "hello", source], check=True)
    return directory / "hello"


@pytest.mark.apps
def test_an_image_as_the_whole_root(node: Node, static_program: Path, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(static_program, "bin/hello")
        passwd = tmp_path / "passwd"
        passwd.write_text("root:x:0:0::/:/bin/sh\nsvc:x:77:77::/:/bin/sh\n")
        tar.add(passwd, "etc/passwd")
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    image = {"name": "i", "uri": f"file://{archive}", "checksum": checksum, "format": "tar.gz"}
    app = start(
        node,
        binary="hello",
        args=["a", "b"],
        image=image,
        native={"rootfs": "image", "workdir": "/", "user": "svc"},
    )
    row = node.wait(app, timeout_s=scale.LONG_S)
    assert row.end is not None
    assert row.end.exit_code == 2
    first, second = log_text(node, app).splitlines()
    assert first == "/bin/hello 77"
    assert set(second.split()) == {"bin", "etc", "data", "dev", "proc", "run", "sys", "tmp", "var"}
    node.clean(app)
    # What configure unpacked is not left; data and log are.
    left = {path.name for path in node._context.paths.instance_lib(app).iterdir()}
    assert left == {"data", "log"}


@pytest.mark.apps
def test_an_image_at_app_and_its_bin_in_the_path(
    node: Node, static_program: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "tree"
    (directory / "bin").mkdir(parents=True)
    program = directory / "bin" / "hello"
    program.write_bytes(static_program.read_bytes())
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    image = {"name": "i", "uri": f"file://{directory}", "checksum": "", "format": "directory"}
    app = start(node, binary="hello", image=image, native={"workdir": "/app"})
    node.wait(app, timeout_s=scale.LONG_S)
    assert log_text(node, app).startswith("/app/bin/hello 1000\n")
    script = "which hello; touch /app/x || echo read-only"
    code, text = run_inside(node, app, "sh", "-c", script)
    assert code == 0
    assert text.splitlines()[0] == "/app/bin/hello"
    assert text.splitlines()[-1] == "read-only"


def test_a_single_binary_as_image(node: Node, tmp_path: Path) -> None:
    binary = tmp_path / "true"
    binary.write_bytes(Path("/bin/true").read_bytes())
    image = {"name": "i", "uri": f"file://{binary}", "checksum": "", "format": "binary"}
    app = start(node, image=image, binary="true")
    row = node.wait(app, timeout_s=scale.LONG_S)
    assert row.end is not None
    assert row.end.exit_code == 0
