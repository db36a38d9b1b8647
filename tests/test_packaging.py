"""What is installed: the dependencies, the command, the data files, and pins that agree with them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split() if "==" in line)


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for texts in (PROJECT["dependencies"], *extras) for text in texts]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    pins = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    assert requirement.specifier.contains(pins[requirement.name.lower()])


def test_the_command_line_is_one_script() -> None:
    assert PROJECT["scripts"] == {"autoplan": "autoplan.cli:main"}


def test_no_host_is_written_into_what_installs() -> None:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run")}
    found = [name for name, text in texts.items() if re.search(r"https?://|--(extra-)?index-url|--find-links|trusted-host", text)]
    assert not found


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and PROJECT["license"] == "Apache-2.0"
