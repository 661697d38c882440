"""Answers of the model in this folder to lines of standard input: python classify.py

And how often they are right, for examples as JSON lines: python classify.py DATA.jsonl
It needs sentence-transformers. The answer to a text is the label whose vector in labels.safetensors has the largest
product with the text's. The vectors were trained with the model, or are of the model before training: they are not what
the model makes of the labels' words now. A text of more tokens than ``length`` in task.json is cut at its end.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

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


def _is_right(answer: Any, expected: Any, names: Sequence[str]) -> bool:
    if isinstance(answer, list):
        return set(answer) == set(expected)
    return bool(answer == (names[expected] if isinstance(expected, int) else str(expected)))


def main() -> None:
    """Print the share of right answers to a file's examples, or answer the lines of standard input."""
    if len(sys.argv) > 1 and not Path(sys.argv[1]).is_file():
        raise SystemExit(__doc__)
    classifier = Classifier()
    if len(sys.argv) < 2:
        for line in sys.stdin:
            print(classifier.answers([dict.fromkeys(_fields(classifier.task["template"]), line.rstrip("\n"))])[0])
        return
    examples = _read(Path(sys.argv[1]), {*_fields(classifier.task["template"]), classifier.task["target"]})
    expected = [example[classifier.task["target"]] for example in examples]
    answers = classifier.answers(examples)
    if classifier.task["kind"] == "regression":
        errors = np.square(np.array(answers) - np.array(expected, float))
        print(json.dumps({"mse": float(errors.mean()), "examples": len(examples)}))
        return
    right = [_is_right(a, e, classifier.task["labels"]) for a, e in zip(answers, expected, strict=True)]
    print(json.dumps({"accuracy": sum(right) / len(right), "examples": len(right)}))


def _read(file: Path, names: set[str]) -> list[dict[str, Any]]:
    """The examples of a file; ends the program where it has others."""
    examples = []
    lines = file.read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut strings, too
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                examples.append(json.loads(line))
            except ValueError:
                raise SystemExit(f"{file}, line {number} is no JSON; give a file of JSON lines") from None
            if not isinstance(examples[-1], dict) or not names <= examples[-1].keys():
                raise SystemExit(f"{file}, line {number} is no object with {', '.join(sorted(names))}; correct it")
    if not examples:
        raise SystemExit(f"{file} has no examples; give a file of JSON lines")
    return examples


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


if __name__ == "__main__":
    main()
