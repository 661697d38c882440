"""Plain English: words and constructions that the style sheet of CONTRIBUTING.md rules out."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    REPOSITORY / "android_demo" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
PACKAGES = ("broker", "device_runtime", "export", "fedspzo", "benchmarks", "examples", "android_demo")
#: Not through the links in fedspzo/, and each file once.
SOURCES = sorted({path.resolve() for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")})
#: What not to write → what to write.
RULED_OUT = {
    r"in the mean": "on average",
    r"anew": "again",
    r"(go|goes|going|went|gone) on": "continue",
    r"besides": "also",
    r"so many": "N, each",
    r"(?<![Tt]here )(is|are) none": "is not one, there is no …",
    r"the \d+\.(?= [a-z])": "the 32nd",
    r"[Ww]ho \w+ (for it )?must": "whoever …; say who does what",
    r"as is said": "as … says",
    r"whom": "say which device, person or process",
    r"of one's own|one's own": "its own …",
    r"for ever": "forever",
    r"as ever|all the same": "as before, still",
    r"but for|, all but the": "except",
    r"(is|are|was|were) to be (?!\w+ing)": "must be, or say who does it",
    r"(come|comes|came) about": "happen",
    r"as much again": "twice as much",
    r"half-way": "halfway",
    r"in (its|the|their) place of": "instead of",
    r"beforehand": "before, in advance",
    r"thereby|therein|thereof|thereupon|hitherto|wherefore|whereof": "a plain word",
    r"what becomes of": "what happens to",
    r"a chance is": "there is a chance",
    r"may as well be": "may also be",
    r"utili[sz]e\w*": "use",
    r"obviously|simply": "leave it out",
}
PATTERN = re.compile(rf"\b({'|'.join(f'(?:{words})' for words in RULED_OUT)})\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_pages_are_plain_english(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`|\*[a-z]+\*", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found(text) == []


def test_docstrings_comments_and_messages_are_plain_english() -> None:
    assert {str(path.relative_to(REPOSITORY)): words for path in SOURCES if (words := found(prose(path)))} == {}


def prose(path: Path) -> str:
    """What a source file says to people: comments and strings, docstrings and help texts among them."""
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
    with path.open("rb") as file:
        return "\n".join(token.string.lstrip("# ") for token in tokenize.tokenize(file.readline) if token.type in kinds)


def found(text: str) -> list[str]:
    """What is ruled out in a text, with the words around it."""
    text = " ".join(text.split())
    return [text[max(0, match.start() - 40) : match.end() + 40] for match in PATTERN.finditer(text)]
