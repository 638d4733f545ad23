"""What README, docs/ and examples/ show is run as it is shown; so is the demo."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import scale
from nodes import log_text, run_inside, until

from nativert.errors import NativertError
from nativert.fdu.descriptor import decode
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor

pytestmark = [pytest.mark.root, pytest.mark.netns]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(yaml|console)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
# The pages publish the port that readers expect; here it may be somebody's.
SHOWN_PORT, PORT = "8080", 25480

Cli = Callable[..., subprocess.CompletedProcess[str]]


def blocks(page: Path, kind: str) -> list[str]:
    """Return the fenced blocks of a page, with a port of the tests."""
    found = [m for m in BLOCK.finditer(page.read_text()) if m[2] == kind]
    return [textwrap.dedent(m[3]).replace(SHOWN_PORT, str(PORT)) for m in found]


def settled(node: Node, instance: str) -> str:
    """Return the state that the application is in for good: it runs, or has ended well."""
    try:
        ended = node.wait(instance, timeout_s=0.5)
    except NativertError:
        return node.get(instance).state
    assert ended.end is not None
    assert ended.end.code == 0, log_text(node, instance)
    return "ENDED"


def bring_up(node: Node, text: str) -> str:
    """Define, configure and run the descriptor in *text*; return the UUID."""
    instance = node.define(decode(text.encode(), source="page")).instance
    node.configure(instance)
    node.run(instance)
    return instance


def page_of(port: int) -> tuple[int, bytes]:
    """Return what the web server at a published port answers."""

    def ask() -> tuple[int, bytes] | None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=scale.LONG_S)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return None
        finally:
            connection.close()

    answer = until(ask, what="the web server answers")
    assert answer is not None
    return answer


DESCRIPTORS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("text", DESCRIPTORS)
def test_every_descriptor_of_a_page_runs(node: Node, cli: Cli, tmp_path: Path, text: str) -> None:
    (tmp_path / "shown.yaml").write_text(text)
    assert cli("validate", str(tmp_path / "shown.yaml")).returncode == 0
    supervisor = Supervisor(node)
    supervisor.start()
    try:
        assert settled(node, bring_up(node, text)) in ("RUNNING", "ENDED")
    finally:
        supervisor.close()


def masked(output: str) -> list[list[str]]:
    """Return the words of each line; numbers, sizes and ids are not the same twice."""
    words = [line.split() for line in output.strip().splitlines()]
    # Without instances a launcher leaves by itself after some seconds: gc may come too late.
    words = [line for line in words if line[:2] != ["process", "launcher"]]
    if Path("/run/systemd/system").is_dir():
        # A scope goes with its last process, so that gc may come too late to remove it.
        words = [line for line in words if line[:1] != ["cgroup"]]
    return [["#" if re.search(r"\d", word) else word for word in line] for line in words]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "console")], ids=lambda p: p.name)
def test_every_command_of_a_page_works_and_prints_what_is_shown(
    page: Path, node: Node, root: Path, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.fail("needs curl: scripts/setup --apps")
    for text in blocks(page, "yaml"):
        if named := re.match(r"# (\S+\.yaml)\n", text):
            (tmp_path / named[1]).write_text(text)
    environment = os.environ | {
        "NATIVERT_ROOT": str(root),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    for block in blocks(page, "console"):
        for typed in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, shown = typed.partition("\n")
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line],
                env=environment,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=scale.LONG_S,
            )
            assert done.returncode == 0, (line, done.stdout)
            if shown:
                assert masked(done.stdout) == masked(shown), line


@pytest.mark.apps
@pytest.mark.parametrize("name", ["nginx", "python-web"])
def test_the_web_servers_of_the_examples_answer(node: Node, name: str) -> None:
    text = (ROOT / "examples" / f"{name}.yaml").read_text().replace(SHOWN_PORT, str(PORT))
    bring_up(node, text)
    status, body = page_of(PORT)
    assert status == 200
    assert b"<html" in body.lower()


@pytest.mark.apps
def test_redis_of_the_examples_answers(node: Node) -> None:
    instance = bring_up(node, (ROOT / "examples/redis.yaml").read_text())
    until(lambda: run_inside(node, instance, "redis-cli", "ping")[1] == "PONG\n", what="PONG")


@pytest.mark.apps
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hello-c", "hello, from C\nhost hello-c, pid 2, uid 1000"),
        ("image-from-tar", "hello, edge\nthis text came with the image\nconfigured 20"),
    ],
)
def test_the_examples_that_are_built_say_what_they_promise(
    node: Node, tmp_path: Path, name: str, says: str
) -> None:
    subprocess.run(
        ["make", "-C", ROOT / "examples" / name, f"OUT={tmp_path}"],
        check=True,
        timeout=scale.LONG_S,
    )
    instance = bring_up(node, next(tmp_path.glob("*.yaml")).read_text())
    assert settled(node, instance) == "ENDED"
    assert log_text(node, instance).startswith(says)


def test_every_example_is_run_by_a_test() -> None:
    there = {path.name for path in (ROOT / "examples").iterdir() if not path.name.startswith(".")}
    documents = {"nginx.yaml", "python-web.yaml", "redis.yaml", "hello-c", "image-from-tar"}
    # tests/unit/agent/test_agent_config.py reads the configuration, test_migration_command.py
    # moves the counter.
    assert there == {*documents, "config.toml", "migration.yaml"}


@pytest.mark.slow
@pytest.mark.apps
def test_the_demo_shows_what_it_tells() -> None:
    done = subprocess.run(
        [ROOT / "scripts/demo"], capture_output=True, text=True, timeout=scale.seconds(240), cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert done.stdout.endswith("Everything was as expected, and nothing is left.\n")


@pytest.mark.slow
@pytest.mark.apps
def test_an_interrupted_demo_leaves_nothing() -> None:
    with subprocess.Popen(
        [ROOT / "scripts/demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        assert demo.stdout is not None
        said = ""
        for line in demo.stdout:
            said += line
            if line.startswith("3. Pause"):
                demo.send_signal(signal.SIGINT)
        demo.wait(scale.LONG_S)
    assert demo.returncode == 128 + signal.SIGINT, said
    assert "FAILED" not in said
    work = re.search(r"NATIVERT_ROOT=(\S+)/node", said)
    assert work is not None
    assert not Path(work[1]).exists()
    registry = Path("/var/lib/nativert/host.json")
    if registry.exists():
        nodes = json.loads(registry.read_text())["nodes"].values()
        assert not [node for node in nodes if node["path"].startswith(work[1])]
