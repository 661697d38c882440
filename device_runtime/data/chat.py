"""Dialogues as texts: a model's chat template in Jinja's language, rendered as transformers renders it.

Jinja2 is imported when a bundle has a template, and no device needs it otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from fedspzo.device_runtime.errors import DataError, install_hint
from fedspzo.device_runtime.model.task import Chat

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
#: Whose turns a dialogue may have: templates write the role, which must not be any text.
ROLES = (SYSTEM, "developer", USER, ASSISTANT, "tool")
#: Earlier versions let a template out of its sandbox.
_JINJA2 = (3, 1, 6)


class Turn(NamedTuple):
    """What somebody says in a dialogue: one of :data:`ROLES`, and the text."""

    role: str
    text: str


class ChatTemplate:
    """A chat template, ready to render dialogues."""

    def __init__(self, chat: Chat) -> None:
        """Compile it. Raises DataError when jinja2 is not installed, or the template is not one."""
        self._chat = chat
        self._compiled = _compiled(chat)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The dialogue up to where the assistant's next text starts. Raises DataError as :meth:`whole` does."""
        return self._render(turns, asks=True) + self._chat.lead

    def whole(self, turns: Sequence[Turn]) -> str:
        """The dialogue alone.

        Raises:
            DataError: the template refuses it; some know no system, or want user and assistant to take turns.
        """
        return self._render(turns, asks=False)

    def answer(self, turns: Sequence[Turn], text: str) -> str:
        """What follows the prompt when this is the answer, and what the template writes after it.

        Some templates write the turns before otherwise when the answer is there: then it is what follows the last mark
        of an assistant's turn. Raises DataError as :meth:`whole` does.
        """
        prompt, whole = self.prompt(turns), self.whole([*turns, Turn(ASSISTANT, text)])
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        _, mark, answer = whole.rpartition(self._chat.mark) if self._chat.mark else ("", "", "")
        if not mark or not prompt.endswith(mark):
            raise DataError(
                "data.dialogue-refused",
                "the model's chat template writes the dialogue otherwise when the answer is there; leave it out",
            )
        return answer

    def _render(self, turns: Sequence[Turn], asks: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            return str(
                self._compiled.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=asks, **dict(self._chat.tokens)
                )
            )
        except Exception as error:  # a template may fail in any way
            raise DataError(
                "data.dialogue-refused",
                f"the model's chat template refuses the dialogue ({error}); change its turns, or leave it out",
            ) from None


def _compiled(chat: Chat) -> Any:
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise DataError("data.library-missing", f"dialogues need jinja2; {install_hint('chat')}") from None
    if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < _JINJA2:
        raise DataError(
            "data.library-missing",
            f"dialogues need jinja2 3.1.6, and {jinja2.__version__} is installed; {install_hint('chat')}",
        )

    class Generation(Extension):
        """Marks what the assistant says; here it is rendered as any other text."""

        tags: set[str] = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Any) -> Any:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Takes no names with an underscore in front, which lead out of the sandbox."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, values = args[0], dict(*args[1:], **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no name such as {name!r}")

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=raise_exception, namespace=Namespace, dict=_Dictionaries(), strftime_now=_clock(chat.date)
    )
    try:
        return environment.from_string(chat.template)
    except jinja2.TemplateError as error:
        raise DataError(
            "data.chat-template", f"the model's chat template is damaged ({error}); get the model or the bundle again"
        ) from None


class _Dictionaries:
    """Jinja's ``dict`` without the attributes of Python's."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _clock(date: str) -> Any:
    def strftime_now(form: str) -> str:
        return datetime.fromisoformat(date).strftime(form)

    return strftime_now


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
