"""The model card of a model that was trained here: what it is, how it was trained, on what, and what that gives away.

It is the README.md of a checkpoint, with the head that the Hugging Face hub reads.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from fedspzo import __version__
from fedspzo.broker.privacy.accounting import spent
from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.held_out import read_evaluations
from fedspzo.broker.server.state_folder import history, open_database, open_journal
from fedspzo.device_runtime.log import several
from fedspzo.device_runtime.model.manifest import Manifest
from fedspzo.device_runtime.model.task import MASKED, SIMILARITY
from fedspzo.device_runtime.privacy.budget import epsilon
from fedspzo.device_runtime.privacy.ledger import DELTA
from fedspzo.device_runtime.protocol.plan import HIDDEN, Plan
from fedspzo.device_runtime.replica.weights import Replica
from fedspzo.progress import describe_evaluation
from fedspzo.run_folder import server_folder


@dataclass(frozen=True)
class Run:
    """What a run's folder says of a model.

    Attributes:
        rounds: closed ones, up to the model's.
        plan: of the last of them; None before the first.
        rho: what the rounds with noise cost, for what the last of them hides.
        noisy: how many of them had noise.
        evaluations: on held-out examples, in order, up to the model's round.
        examples: that the devices say they have.
        simulated: whether the devices were, so that none is listed.
    """

    rounds: tuple[ClosedRound, ...]
    plan: Plan | None
    rho: float
    noisy: int
    evaluations: tuple[Evaluated, ...]
    examples: int
    simulated: bool

    @property
    def devices(self) -> int:
        """Devices with results that counted."""
        return len({device for closed in self.rounds for device in closed.devices})


def read_run(folder: Path, round: int) -> Run:
    """Read a run up to a round. Raises StateError when the folder is not a run."""
    state = server_folder(folder)
    with open_database(state) as connection:
        rounds = tuple(closed for closed in history(connection) if closed.round <= round)
        evaluations = sorted(read_evaluations(connection).items())
        known, examples = connection.execute("SELECT COUNT(*), COALESCE(SUM(examples), 0) FROM devices").fetchone()
    with open_journal(state) as journal:
        plans = [entry.plan for entry in journal.entries(most=round)] if round else []
    noisy = [plan for plan in plans if plan.noise]
    rho = math.fsum(spent(plan, noisy[-1].noise[0].unit) for plan in noisy)
    found = tuple(Evaluated(number, each) for number, each in evaluations if number <= round)
    return Run(rounds, plans[-1] if plans else None, rho, len(noisy), found, examples, not known)


def describe_model(replica: Replica, run: Run | None = None, peft: bool = False) -> str:
    """The card of a model.

    Args:
        run: what it was trained in, if that is known.
        peft: the folder has the adapters alone.
    """
    manifest = replica.bundle.manifest
    parts = [_head(manifest, peft), _introduction(manifest, peft), _use(manifest, peft)]
    if run is not None:
        parts += [_figures(run), _method(manifest, run), _data(run), _privacy(manifest, run)]
    digests = f"The digest of its weights is `{replica.digest().hex()}`, and its bundle is `{_identity(replica)}`."
    parts.append(
        f"## Where it comes from\n\nWritten by [fedspzo]({_HOME}) {__version__} after round {replica.round}. {digests}"
    )
    return "\n\n".join(parts) + "\n"


_HOME = "https://pypi.org/project/fedspzo/"


def _identity(replica: Replica) -> str:
    return replica.bundle.identity.hex()


def _head(manifest: Manifest, peft: bool) -> str:
    """What the hub reads, in YAML, of which JSON's strings are a part."""
    similar = manifest.task.form == SIMILARITY
    library = "peft" if peft else "sentence-transformers" if similar else "transformers"
    pipeline = "sentence-similarity" if similar else "fill-mask" if manifest.task.form == MASKED else "text-generation"
    base = manifest.model.get("hub")
    lines = [
        *([f"base_model: {json.dumps(base)}"] if base else []), f"library_name: {library}", f"pipeline_tag: {pipeline}",
        "tags:", "- fedspzo", "- federated-learning", "- zeroth-order",
    ]  # fmt: skip
    return "\n".join(("---", *lines, "---"))


def _introduction(manifest: Manifest, peft: bool) -> str:
    task, model = manifest.task, manifest.model
    name = model.get("hub") or model["name"]
    what = "Adapters for" if peft else "The model"
    labels = f" Labels: {', '.join(label.name for label in task.labels)}." if task.labels else ""
    return (
        f"# {task.name}\n\n{what} {name} ({model['family']}), fine-tuned for the task '{task.name}' by forward passes"
        f" alone: devices run them on their own data, and send seeds and scalars.\n\nThe task is read off in the form"
        f" '{task.form}', with the template `{task.template.strip()}`.{labels}"
    )


def _use(manifest: Manifest, peft: bool) -> str:
    if manifest.task.form == SIMILARITY and not peft:
        return (
            "## Use\n\n`python classify.py DATA.jsonl` prints the accuracy, and `Classifier().answers([...])` in it"
            " gives answers. Labels are compared by their own vectors, in `labels.safetensors`: what this model"
            " makes of their words now gives other answers."
        )
    labels = (
        " `labels.safetensors` has the label words' trained rows of the output table." if manifest.task.labels else ""
    )
    tool = "peft's auto classes load" if peft else "transformers loads"
    return f"## Use\n\n{tool[0].upper()}{tool[1:]} this folder.{labels}"


def _figures(run: Run) -> str:
    rows = [("rounds", len(run.rounds)), ("devices whose results counted", run.devices)]
    lines = [f"| {name} | {value} |" for name, value in rows]
    if run.rounds:
        lines.append(f"| results | {sum(len(closed.devices) for closed in run.rounds)} |")
        lines.append(f"| loss in the first round, in the last | {run.rounds[0].loss:.4f}, {run.rounds[-1].loss:.4f} |")
    if run.evaluations:
        first, last = run.evaluations[0], run.evaluations[-1]
        lines.append(f"| held-out examples | {last.evaluation.examples} |")
        lines.append(f"| on them first | {describe_evaluation(first.record())} |")
        lines.append(f"| on them last | {describe_evaluation(last.record())} |")
    return "\n".join(("## Figures", "", "| | |", "| --- | --- |", *lines))


def _method(manifest: Manifest, run: Run) -> str:
    trained = [spec for spec in manifest.tensors if spec.trainable]
    count = sum(math.prod(spec.shape) for spec in trained)
    text = (
        f"## Method\n\nFedSPZO ([arXiv 2502.10239](https://arxiv.org/abs/2502.10239)): zeroth-order estimates of the"
        f" gradient along random directions. {count:,} numbers in {several(len(trained), 'tensor')} were trained."
    )
    if run.plan is None:
        return text
    plan = run.plan
    blocks = "; ".join(
        f"stages up to {block.stop}: {several(block.fanout, 'perturbation')}, learning rate {block.learning_rate:g}"
        if block.fanout
        else f"stages up to {block.stop}: frozen"
        for block in plan.blocks
    )
    sides = "one-sided" if plan.sides == 1 else "two-sided"
    return f"{text} The last round: {several(plan.steps, 'local step')}, batch {plan.batch}, {sides}; {blocks}."


def _data(run: Run) -> str:
    text = "## Data\n\n"
    if run.simulated:
        text += "The devices were simulated, with examples from a file of whoever ran this. "
    else:
        text += (
            f"Examples of {several(run.devices, 'device')}, which never left them: nobody has seen them who could"
            f" describe them here. The devices say that they have {run.examples:,} of them now. "
        )
    if run.evaluations:
        text += "The scores are on examples that were held out. "
    return text + (
        "Before you publish the model, say here whose texts these are, in which language, and what was agreed to."
    )


def _privacy(manifest: Manifest, run: Run) -> str:
    text = "## Privacy\n\n"
    if run.plan is None:
        return text + "Nothing was trained."
    seen = run.plan.describe(bool(manifest.enrolment_key))
    text += f"{seen[0].upper()}{seen[1:]}. "
    if not run.noisy:
        return text + "No noise was added: nothing is promised of what the model gives away of single examples."
    if not run.plan.noise or run.noisy < len(run.rounds):
        return text + f"{run.noisy} of {len(run.rounds)} rounds had noise, and of the others nothing is promised."
    (noise,), found = run.plan.noise, epsilon(run.rho, DELTA)
    return text + (
        f"All rounds had noise, which hides {HIDDEN[noise.unit]}: together ε = {found:.3g} at δ = {DELTA:g}, with the"
        f" shares of {several(noise.shares, 'honest device')}. Scores on held-out examples have no noise."
    )
