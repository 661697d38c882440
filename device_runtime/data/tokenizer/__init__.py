"""Tokenizers of bundles: the `tokenizers` library where it is installed, otherwise a reader in pure Python.

There is no wheel of the library for Android, and it takes 112 MB for a vocabulary of 128,000 tokens: large ones are
read from a mapped file, in Python. Both give the same tokens, offsets and texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.manifest import VOCABULARY

#: A text with what no vocabulary has: damaged tokenizers fail at a token that they lack only when they need it.
PROBE = "The soup, 映 \u0378\U0010ffff!"


class Encoding(Protocol):
    """The tokens of a text."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def offsets(self) -> list[tuple[int, int]]: ...


class AddedToken(Protocol):
    """A token that is looked for in texts before anything else."""

    @property
    def content(self) -> str: ...

    @property
    def special(self) -> bool: ...


class Tokenizer(Protocol):
    """What a device asks of a tokenizer."""

    def encode(self, sequence: str, *, add_special_tokens: bool = True) -> Encoding: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def get_added_tokens_decoder(self) -> Mapping[int, AddedToken]: ...


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json or of a large vocabulary, which neither cuts texts nor fills them up.

    Raises:
        BundleError: it cannot be read.
    """
    if path.name == VOCABULARY:
        return _in_python(path)
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        return _in_python(path)
    try:
        tokenizer = Library.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.decode(tokenizer.encode(PROBE).ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises no type of its own, and its panics are no Exception
        raise BundleError("tokenizer.unreadable", f"{path} cannot be read ({error}); export the bundle again") from None
    return tokenizer


def _in_python(path: Path) -> Tokenizer:
    from fedspzo.device_runtime.data.tokenizer.pipeline import PythonTokenizer

    return PythonTokenizer(path)
