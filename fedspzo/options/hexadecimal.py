"""Keys and certificates on a command line: hexadecimal, or a file of lines that end with it."""

from __future__ import annotations

from pathlib import Path

from fedspzo.device_runtime.errors import FedSPZOError


def read_hex(option: str, word: str, size: int) -> list[bytes]:
    """The bytes that a word is, or those at the ends of the lines of the file that it names; ``#`` begins a comment.

    Args:
        option: what the word was given for.
        size: of each, in bytes.

    Raises:
        FedSPZOError: it is neither.
    """
    if (found := _parse(word, size)) is not None:
        return [found]
    try:
        lines, reason = Path(word).read_text(encoding="utf-8").splitlines(), ""
    except FileNotFoundError:
        lines, reason = [], ", and there is no such file"
    except (OSError, ValueError):
        lines, reason = [], ""
    rows: list[bytes] = []
    for number, line in enumerate(lines, 1):
        if not (words := line.partition("#")[0].split()):
            continue
        if (found := _parse(words[-1], size)) is None:
            rows, reason = [], f" (line {number} does not)"
            break
        rows.append(found)
    if not rows:
        raise FedSPZOError(
            "option.not-hexadecimal",
            f"{option} is '{word}', which is not {2 * size} hexadecimal digits, nor a file whose lines end with such"
            f"{reason}; give what fedspzo certify or fedspzo device --show-key prints",
        )
    return rows


def _parse(word: str, size: int) -> bytes | None:
    try:
        found = bytes.fromhex(word)
    except ValueError:
        return None
    return found if len(found) == size else None
