"""How the graphs of a decoder see a text: whole, or one token after those whose keys and values are kept.

A family writes a stage once (:meth:`TextStage.through`); the graphs for training, for the keys and values of a prompt
and for the next token all come from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedspzo.device_runtime.model.manifest import HIDDEN, KEYS, POSITION, VALUES
from fedspzo.export.modules.operators import attend, causal_bias, hide, rotate
from fedspzo.export.modules.stage_module import StageModule, Weights


class Tokens(ABC):
    """The tokens that a graph computes.

    Attributes:
        kept: their keys and values [batch, key heads, tokens, size], once they have attended.
    """

    def __init__(self) -> None:
        self.kept: tuple[Tensor, ...] = ()

    @abstractmethod
    def rows(self, table: Tensor) -> Tensor:
        """Rows of a table [1, positions, size] by the tokens' positions, [batch or 1, tokens, size]."""

    def rotate(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Queries or keys [batch, heads, tokens, size], turned by rotary positions [1, positions, turned size]."""
        return rotate(x, self.rows(cosines).unsqueeze(1), self.rows(sines).unsqueeze(1))

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, cap: float | None = None
    ) -> Tensor:
        """Attention of the tokens to themselves and those before them; see :func:`operators.attend`."""


class Whole(Tokens):
    """All tokens of a text."""

    def __init__(self, count: int, seen: Tensor | None) -> None:
        """``seen`` is :func:`operators.causal_bias`."""
        super().__init__()
        self._count, self._seen = count, seen

    def rows(self, table: Tensor) -> Tensor:
        """See :class:`Tokens`."""
        return table[:, : self._count]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, cap: float | None = None
    ) -> Tensor:
        """See :class:`Tokens`."""
        assert self._seen is not None
        self.kept = key, value
        return attend(query, key, value, self._seen, scale, cap)


class Next(Tokens):
    """One token of each text, after those whose keys and values are kept by their positions."""

    def __init__(self, position: Tensor, positions: Tensor, window: int | None, past: Sequence[Tensor]) -> None:
        """What comes before the tokens.

        Args:
            position: [batch, 1], of the tokens, as whole numbers.
            positions: [positions], 0, 1, …
            window: how many tokens each sees, itself included; None for all.
            past: keys and values [batch, key heads, positions, size]; those from the tokens' positions on are not seen.
        """
        super().__init__()
        self._distance = position - positions
        self._window, self._past = window, past
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # with the table, whose number is then its own

    def rows(self, table: Tensor) -> Tensor:
        """See :class:`Tokens`."""
        if id(table) not in self._rows:  # queries and keys have the same
            here = (1.0 - self._distance.abs()).clamp(min=0.0)  # one-hot; a gather is not delegated
            rows = (table[:, : here.shape[1]] * here.unsqueeze(-1)).sum(dim=1, keepdim=True)
            self._rows[id(table)] = table, rows
        return self._rows[id(table)][1]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, cap: float | None = None
    ) -> Tensor:
        """See :class:`Tokens`."""
        self.kept = key, value
        seen = self._distance.clamp(0.0, 1.0)
        if self._window is not None:
            seen = seen * (self._window - self._distance).clamp(0.0, 1.0)
        bias = F.pad(hide(seen), (0, 1)).reshape(seen.shape[0], 1, 1, seen.shape[1] + 1)
        key, value = (torch.cat((past, new), dim=2) for past, new in zip(self._past, self.kept, strict=True))
        return attend(query, key, value, bias, scale, cap)


class TextStage(StageModule):
    """A stage of a decoder before its head. A subclass writes :meth:`through`.

    Attributes:
        continued: feeds that the graph of the next token takes beside ``hidden``: what :class:`Next` needs for what
            the stage asks of it.
    """

    continued: ClassVar[tuple[str, ...]] = ()
    positions: Tensor
    seen: Tensor | None

    def __init__(self, tensors: Sequence[str], length: int = 0, window: int | None = None) -> None:
        """A stage for texts of a ``length``, where it depends on positions.

        Args:
            tensors: see :class:`StageModule`.
            length: tokens of a text.
            window: how many tokens each sees, itself included; None for all before it.
        """
        super().__init__(tensors)
        self.keeps, self.window = False, window
        self.register_buffer("positions", torch.arange(length, dtype=torch.float32), persistent=False)
        attends = KEYS in self.continued
        self.register_buffer("seen", causal_bias(length, window) if attends else None, persistent=False)

    @abstractmethod
    def through(self, weights: Weights, hidden: Tensor, tokens: Tokens) -> Tensor:
        """The stage's output [batch, tokens, width] from its input."""

    def keeping(self) -> TextStage:
        """The module that also gives the keys and values of a text, where it has any."""
        module = copy(self)
        module.keeps = True
        return module

    def continuing(self) -> TextStage:
        """The module for the next token; it gives that token's keys and values too."""
        module = self.keeping()
        module.feeds = (HIDDEN, *self.continued)
        return module

    def compute(self, weights: Weights, *feeds: Tensor) -> tuple[Tensor, ...]:
        """See :class:`StageModule`."""
        hidden, *rest = feeds
        tokens: Tokens
        if POSITION in self.feeds:
            position, *past = rest
            tokens = Next(position, self.positions, self.window, past)
        else:
            tokens = Whole(hidden.shape[1], self.seen)
        out = self.through(weights, hidden, tokens)
        return (out, *tokens.kept) if self.keeps else (out,)


class TextLayer(TextStage):
    """A stage with attention."""

    continued = (POSITION, KEYS, VALUES)
