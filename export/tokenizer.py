"""A checkpoint's tokenizer as transformers loads it, written as a tokenizer.json that gives the same tokens alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase, Sequence
from transformers import AutoTokenizer

from fedspzo.device_runtime.data.tokenizer import PROBE, load_tokenizer
from fedspzo.device_runtime.data.tokenizer import Tokenizer as DeviceTokenizer
from fedspzo.device_runtime.data.tokenizer.pipeline import PythonTokenizer
from fedspzo.device_runtime.data.tokenizer.vocabulary import write_vocabulary
from fedspzo.device_runtime.errors import BundleError, ExportError
from fedspzo.device_runtime.model.manifest import TOKENIZER, VOCABULARY
from fedspzo.export.quiet import quiet
from fedspzo.export.settings import damaged

#: What settings of tokenizers turn on: spaces, case, accents, scripts, digits, forms of the same character, lines.
_PROBES = (
    *("", " ", "\n", "a", "The soup was warm", " the soup", "  two  spaces ", "\tTabs\tand\nlines\r\n\nend\n"),
    *("SHOUTED Words", "naïve café e\u0301 Ångström ẞ ŒUVRE İi", "映画は良い 电影很好 한국어 영화"),
    *("ｆｕｌｌ　ｗｉｄｔｈ ＡＢＣ１２３ ﬁne ½ ①", "1234567890 3.14 1,000 -5 2²", "🎬👍🏽👩\u200d👩\u200d👧 ☺\ufe0f"),
    *("don't I'LL we've x's", "a_b-c/d.e@f.g #tag $5 <b>c</b> [x] {y}", "zero\u200bwidth so\u00adft \ufeffmark"),
    *("Привет, Ελληνικά שלום العربية हिन्दी ไทย", "def f(x):\n    return x  # four spaces", "extraordinarily" * 8),
)
#: A vocabulary of more tokens costs devices tens of megabytes unless they map it.
LARGE = 1 << 16
#: How many of the added tokens are tried within texts: some tokenizers have thousands.
_ADDED = 200


class ModelTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        backend: the tokenizer as devices run it: it neither pads nor cuts, and every control token is special.
        chat: the template of dialogues in Jinja's language, or "".
        words: names that the template may use for special tokens, each with the token's text.
        mask: the text of the mask token, or "".
        unknown: the text of the token that stands for what the vocabulary lacks, or "".
        end: the text of the token that ends a text, or "".
        roles: the tokens that have a role: those that begin, end, pad, mask.
        limit: most tokens that its settings allow; a huge number where they say nothing.
    """

    def __init__(self, folder: Path) -> None:
        """Load what ``AutoTokenizer`` makes of all files of a folder.

        Raises:
            ExportError: it makes nothing of them, or a tokenizer that no tokenizer.json describes.
        """
        self._folder = folder
        self._original = _load(folder)
        backend = getattr(self._original, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ExportError(
                "model.no-tokenizer",
                f"the tokenizer of {folder} is a {type(self._original).__name__}, which no {TOKENIZER} describes;"
                " choose a model with a tokenizer of the library tokenizers",
            )
        self.chat = _chat_template(self._original)
        named = self._original.special_tokens_map.items()
        self.words = tuple((str(name), str(text)) for name, text in named if isinstance(text, str))
        with _damage_named(folder):
            self.backend = Tokenizer.from_str(backend.to_str())
            self.backend.no_padding()
            self.backend.no_truncation()
            self.backend.add_special_tokens(self._control_tokens())
            for text in (PROBE, *_PROBES):
                self.backend.decode(self.backend.encode(text).ids)
        self.mask: str = self._original.mask_token or ""
        self.unknown: str = self._original.unk_token or ""
        self.end: str = self._original.eos_token or ""
        self.roles: frozenset[int] = frozenset(self._original.all_special_ids)
        limit = self._original.model_max_length
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < math.inf:
            raise damaged(folder / "tokenizer_config.json", f"its model_max_length is {limit!r:.40}")
        self.limit = int(limit)

    def lower(self) -> None:
        """Let it lower texts first, unless it does: what sentence-transformers makes of ``do_lower_case``."""
        for tokenizer in (self.backend, self._original.backend_tokenizer):
            known = tokenizer.normalizer
            parts = [known[at] for at in range(len(known))] if isinstance(known, Sequence) else [known] if known else []
            if not any(isinstance(part, Lowercase) for part in parts):
                tokenizer.normalizer = Sequence([Lowercase(), *parts])

    def write(self, path: Path) -> None:
        """Write the tokenizer.json of a bundle, and beside a large one of byte pairs its vocabulary for mapping.

        Raises:
            ExportError: devices would not find the tokens in a text that ``AutoTokenizer`` finds.
        """
        self.backend.save(str(path))
        self._compare(load_tokenizer(path), "the library tokenizers")
        try:
            python = PythonTokenizer(path)
        except BundleError as error:
            if error.kind != "tokenizer.unsupported":  # which an Android phone says when it gets such a bundle
                raise
        else:
            self._compare(python, "the tokenizer in Python")
            if isinstance(self.backend.model, BPE) and self.backend.get_vocab_size(with_added_tokens=False) > LARGE:
                vocabulary = path.with_name(VOCABULARY)
                write_vocabulary(vocabulary, path)
                self._compare(load_tokenizer(vocabulary), "the tokenizer with a mapped vocabulary")

    def render(self, messages: Iterable[Mapping[str, str]], asks: bool) -> str | None:
        """A dialogue as transformers renders it, or None where the template refuses it: some know no system.

        Args:
            asks: ends with the mark of the assistant's turn.
        """
        try:
            return str(self._original.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks))
        except Exception:  # a template may fail in any way
            return None

    def _control_tokens(self) -> list[AddedToken]:
        """Added tokens that only templates may write: special ones by name, and those that the chat template writes.

        Words and white space among the latter do not count: templates have them as texts have.
        """
        dialogue = [{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user")]
        written = self.chat
        for messages in (dialogue, dialogue[1:]) if self.chat else ():
            written += self.render(messages, asks=True) or ""
        named = {*self._original.all_special_tokens, *(getattr(self._original, "chat_control_tokens", None) or ())}
        return [
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=True,
            )
            for token in self._original.added_tokens_decoder.values()
            if token.content in named
            or (token.content in written and not (token.content.isspace() or token.content.isalnum()))
        ]

    def save(self, folder: Path) -> None:
        """Write the files that ``AutoTokenizer`` loads from a folder without a model."""
        self._original.save_pretrained(folder)

    def _compare(self, found: DeviceTokenizer, reader: str) -> None:
        for text in self._texts():
            wanted = self._original(text, return_offsets_mapping=True, split_special_tokens=False)
            encoding = found.encode(text)
            if encoding.ids != wanted["input_ids"] or encoding.offsets != wanted["offset_mapping"]:
                raise ExportError(
                    "model.tokenizer-differs",
                    f"{reader} gives the text {text[:40]!r} the tokens {encoding.ids[:12]}, and"
                    f" {type(self._original).__name__} of {self._folder} gives {wanted['input_ids'][:12]}; choose a"
                    " model with another tokenizer",
                )

    def _texts(self) -> Iterator[str]:
        yield from _PROBES
        added: list[AddedToken] = list(self._original.added_tokens_decoder.values())
        for token in added[:_ADDED]:
            yield f"a {token.content} b{token.content}c"


def _chat_template(tokenizer: Any) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # there is no template, or none of several is the usual one
        return ""


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Raise ExportError where the library fails at a folder's tokenizer."""
    try:
        with quiet():
            yield
    except (ExportError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and panics are not one
        raise ExportError(
            "model.tokenizer-damaged",
            f"{folder / TOKENIZER} is not a tokenizer ({error}); save the tokenizer with save_pretrained",
        ) from None


def _load(folder: Path) -> Any:
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the libraries raise plain Exception, and panics are not one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if (folder / TOKENIZER).is_file():
        with _damage_named(folder):
            Tokenizer.from_file(str(folder / TOKENIZER)).encode(PROBE)
    raise ExportError(
        "model.tokenizer-unloadable",
        f"{folder} has no tokenizer that transformers can load ({reason}); save the tokenizer with save_pretrained",
    )
