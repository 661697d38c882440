"""Models: exporting one, opening what was exported or trained, and asking it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedspzo import run_folder
from fedspzo.device_runtime.data.sources import question
from fedspzo.device_runtime.data.store import DataStore, load_data, tokenise
from fedspzo.device_runtime.errors import DataError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.task import GENERATION, Task
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.device_runtime.step import rewards, scores
from fedspzo.device_runtime.step.budget import AUTO, open_engine
from fedspzo.device_runtime.step.generation import GREEDY, stream
from fedspzo.device_runtime.step.runner import Forward
from fedspzo.device_runtime.step.sampling import Sampling

if TYPE_CHECKING:
    from fedspzo.export.families import Family
    from fedspzo.export.network.target import Target

#: A bundle or the folder of one (the model before training), a run's folder, or a replica that is open already.
Model = Replica | Bundle | Path | str


@dataclass(frozen=True)
class Prediction:
    """What a model answers to a text.

    Attributes:
        answer: the likeliest label, or the labels of a set, or a number, or the text that was generated.
        probabilities: label → its probability, the likeliest first; empty for a number or a text.
    """

    answer: str
    probabilities: Mapping[str, float]


def export_model(
    model: str | Path,
    task: str | Path | Task | Sequence[Task],
    out: str | Path,
    target: Target | None = None,
    *,
    families: Sequence[Family] = (),
    check: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Export a Hugging Face model: forward-only graphs, weights, tokenizer and task. It takes a minute or more.

    Args:
        model: a folder, a GGUF file, a hub id, or ``minilm`` or ``smollm2``, which packages carry.
        task: the name of one that comes with the project, the path of a TOML file, or your own tasks, one per form.
        out: the bundle's folder; it must not exist.
        target: engines, batches, lengths, and what is trained; by default LiteRT, batches of 8, 64 tokens, all weights.
        families: your own ones, asked before those that come with the project.
        check: whether to compare the whole bundle with transformers, on a few texts: its tokens and scores.
        progress: told what is being done.

    Raises:
        ExportError: the model or an option is not supported, or an engine would be slow or deviates from PyTorch
            or transformers.
        DataError: there is no such task, or its file is not one.
    """
    from fedspzo.export.supported import check_model_type
    from fedspzo.export.tasks import load_task

    if isinstance(task, str | Path):
        tasks = load_task(str(task))
    else:
        tasks = {own.form: own for own in ([task] if isinstance(task, Task) else task)}
    if not families:
        check_model_type(str(model))
    from fedspzo.export.network.target import Target  # these take a while
    from fedspzo.export.pipeline import export_bundle

    return export_bundle(str(model), tasks, target or Target(), Path(out), progress, families, check)


def open_bundle(folder: str | Path) -> Bundle:
    """The bundle in a folder, or that of a run. Raises BundleError when the folder has no bundle, or a damaged one."""
    return run_folder.open_bundle(Path(folder))


def open_model(model: Model, round: int | str = "last") -> Replica:
    """A model's weights: those of a run after a round, or of a bundle before the first.

    Args:
        round: of a run: its number, ``last``, or ``best`` for that of the best evaluation on held-out examples.

    Raises:
        BundleError, StateError: the folder is neither a bundle nor a run, or is damaged; or there is no such round.
    """
    if isinstance(model, Replica):
        return model
    return Replica(model) if isinstance(model, Bundle) else run_folder.open_model(Path(model), round)


def predict(
    model: Model, *texts: str, engine: str = "litert", threads: int = 1, memory: str = AUTO, sampling: Sampling = GREEDY
) -> Prediction:
    """What a model answers.

    Args:
        texts: one for each field of the task's template; of a dialogue what user and assistant say in turn, the user's
            question last.
        engine: litert, executorch, torch or tflite.
        threads: of the engine.
        memory: most memory that the process should take, as ``300MB``: a frozen base that does not fit is read from
            files as it is needed; ``all`` keeps it in memory, and ``auto`` does so where enough is free.
        sampling: how the tokens of a generated answer are chosen.

    Raises:
        DataError: there are too few or too many texts, or one is too long to be read.
        EngineError: the engine is not installed, or has no graphs in the bundle.
        BundleError, StateError: as :func:`open_model`.
    """
    forward, store = _asked(model, texts, engine, threads, memory)
    task = forward.manifest.task
    if task.form == GENERATION:
        return Prediction("".join(_pieces(forward, store, sampling)), {})
    return Prediction(*scores.read_answer(task, scores.predict(forward, store)[1][0]))


def stream_answer(
    model: Model, *texts: str, engine: str = "litert", threads: int = 1, memory: str = AUTO, sampling: Sampling = GREEDY
) -> Iterator[str]:
    """What a model generates, piece by piece as it comes; joined, they are :func:`predict`'s answer.

    Args:
        texts, engine, threads, memory, sampling: see :func:`predict`.

    Raises:
        DataError: also where the model's task is not to generate.
        BundleError, EngineError, StateError: as :func:`predict`.
    """
    forward, store = _asked(model, texts, engine, threads, memory)
    task = forward.manifest.task
    if task.form != GENERATION:
        raise DataError(
            "task.no-generation", f"task '{task.name}' generates no text; ask for its labels with fedspzo.predict"
        )
    return _pieces(forward, store, sampling)


def _asked(
    model: Model, texts: Sequence[str], engine: str, threads: int, memory: str
) -> tuple[Forward[Replica], DataStore]:
    """A model on its engine, and a question as the only example of a store."""
    replica = open_model(model)
    store = tokenise(replica.bundle, [question(texts, replica.bundle.manifest.task)])
    return Forward(open_engine(replica.bundle.manifest, engine, threads, memory), replica), store


def _pieces(forward: Forward[Replica], store: DataStore, sampling: Sampling) -> Iterator[str]:
    """What each answer so far has more than the one before."""
    before = ""
    for _, answer in stream(forward, store, sampling):
        yield answer.removeprefix(before)
        before = answer


def evaluate(
    model: Model, data: str | Path | DataStore, *, engine: str = "litert", threads: int = 1, memory: str = AUTO
) -> scores.Evaluation:
    """Loss and scores of a model on examples.

    Args:
        data: JSON lines, CSV, Parquet, or ``hub:NAME:SPLIT``; or examples of :func:`load_data`.
        engine, threads, memory: see :func:`predict`.

    Raises:
        DataError: the data cannot be read, or are not of the model's task.
        BundleError, EngineError, StateError: as :func:`predict`.
    """
    return scores.evaluate(*_ready(model, data, engine, threads, memory))


def _ready(
    model: Model, data: str | Path | DataStore, engine: str, threads: int, memory: str
) -> tuple[Forward[Replica], DataStore]:
    """A model on an engine, and examples for it."""
    replica = open_model(model)
    store = data if isinstance(data, DataStore) else load_data(data, replica.bundle)
    return Forward(open_engine(replica.bundle.manifest, engine, threads, memory), replica), store


def estimate_reward(
    model: Model, data: str | Path | DataStore, *, engine: str = "litert", threads: int = 1, memory: str = AUTO
) -> rewards.RewardEstimate:
    """The reward that a model's own answers would have, from reactions to what was shown, with its variance.

    Args:
        data, engine, threads, memory: see :func:`evaluate`.

    Raises:
        DataError: the data cannot be read, are not of the model's task, or have no reactions.
        BundleError, EngineError, StateError: as :func:`predict`.
    """
    return rewards.estimate_reward(*_ready(model, data, engine, threads, memory))


def materialize_model(
    model: Model,
    out: str | Path,
    *,
    peft: bool = False,
    source: str | Path | None = None,
    base_model: str | None = None,
    run: str | Path | None = None,
) -> Replica:
    """Write a model as a Hugging Face checkpoint, which transformers loads, with a model card.

    Args:
        out: the checkpoint's folder; it must not exist.
        peft: write the adapters alone, with the tokenizer, as a folder that peft's auto classes load.
        source: the original model, if it has moved since the export.
        base_model: with ``peft``, what that folder calls the original model; by default its id on the hub, or else its
            path from the present working directory.
        run: the folder of the run that the model is of, for the card; by default ``model``, where that is one.

    Returns:
        What was written.

    Raises:
        ExportError: the original model is not there, or the bundle has no adapters.
        BundleError, StateError: as :func:`open_model`.
    """
    from fedspzo.export.materialize import write_adapter, write_checkpoint
    from fedspzo.model_card import describe_model, read_run

    replica = open_model(model)
    if run is None and isinstance(model, str | Path) and not run_folder.is_bundle(Path(model)):
        run = model
    card = describe_model(replica, read_run(Path(run), replica.round) if run is not None else None, peft)
    at = str(source) if source is not None else None
    if peft:
        write_adapter(replica, Path(out), at, base_model, card)
    else:
        write_checkpoint(replica, Path(out), at, card)
    return replica
