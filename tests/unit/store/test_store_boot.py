"""Facts of this boot: read back as written, and worthless after a reboot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nativert.store import boot
from nativert.store.boot import ExitFacts, Facts, LinkFacts, PortFacts
from nativert.store.paths import Paths

UUID = "0b6f8a5e-2f8e-4d0c-9d59-0b6e0d1f1a01"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


def facts(boot_id: str) -> Facts:
    return Facts(
        boot_id=boot_id,
        state="RUNNING",
        run=3,
        init_pid=812,
        init_start=123456,
        intent="stop",
        netns_inode=4026532000,
        links=(LinkFacts("eth0", "nva1b2c31", 7, "02:00:00:00:00:01", "10.70.0.2"),),
        ports=(PortFacts(None, 8080, 80, "tcp"),),
        cgroup="i-" + UUID,
        details={"argv": ["/bin/true"], "umask": 18},
    )


def exit_document(**changes: object) -> dict[str, object]:
    return {
        "run": 3,
        "boot_id": boot.boot_id(),
        "pid": 900,
        "start": 123460,
        "started_at": 1.5,
        "ended_at": 2.5,
        "exit_code": None,
        "signal": 9,
        "oom_kills": 1,
        "peak_bytes": 4096,
        "cpu_ns": 10,
        "cause": "oom",
        "error": None,
    } | changes


def write_exit(paths: Paths, text: str) -> Path:
    path = paths.instance_run(UUID) / boot.EXIT
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_the_boot_id_is_the_kernels() -> None:
    assert boot.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_facts_come_back_as_written(paths: Paths) -> None:
    assert boot.read_facts(paths, UUID) is None
    written = facts(boot.boot_id())
    boot.write_facts(paths, UUID, written)
    assert boot.read_facts(paths, UUID) == written
    assert [p.name for p in paths.instance_run(UUID).iterdir()] == [boot.FACTS]


def test_facts_of_another_boot_are_none_and_stay_where_they_are(paths: Paths) -> None:
    boot.write_facts(paths, UUID, facts("another"))
    assert boot.read_facts(paths, UUID) is None
    assert (paths.instance_run(UUID) / boot.FACTS).exists()


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_truncated_facts_are_put_aside(cut: int, paths: Paths) -> None:
    boot.write_facts(paths, UUID, facts(boot.boot_id()))
    path = paths.instance_run(UUID) / boot.FACTS
    path.write_bytes(path.read_bytes()[:cut])
    assert boot.read_facts(paths, UUID) is None
    assert [p.name for p in path.parent.iterdir()] == ["boot.json.corrupt"]
    boot.write_facts(paths, UUID, facts(boot.boot_id()))
    assert boot.read_facts(paths, UUID) is not None


def test_a_directory_in_place_of_the_facts_is_put_aside(paths: Paths) -> None:
    (paths.instance_run(UUID) / boot.FACTS).mkdir(parents=True)
    assert boot.read_facts(paths, UUID) is None
    boot.write_facts(paths, UUID, facts(boot.boot_id()))
    assert boot.read_facts(paths, UUID) == facts(boot.boot_id())


def test_how_the_application_ended(paths: Paths) -> None:
    assert boot.read_exit(paths, UUID) is None
    write_exit(paths, json.dumps(exit_document(later_field=1)))
    found = boot.read_exit(paths, UUID)
    assert found is not None
    assert (found.run, found.signal, found.exit_code, found.cause) == (3, 9, None, "oom")
    assert (found.oom_kills, found.peak_bytes, found.cpu_ns) == (1, 4096, 10)


def test_a_failed_exec_names_its_step(paths: Paths) -> None:
    error = {"step": "execve", "errno": 2, "path": "/app/bin/x"}
    write_exit(paths, json.dumps(exit_document(cause="exec-failed", error=error)))
    found = boot.read_exit(paths, UUID)
    assert found is not None
    assert found.error == boot.ExecError("execve", 2, "/app/bin/x")


@pytest.mark.parametrize("change", [{"boot_id": "another"}, {"run": "3"}, {"exit_code": "0"}])
def test_an_exit_of_another_boot_or_form_is_no_evidence(
    change: dict[str, object], paths: Paths
) -> None:
    path = write_exit(paths, json.dumps(exit_document(**change)))
    assert boot.read_exit(paths, UUID) is None
    assert path.exists() == ("boot_id" in change)


def test_the_struct_of_an_exit_needs_what_identifies_it() -> None:
    with pytest.raises(TypeError):
        ExitFacts(run=1, boot_id="b")  # type: ignore[call-arg]
