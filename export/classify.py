"""Answers of the model in this folder to lines of standard input: python classify.py

And how often they are right, for examples as JSON lines: python classify.py DATA.jsonl
It needs sentence-transformers. The answer to a text is the label whose vector in labels.safetensors has the largest
product with the text's. The vectors were trained with the model, or are of the model before training: they are not what
the model makes of the labels' words now. A text of more tokens than ``length`` in task.json is cut at its end.
"""

from __future__ import annotations

import json
import re
import string
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
FILTERS = {
    "": lambda text: text,
    "trim": lambda text: text.strip().rstrip(".?!,;:"),
    "lower": lambda text: text[:1].lower() + text[1:],
    "upper": lambda text: text[:1].upper() + text[1:],
}


class _Template(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return str(FILTERS[format_spec](str(value)))


class Classifier:
    """The model with its labels' vectors.

    Attributes:
        task: what task.json says: template, labels, kind, target, scale, length.
    """

    def __init__(self, folder: Path = HERE) -> None:
        """Load a folder."""
        from sentence_transformers import SentenceTransformer  # slow to load

        self.task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        self._model = SentenceTransformer(str(folder), device="cpu")
        self._model.max_seq_length = self.task["length"]
        self._labels = load_file(folder / "labels.safetensors")["labels"]
        prompts = self._model.prompts or {}
        self._prompt = prompts.get(self._model.default_prompt_name or "") or ""

    def logits(self, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Scores float32 [examples, labels] of examples, each with the fields of the task's template."""
        texts = [_Template().vformat(self.task["template"], (), example) for example in examples]
        plain = [text.removeprefix(self._prompt) for text in texts]  # the model puts its prompt before a text
        vectors = self._model.encode(plain, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(self.task["scale"] * vectors @ self._labels.T)

    def answers(self, examples: Sequence[Mapping[str, Any]]) -> list[Any]:
        """For each example a label's name, or the names of a set, or a number, as the task has it."""
        names, logits = self.task["labels"], self.logits(examples)
        if self.task["kind"] == "multi":  # those that hold score above the last label
            held = logits[:, :-1] > logits[:, -1:]
            return [[name for name, holds in zip(names, row, strict=False) if holds] for row in held]
        if self.task["kind"] == "regression":
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            return list(shares / shares.sum(axis=1, keepdims=True) @ np.array(names, float))
        return [names[best] for best in logits.argmax(axis=1)]


def wanted(task: Mapping[str, Any], value: Any) -> Any:
    """What :meth:`Classifier.answers` gives where it is right, by the target of an example.

    Raises:
        ValueError: the target is not one of the task's.
    """
    names = task["labels"]
    if task["kind"] == "multi":
        chosen = {_index(names, name) for name in _set(names, value)} - {len(names) - 1}
        return [names[index] for index in sorted(chosen)]
    if task["kind"] == "regression":
        number = float("nan") if isinstance(value, bool) or not isinstance(value, str | int | float) else float(value)
        if not min(map(float, names)) <= number <= max(map(float, names)):
            raise ValueError(value)
        return number
    return names[_index(names, value)]


def _index(names: Sequence[str], value: Any) -> int:
    """Index of a label, given by its name or, where no label's name is a number, by its index."""
    if isinstance(value, str) and value not in names and re.fullmatch(r"[+-]?\d+\.0*", value.strip()):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value).lower() if isinstance(value, bool) else str(value)
    if name in names:
        return names.index(name)
    index = str(int(value)) if isinstance(value, bool) else name
    if any(map(str.isdigit, names)):
        raise ValueError(value)
    return [str(place) for place in range(len(names))].index(index)


def _set(names: Sequence[str], value: Any) -> list[Any]:
    """The labels of a list, or of a text: a JSON list, one label, or several between commas."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            with suppress(ValueError, RecursionError):
                value = json.loads(text)
        elif text in names:
            return [text]
    found = [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
    if not isinstance(found, list) or len(set(map(str, found))) < len(found):
        raise ValueError(value)
    return found


def main() -> None:
    """Print the share of right answers to a file's examples, or answer the lines of standard input."""
    if len(sys.argv) > 1 and not Path(sys.argv[1]).is_file():
        raise SystemExit(__doc__)
    classifier = Classifier()
    if len(sys.argv) < 2:
        for line in sys.stdin:
            print(classifier.answers([dict.fromkeys(_fields(classifier.task["template"]), line.rstrip("\n"))])[0])
        return
    examples, expected = read(Path(sys.argv[1]), classifier.task)
    answers = classifier.answers(examples)
    if classifier.task["kind"] == "regression":
        errors = np.square(np.array(answers) - np.array(expected))
        print(json.dumps({"mse": float(errors.mean()), "examples": len(examples)}))
        return
    right = [answer == truth for answer, truth in zip(answers, expected, strict=True)]
    print(json.dumps({"accuracy": sum(right) / len(right), "examples": len(right)}))


def read(file: Path, task: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """The examples of a file, and the right answer to each; ends the program where it has others."""
    examples, expected = [], []
    names = {*_fields(task["template"]), task["target"]}
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                example = json.loads(line)
            except (ValueError, RecursionError):
                raise SystemExit(f"{file}, line {number} is no JSON; give a file of JSON lines") from None
            if not isinstance(example, dict) or not names <= example.keys():
                raise SystemExit(f"{file}, line {number} is no object with {', '.join(sorted(names))}; correct it")
            target = example[task["target"]]
            try:
                expected.append(wanted(task, target))
            except (ValueError, OverflowError, RecursionError):
                raise SystemExit(
                    f"{file}, line {number} has the {task['target']} {str(target)[:40]!r}, which is not"
                    f" {_known(task)}; correct it"
                ) from None
            examples.append(example)
    if not examples:
        raise SystemExit(f"{file} has no examples; give a file of JSON lines")
    return examples, expected


def _known(task: Mapping[str, Any]) -> str:
    """What targets are, in words."""
    if task["kind"] == "regression":
        return f"a number from {min(map(float, task['labels'])):g} to {max(map(float, task['labels'])):g}"
    names = ", ".join(task["labels"])
    return f"a list of {names}, each once" if task["kind"] == "multi" else f"one of {names}"


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


if __name__ == "__main__":
    main()
