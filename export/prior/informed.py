"""The bases of cores: singular vectors of what short trainings on public tasks change in each linear map.

Devices have no backpropagation and no public data; whoever exports has both. Each task trains the chosen linear maps by
Adam from the model's own weights. The leading left and right singular vectors of all changes, side by side, are the
bases, without the singular values: what one direction of a core changes is then as large as that of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fedspzo.device_runtime.data.encoder import encode_open
from fedspzo.device_runtime.errors import ExportError
from fedspzo.device_runtime.model.task import MASKED, SIMILARITY, Task
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import Architecture
from fedspzo.export.network.adapters import Cores, chosen_linears
from fedspzo.export.network.hidden import padded
from fedspzo.export.network.tokens import answer_place, encode_within, word_tokens
from fedspzo.export.network.vectors import embed, embed_descriptions
from fedspzo.export.prior.examples import Labelled, by_label, drawn, read_prior, same_meaning, shared_words
from fedspzo.export.prior.tuning import Questions, Tuning

#: Steps of a task's training, its examples in a step, and the learning rate: what the method was measured with.
STEPS, BATCH, RATE = 24, 32, 1.5e-4
#: Examples whose vectors say what a label means, and the characters of them that are read at most.
_MEANT, _READ = 8, 200

Progress = Callable[[str], None]


def informed(
    cores: Cores,
    checkpoint: Checkpoint,
    describe: Callable[[int], Architecture],
    length: int,
    task: Task,
    progress: Progress,
) -> Cores:
    """Cores with the bases that their prior gives.

    Args:
        describe: gives the architecture for texts of a length, without adapters.
        length: most tokens of an example.
        task: the target.

    Raises:
        ExportError: the files do not fit the task, have no labels that are not the target's, or teach nothing.
        DataError: a file, or a record of it, cannot be read.
    """
    progress("reading the prior")
    examples = read_prior(cores.prior, task)
    labelled = [example for example in examples if example.label]
    left_out: dict[str, str] = {}
    if labelled:
        examples, left_out = _others(labelled, checkpoint, describe(length), task)
        questions = _labelled_questions(examples, checkpoint, describe(length), task, length)
    elif task.form == SIMILARITY:
        raise ExportError(
            "prior.no-labels",
            f"{checkpoint.name} scores no tokens in task '{task.name}', so that plain text gives it nothing to learn;"
            " give labelled examples with --prior",
        )
    else:
        questions = _text_questions(examples, checkpoint, describe(length), task, length, cores.seed)
    if len(questions.rows) < 2:
        raise ExportError(
            "prior.one-answer",
            f"{', '.join(map(str, cores.prior))} has a single answer for {checkpoint.name}, where label words count by"
            " their first token and words that it does not know are alike; name the labels by other words in a copy of"
            " the file, or give others with --prior",
        )
    architecture = describe(questions.ids.shape[1])
    chosen = chosen_linears(architecture, checkpoint, cores)
    progress(f"running the layers before the cores on {len(questions.labels)} examples of the prior")
    tuning = Tuning(checkpoint, architecture, task, chosen, questions)
    groups = [np.flatnonzero(questions.labels == label) for label in range(len(questions.rows))]
    for number in range(cores.tasks):
        if labelled:
            labels = drawn(cores.seed, "labels", number, len(groups))[: cores.labels]
            members = np.concatenate([groups[label] for label in labels])
        else:
            members = drawn(cores.seed, "texts", number, len(questions.labels))[: STEPS * BATCH // 2]
        before, after = tuning.train(_batches(members, cores.seed, number), RATE)
        progress(f"learning from the prior: task {number + 1} of {cores.tasks}, loss {before:.2f} → {after:.2f}")
    progress("finding the bases")
    return replace(cores, bases=tuning.bases(cores.rank), left_out=left_out)


def _batches(members: np.ndarray, seed: int, number: int) -> list[np.ndarray]:
    """The examples of each step of a task: all of them in an order, then in another, and so on."""
    epochs = 1 + STEPS * BATCH // len(members)
    order = np.concatenate([drawn(seed, f"order {number}", epoch, len(members)) for epoch in range(epochs)])
    return np.split(members[order[: STEPS * BATCH]], STEPS)


def _others(
    examples: Sequence[Labelled], checkpoint: Checkpoint, architecture: Architecture, task: Task
) -> tuple[list[Labelled], dict[str, str]]:
    """Examples whose labels have other meanings than the target's; and the labels that have not, each with its own.

    Raises:
        ExportError: fewer than two labels are left.
    """
    groups = by_label(examples)
    labels = list(groups)
    left_out = shared_words(labels, task)
    if labels and task.form == SIMILARITY and checkpoint.is_sentence_model:  # whose vectors are made to be compared
        texts = [task.render(examples[at].fields)[:_READ] for label in labels for at in groups[label][:_MEANT]]
        vectors = embed(checkpoint, architecture, _within(checkpoint, architecture, task, texts))
        ends = np.cumsum([len(groups[label][:_MEANT]) for label in labels])
        means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])
        left_out = same_meaning(labels, means, task, embed_descriptions(checkpoint, architecture, task)) | left_out
    count = len(labels) - len(left_out)
    if count < 2:
        raise ExportError(
            "prior.no-other-labels",
            f"the prior has {count} labels with two examples and another meaning than those of task '{task.name}', and"
            " needs two; give other files with --prior",
        )
    kept = [example for example in examples if example.label in groups and example.label not in left_out]
    return kept, left_out


def _within(checkpoint: Checkpoint, architecture: Architecture, task: Task, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts as they are, each cut to as many as the model takes."""
    alone = replace(task, template="{text}")
    return [encode_within(checkpoint, alone, {"text": text}, architecture.limit) for text in texts]


def _labelled_questions(
    examples: Sequence[Labelled], checkpoint: Checkpoint, architecture: Architecture, task: Task, length: int
) -> Questions:
    names = sorted({example.label for example in examples})
    encoded = [encode_within(checkpoint, task, example.fields, length) for example in examples]
    places = np.array([names.index(example.label) for example in examples])
    if task.form == SIMILARITY:  # a tokenizer that lacks the words of two names makes them one
        prompt = checkpoint.sentence.prompt if checkpoint.sentence else ""
        known = _within(checkpoint, architecture, task, [prompt + name for name in names])
        firsts, labels = np.unique([known.index(ids) for ids in known], return_inverse=True)
        rows = embed(checkpoint, architecture, [known[at] for at in firsts])
        return _questions(encoded, [0] * len(encoded), labels[places], rows, np.zeros(len(rows), np.float32))
    # Label words are one token: the first of a label's name. Labels that begin alike count as one.
    lead = " " if not task.labels or task.labels[0].text.startswith(" ") else ""
    tokens = [word_tokens(checkpoint, task, lead + name)[0][:1] for name in names]
    for name, token in zip(names, tokens, strict=True):
        if not token:
            raise ExportError(
                "prior.no-token",
                f"the label {name[:40]!r} of the prior has no token for {checkpoint.name}; rename it in a copy of"
                " the file",
            )
    starts = [answer_place(checkpoint, task, ids) for ids in encoded]
    return _token_questions(checkpoint, architecture, encoded, starts, np.concatenate(tokens)[places])


def _text_questions(
    examples: Sequence[Labelled],
    checkpoint: Checkpoint,
    architecture: Architecture,
    task: Task,
    length: int,
    seed: int,
) -> Questions:
    """Each text up to a token, which is the answer, or with the mask in its place."""
    tokenizer, encoded, starts, tokens = checkpoint.tokenizer, [], [], []
    mask = tokenizer.token_to_id(task.mask) if task.form == MASKED else None
    for number, example in enumerate(examples):
        text = max(example.fields.values(), key=len)
        ids = (encode_open(tokenizer, text) if mask is None else list(tokenizer.encode(text).ids))[:length]
        if len(ids) < 4:  # nothing that a token could follow from
            continue
        at = 2 + int(drawn(seed, "cut", number, len(ids) - 3)[0])
        tokens.append(ids[at])
        encoded.append(ids[:at] if mask is None else [*ids[:at], mask, *ids[at + 1 :]])
        starts.append(at - 1 if mask is None else at)
    if not encoded:
        raise ExportError("prior.short-texts", "the prior's texts have fewer than 4 tokens; give others with --prior")
    return _token_questions(checkpoint, architecture, encoded, starts, np.array(tokens))


def _token_questions(
    checkpoint: Checkpoint,
    architecture: Architecture,
    encoded: Sequence[Sequence[int]],
    starts: Sequence[int],
    tokens: np.ndarray,
) -> Questions:
    """Questions whose answers are tokens of the model's own."""
    known, labels = np.unique(tokens, return_inverse=True)
    rows = checkpoint.rows(architecture.output, known.tolist())
    biases = np.zeros(len(known), np.float32)
    if architecture.output_bias:
        biases = checkpoint.tensor(architecture.output_bias)[known]
    return _questions(encoded, starts, labels, rows, biases)


def _questions(
    encoded: Sequence[Sequence[int]], starts: Sequence[int], labels: np.ndarray, rows: np.ndarray, biases: np.ndarray
) -> Questions:
    return Questions(*padded(encoded), np.array(starts), labels, rows, biases)
