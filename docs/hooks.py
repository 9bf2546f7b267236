"""What mkdocs does to the pages: each paper's page ends with the README of its project."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, page, **_: object) -> str:
    """Put the project's README under the links of `papers/<project>.md`; its links to files of the tree become text."""
    up = "../" * page.file.src_uri.count("/")
    found = re.fullmatch(r"papers/(\w+)\.md", page.file.src_uri)
    if not found:  # a project's README is part of its paper's page
        return re.sub(r"\]\((?:\.\./)+projects/(\w+)/README\.md", rf"]({up}papers/\1.md", markdown)
    readme = (ROOT / "projects" / found[1] / "README.md").read_text("utf-8")
    readme = re.sub(r"^Where the papers?.*docs/papers/.*\n\n", "", readme, flags=re.MULTILINE)  # it is this page
    readme = re.sub(r"\[([^\]]*)\]\((?!https?:)([^)]*)\)", _link, readme)
    readme = re.sub(r"^#(?=#* )", "##", readme, flags=re.MULTILINE)  # one level down
    return f"{markdown}\n\n{readme.replace('### #', '####')}"


def _link(match: re.Match) -> str:
    """A link to a page of the documentation stays one; a link to a file of the tree becomes its name."""
    inside = re.match(r"(?:\.\./)*docs/(.*)", match[2])
    return f"[{match[1]}](../{inside[1]})" if inside else f"`{match[1]}`"
