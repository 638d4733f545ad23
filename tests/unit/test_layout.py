"""What the project promises about its own files."""

import re
import subprocess
import textwrap
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nativert.fdu.descriptor import decode

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

SOURCES = sorted((ROOT / "nativert").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = [
    path
    for path in [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"]
    if path.suffix == "" and path.is_file()
]
# Runs inside an instance, where there is nothing to import it from: one file by necessity.
SELF_CONTAINED = {"tests/integration/escape_audit.py"}
BLOCK = re.compile(r"^( *)```yaml\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
PLACES = {"@OUT@": "/srv/out", "@SHA256@": "0" * 64}

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError|not implemented)\b")
EMPTY_NAMES = {"utils", "helpers", "helper", "manager", "common", "misc"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return (line, text) of each yaml block, without the indentation that a list gives it."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start()) + 1, textwrap.dedent(match[2]))
        for match in BLOCK.finditer(text)
    ]


READ = [path for path in SOURCES + TESTS if name(path) not in SELF_CONTAINED]


@pytest.mark.parametrize("path", READ, ids=name)
def test_a_file_is_short_enough_to_be_read(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines < 400


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_is_named_by_what_it_owns_and_finished(path: Path) -> None:
    assert path.stem not in EMPTY_NAMES
    text = path.read_text()
    assert not UNFINISHED.search(text)
    assert not re.search(r"def _?handle_", text)


def test_no_two_test_files_have_the_same_name() -> None:
    # Without packages pytest knows a test file by its name alone.
    names = Counter(path.name for path in TESTS if path.name != "conftest.py")
    assert [file for file, count in names.items() if count > 1] == []


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", "LICENSE", "docs/install.md"])
def test_what_a_reader_looks_for_first_exists(file: str) -> None:
    assert (ROOT / file).stat().st_size > 100


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_yaml_block_of_a_page_is_a_descriptor(page: Path) -> None:
    for line, text in blocks(page):
        decode(text.encode(), source=f"{name(page)}:{line}")


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "examples").rglob("*.yaml*")) if "build" not in path.parts],
    ids=name,
)
def test_every_example_is_a_descriptor(path: Path) -> None:
    text = path.read_text()
    for placeholder, value in PLACES.items():
        text = text.replace(placeholder, value)
    decode(text.encode(), source=name(path))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_changelog_has_this_version() -> None:
    versions = re.findall(r"^## \[([0-9.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == PROJECT["project"]["version"]


@pytest.mark.parametrize("path", PROGRAMS, ids=name)
def test_a_script_is_executable_and_parses(path: Path) -> None:
    assert path.stat().st_mode & 0o111 == 0o111
    shebang = path.read_text().partition("\n")[0]
    if shebang.endswith("bash"):
        subprocess.run(["bash", "-n", str(path)], check=True)
    else:
        compile(path.read_text(), str(path), "exec")


def pins(file: str) -> dict[str, str]:
    text = (ROOT / "scripts" / file).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ]+) \\$", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("requirements-build.txt", PROJECT["build-system"]["requires"]),
        ("requirements.txt", PROJECT["project"]["dependencies"]),
        ("requirements-zenoh.txt", PROJECT["project"]["optional-dependencies"]["zenoh"]),
        ("requirements-dev.txt", PROJECT["dependency-groups"]["dev"]),
        ("requirements-fog05.txt", PROJECT["dependency-groups"]["fog05"]),
    ],
)
def test_the_pins_are_what_pyproject_asks_for(file: str, wanted: list[str]) -> None:
    pinned = pins(file)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.txt")), ids=name)
def test_pins_are_names_versions_and_hashes_only(path: Path) -> None:
    row = re.compile(r"#.*|[a-z0-9._-]+==[a-z0-9.+!-]+ \\|    --hash=sha256:[0-9a-f]{64}(?: \\)?|")
    assert [line for line in path.read_text().splitlines() if not row.fullmatch(line)] == []
    assert "://" not in path.read_text()
