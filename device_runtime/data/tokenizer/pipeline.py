"""A tokenizer.json's tokenizer in pure Python: equal to the `tokenizers` library, and three to six times slower.

The library (https://github.com/huggingface/tokenizers, in Rust) is the definition: where the two differ, this is wrong.
Truncation and padding are left out: nothing here wants them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedspzo.device_runtime.data.tokenizer import PROBE
from fedspzo.device_runtime.data.tokenizer.added import AddedToken, AddedTokens
from fedspzo.device_runtime.data.tokenizer.decoders import decoder
from fedspzo.device_runtime.data.tokenizer.models import Token, model
from fedspzo.device_runtime.data.tokenizer.normalizers import normalizer
from fedspzo.device_runtime.data.tokenizer.post_processors import post_processor
from fedspzo.device_runtime.data.tokenizer.pre_tokenizers import pre_tokenizer
from fedspzo.device_runtime.data.tokenizer.spec import read
from fedspzo.device_runtime.data.tokenizer.vocabulary import open_vocabulary
from fedspzo.device_runtime.errors import BundleError
from fedspzo.device_runtime.model.manifest import VOCABULARY


@dataclass(frozen=True)
class Encoding:
    """The tokens of a text.

    Attributes:
        ids: their numbers.
        offsets: for each, its first character in the text and the one after its last; (0, 0) for those that a
            post-processor added.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class PythonTokenizer:
    """A tokenizer in Python alone."""

    def __init__(self, path: Path) -> None:
        """Read a tokenizer.json, or a large one's vocabulary. Raises BundleError when the file has unknown parts."""
        try:
            spec = open_vocabulary(path) if path.name == VOCABULARY else read(path.read_bytes())
            self._model = model(spec["model"])
            self._added = AddedTokens(spec.get("added_tokens", []), self._model, normalizer(spec.get("normalizer")))
            self._pre_tokenize = pre_tokenizer(spec.get("pre_tokenizer"))
            self._post_process = post_processor(spec.get("post_processor"))
            self._decode = decoder(spec.get("decoder"))
            self.decode(self.encode(PROBE).ids)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BundleError(
                "tokenizer.unreadable", f"{path} cannot be read ({error}); export the bundle again"
            ) from None

    def encode(self, sequence: str, add_special_tokens: bool = True) -> Encoding:
        """The tokens of a text, with those that the tokenizer puts around it or without."""
        tokens: list[Token] = []
        for text, id in self._added.parts(sequence):
            if id is not None:
                tokens.append(Token(id, text.chars, text.spans[0][0], text.spans[-1][1]))
                continue
            for chars, spans in self._pre_tokenize(text):
                tokens += [
                    Token(id, value, spans[start][0], spans[stop - 1][1])
                    for id, value, start, stop in self._model.tokens(chars)
                ]
        tokens = self._post_process(tokens, add_special_tokens)
        return Encoding([token.id for token in tokens], [(token.start, token.stop) for token in tokens])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens; numbers that are not tokens are left out."""
        special = {token.content for token in self._added.by_id.values() if token.special and skip_special_tokens}
        names = (self._added.names.get(id, self._model.names.get(id)) for id in ids)
        return "".join(self._decode([name for name in names if name is not None and name not in special]))

    def token_to_id(self, token: str) -> int | None:
        """A token's number, if it is one."""
        return self._added.ids.get(token, self._model.ids.get(token))

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The added tokens by their numbers."""
        return dict(self._added.by_id)
