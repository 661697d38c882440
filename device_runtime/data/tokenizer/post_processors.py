"""Post-processors: special tokens around a text, and spaces that do not count to their tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from fedspzo.device_runtime.data.tokenizer.models import Token
from fedspzo.device_runtime.data.tokenizer.spec import Spec, build
from fedspzo.device_runtime.data.tokenizer.unicode import BYTES, WHITESPACE

#: The tokens of a text (start and stop are in the text), and whether to add special ones → all tokens.
PostProcessor = Callable[[list[Token], bool], list[Token]]

_SPACES = BYTES[ord(" ")] + WHITESPACE


def post_processor(spec: Spec | None) -> PostProcessor:
    """The post-processor that a JSON object describes; none changes nothing. Raises BundleError."""
    return (lambda tokens, _: tokens) if spec is None else build(spec, "post-processor", _KINDS)


def _sequence(spec: Spec) -> PostProcessor:
    parts = [post_processor(part) for part in spec["processors"]]

    def process(tokens: list[Token], special: bool) -> list[Token]:
        for part in parts:
            tokens = part(tokens, special)
        return tokens

    return process


def _template(spec: Spec) -> PostProcessor:
    pieces: list[list[Token] | None] = []  # None: the text
    for piece in spec["single"]:
        if "SpecialToken" in piece:
            token = spec["special_tokens"][piece["SpecialToken"]["id"]]
            pairs = zip(token["ids"], token["tokens"], strict=True)
            pieces.append([Token(id, value, 0, 0) for id, value in pairs])
        else:
            pieces.append({"A": None}[piece["Sequence"]["id"]])

    def process(tokens: list[Token], special: bool) -> list[Token]:
        filled = [tokens if piece is None else piece if special else [] for piece in pieces]
        return [token for part in filled for token in part]

    return process


def _bert(spec: Spec) -> PostProcessor:
    (first, first_id), (last, last_id) = spec["cls"], spec["sep"]
    before, after = [Token(first_id, first, 0, 0)], [Token(last_id, last, 0, 0)]
    return lambda tokens, special: [*before, *tokens, *after] if special else tokens


def _byte_level(spec: Spec) -> PostProcessor:
    prefix, trims = spec["add_prefix_space"], spec["trim_offsets"]
    if not trims:
        return lambda tokens, _: tokens
    return lambda tokens, _: [_trimmed(token, place, prefix) for place, token in enumerate(tokens)]


def _trimmed(token: Token, place: int, prefix: bool) -> Token:
    id, value, start, stop = token
    left = sum(1 for _ in takewhile(_SPACES.__contains__, value))
    right = sum(1 for _ in takewhile(_SPACES.__contains__, reversed(value)))
    if left == 1 and prefix and (place == 0 or start == 0):
        left = 0  # the space that was put before the text
    start = min(start + left, stop)
    if right and stop >= right:
        stop = max(stop - right, start)
    return Token(id, value, start, stop)


def _roberta(spec: Spec) -> PostProcessor:
    trims, surrounds = _byte_level(spec), _bert(spec)
    return lambda tokens, special: surrounds(trims(tokens, special), special)


_KINDS: dict[str, Callable[[Spec], PostProcessor]] = {
    "Sequence": _sequence,
    "TemplateProcessing": _template,
    "BertProcessing": _bert,
    "RobertaProcessing": _roberta,
    "ByteLevel": _byte_level,
}
