"""Wheels of what is installed here: a wheelhouse for tests, without a package index."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


def make_wheelhouse(directory: Path, *, version: str = "") -> Path:
    """Fill *directory* as scripts/wheelhouse does, with nativert as this checkout has it.

    It may call itself by another *version*, to be an upgrade.
    """
    directory.mkdir(parents=True)
    pinned = (SCRIPTS / "requirements.txt").read_text()
    names = re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE)
    wheels = [_repack(name, directory) for name in names]
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    wheels.append(_as_version(directory / done.stdout.split()[-1], version))
    lines = []
    for wheel in wheels:
        name, number = wheel.name.split("-")[:2]
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name.replace('_', '-')}=={number} --hash=sha256:{digest}\n")
    (directory / "requirements.txt").write_text("".join(lines))
    python = ".".join(map(str, sys.version_info[:2]))
    (directory / "platform").write_text(f"Python {python} {sysconfig.get_platform()}\n")
    (directory / "debian-packages").write_text("python3-venv\n")
    for script in ("install", "uninstall"):
        shutil.copy(SCRIPTS / script, directory)
    return directory


def _repack(name: str, directory: Path) -> Path:
    found = metadata.distribution(name)
    normal = re.sub(r"[-.]+", "_", found.metadata["Name"].lower())
    tags = re.findall(r"^Tag: (\S+)", found.read_text("WHEEL") or "", re.MULTILINE)
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    tag = "-".join(".".join(sorted(set(part))) for part in parts)
    wheel = directory / f"{normal}-{found.version}-{tag}.whl"
    own = f"{normal}-{found.version}.dist-info"
    record = ""
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in found.files or ():
            parts = file.parts
            if ".." in parts or "__pycache__" in parts:
                continue
            # The record is made anew: pip has put in what it made itself.
            inside = "/".join((own, *parts[1:]) if parts[0].endswith(".dist-info") else parts)
            if parts[-1] in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                continue
            archive.write(str(file.locate()), inside)
            record += f'"{inside}",,\n'
        archive.writestr(f"{own}/RECORD", record + f'"{own}/RECORD",,\n')
    return wheel


def _as_version(wheel: Path, version: str) -> Path:
    former = wheel.name.split("-")[1]
    if version in ("", former):
        return wheel
    made = wheel.with_name(wheel.name.replace(f"-{former}-", f"-{version}-", 1))
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename in ("nativert/__init__.py", f"nativert-{former}.dist-info/METADATA"):
                data = data.replace(former.encode(), version.encode())
            elif entry.filename.endswith("/RECORD"):
                # Without sums, which are others now.
                names = [line.split(b",")[0] for line in data.splitlines()]
                data = b"".join(b"%s,,\n" % name for name in names)
                data = data.replace(b"nativert-" + former.encode(), b"nativert-" + version.encode())
            entry.filename = entry.filename.replace(f"nativert-{former}", f"nativert-{version}", 1)
            new.writestr(entry, data)
    wheel.unlink()
    return made
