"""Rewrites the tables of `docs/licences.md` from the metadata of the installed packages. Judges nothing.

python docs/list_licences.py [--check]
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
START, END = "<!-- tables: python docs/list_licences.py -->", "<!-- end of tables -->"

SPOKEN = {
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Apache": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Artistic License": "Artistic-1.0-Perl",
    "GNU General Public License (GPL)": "GPL-2.0-or-later",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
}
"""How classifiers and free text name a licence -> its SPDX identifier."""

STATED_IN_FILES = {"embreex": "BSD-2-Clause", "gsplat": "Apache-2.0", "xatlas": "MIT"}
"""Packages whose metadata do not name their licence; its text does."""


def licence_of(package: Distribution) -> str:
    """Return a package's licence as SPDX identifiers; alternatives are joined by OR."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    name = canonicalize_name(metadata["Name"])
    if name in STATED_IN_FILES:
        return STATED_IN_FILES[name]
    classifiers = [line.split("::")[-1].strip() for line in metadata.get_all("Classifier") or [] if "License" in line]
    named = dict.fromkeys(SPOKEN.get(entry, entry) for entry in classifiers if entry != "OSI Approved")
    text = (metadata.get("License") or "").strip()
    return " OR ".join(named) or SPOKEN.get(text, text.splitlines()[0] if text else "unknown")


def direct_requirements() -> dict[str, list[str]]:
    """Return the direct dependencies by purpose: `core`, then every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {
        purpose: sorted(canonicalize_name(Requirement(line).name) for line in lines)
        for purpose, lines in groups.items()
    }


def indirect(names: list[str]) -> dict[str, Distribution]:
    """Return what the named packages need in turn, on this platform, without themselves."""
    waiting, found = list(names), dict[str, Distribution]()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return {name: found[name] for name in sorted(found) if name not in names}


def tables() -> str:
    """Return the page's tables as markdown."""
    groups = direct_requirements()
    lines = ["| package | needed for | licence |", "|---|---|---|"]
    for purpose, names in groups.items():
        lines += [f"| {name} | {purpose} | {licence_of(distribution(name))} |" for name in names]
    by_licence: dict[str, list[str]] = {}
    for name, package in indirect(groups["core"]).items():
        by_licence.setdefault(licence_of(package), []).append(name)
    lines += ["", "What the core packages need in turn:", "", "| licence | packages |", "|---|---|"]
    lines += [f"| {licence} | {', '.join(by_licence[licence])} |" for licence in sorted(by_licence)]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Rewrite the page, or with `--check` only say whether its tables are current."""
    text = PAGE.read_text("utf-8")
    current = re.sub(f"{START}.*{END}", lambda _: f"{START}\n\n{tables()}\n\n{END}", text, flags=re.DOTALL)
    if "--check" in argv:
        return int(current != text)
    PAGE.write_text(current, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
