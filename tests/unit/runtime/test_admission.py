"""What a node refuses because it has not what an FDU requires."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from nativert.errors import Code, NativertError
from nativert.fdu.descriptor import ComputationRequirements
from nativert.runtime import admission
from nativert.runtime.local_os import LocalOs


class Frequency(NamedTuple):
    current: float
    min: float
    max: float


def refused(what: str, **fields: Any) -> NativertError:
    with pytest.raises(NativertError, match=rf"computation_requirements\.{what}") as e:
        admission.check_machine(ComputationRequirements(**fields))
    assert e.value.code is Code.REQUIREMENTS
    return e.value


def test_nothing_required_is_always_there(tmp_path: Path) -> None:
    admission.check_machine(ComputationRequirements())
    admission.check_free(ComputationRequirements(), LocalOs(), tmp_path)


@pytest.mark.parametrize(
    ("machine", "words"),
    [("x86_64", ["x86_64", "amd64", "AMD64", "x86-64"]), ("aarch64", ["aarch64", "arm64"])],
)
def test_an_architecture_has_several_names(
    monkeypatch: pytest.MonkeyPatch, machine: str, words: list[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for word in words:
        admission.check_machine(ComputationRequirements(cpu_arch=word))
    other = "arm64" if machine == "x86_64" else "amd64"
    assert machine in str(refused("cpu_arch", cpu_arch=other))


def test_cpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7})
    admission.check_machine(ComputationRequirements(cpu_min_count=3))
    assert "4 required, this node has 3" in str(refused("cpu_min_count", cpu_min_count=4))


def test_a_frequency_is_compared_only_where_the_machine_tells_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told(*frequencies: Frequency) -> None:
        monkeypatch.setattr(psutil, "cpu_freq", lambda *, percpu: list(frequencies))

    told(Frequency(800, 400, 1800), Frequency(800, 400, 2400))
    admission.check_machine(ComputationRequirements(cpu_min_freq=2400))
    refused("cpu_min_freq", cpu_min_freq=2401)
    told(Frequency(2000, 0, 0))
    refused("cpu_min_freq", cpu_min_freq=2001)
    for silent in ((), (Frequency(0, 0, 0),)):
        told(*silent)
        admission.check_machine(ComputationRequirements(cpu_min_freq=9999))


@pytest.mark.parametrize("fields", [{"ram_size_mb": 1e9}, {"storage_size_gb": 1e9}])
def test_what_is_not_free_is_refused(tmp_path: Path, fields: dict[str, float]) -> None:
    (name,) = fields
    with pytest.raises(NativertError, match=rf"{name}: 1000000000\.0 required") as e:
        admission.check_free(ComputationRequirements(**fields), LocalOs(), tmp_path)
    assert e.value.code is Code.REQUIREMENTS
    small = ComputationRequirements(**dict.fromkeys(fields, 0.001))
    admission.check_free(small, LocalOs(), tmp_path)
