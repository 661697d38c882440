"""Pre-tokenizers: how a tokenizer cuts a text into words, within which tokens are then looked for."""

from __future__ import annotations

from collections.abc import Callable

from fedspzo.device_runtime.data.tokenizer.pattern import Pattern, in_brackets, matches, pattern, translated
from fedspzo.device_runtime.data.tokenizer.spec import Spec, build
from fedspzo.device_runtime.data.tokenizer.text import Text, prepend, replace, split, spread
from fedspzo.device_runtime.data.tokenizer.unicode import byte_level

#: Words of a text, none empty.
PreTokenizer = Callable[[Text], list[Text]]

#: How byte-level tokenizers split texts unless they say otherwise, in Oniguruma's language.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACE, _NUMERIC = f"[{in_brackets('s')}]", f"[{in_brackets('numeric')}]"
_PUNCTUATION = f"[{in_brackets('punctuation')}]"
_WORD = f"[{in_brackets('word')}]+|[^{in_brackets('word')}{in_brackets('s')}]+"


def pre_tokenizer(spec: Spec | None) -> PreTokenizer:
    """The pre-tokenizer that a JSON object describes; none leaves a text whole. Raises BundleError."""
    return (lambda text: [text]) if spec is None else build(spec, "pre-tokenizer", _KINDS)


def _by(find: Pattern, behavior: str) -> PreTokenizer:
    split(Text("", []), [], behavior)  # an unknown behavior is said now
    return lambda text: split(text, find(text.chars), behavior)


def _inverted(find: Pattern) -> Pattern:
    return lambda chars: [(start, stop, not matched) for start, stop, matched in find(chars)]


def _in_turn(parts: list[PreTokenizer]) -> PreTokenizer:
    def words(text: Text) -> list[Text]:
        texts = [text]
        for part in parts:
            texts = [word for text in texts for word in part(text)]
        return texts

    return words


def _byte_level(spec: Spec) -> PreTokenizer:
    prefix = spec["add_prefix_space"]
    find = matches(translated(_WORDS)) if spec.get("use_regex", True) else None

    def words(text: Text) -> list[Text]:
        if prefix and not text.chars.startswith(" "):
            text = prepend(text, " ")
        return [spread(part, byte_level) for part in (split(text, find(text.chars), "Isolated") if find else [text])]

    return words


def _metaspace(spec: Spec) -> PreTokenizer:
    mark = spec["replacement"]
    scheme = "never" if spec.get("add_prefix_space") is False else spec.get("prepend_scheme", "always")
    parted = spec.get("split") is not False
    spaces, marks = matches(" "), pattern({"String": mark})

    def words(text: Text) -> list[Text]:
        text = replace(text, spaces(text.chars), mark)
        first = scheme == "always" or (scheme == "first" and text.spans[0][0] == 0)
        if first and not text.chars.startswith(mark):
            text = prepend(text, mark)
        return split(text, marks(text.chars), "MergedWithNext") if parted else [text]

    return words


def _split(spec: Spec) -> PreTokenizer:
    find = pattern(spec["pattern"])
    return _by(_inverted(find) if spec["invert"] else find, spec["behavior"])


_KINDS: dict[str, Callable[[Spec], PreTokenizer]] = {
    "Sequence": lambda spec: _in_turn([pre_tokenizer(part) for part in spec["pretokenizers"]]),
    "BertPreTokenizer": lambda _: _in_turn([_by(matches(_SPACE), "Removed"), _by(matches(_PUNCTUATION), "Isolated")]),
    "ByteLevel": _byte_level,
    "Metaspace": _metaspace,
    "Whitespace": lambda _: _by(_inverted(matches(_WORD)), "Removed"),
    "WhitespaceSplit": lambda _: _by(matches(_SPACE), "Removed"),
    "Punctuation": lambda spec: _by(matches(_PUNCTUATION), spec.get("behavior", "Isolated")),
    "Digits": lambda spec: _by(matches(_NUMERIC), "Isolated" if spec["individual_digits"] else "Contiguous"),
    "Split": _split,
}
