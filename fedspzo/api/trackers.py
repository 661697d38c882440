"""Observers that write a job's progress where experiments are tracked; each needs a package of its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.progress import Callback, JobResult
from fedspzo.device_runtime.errors import FedSPZOError
from fedspzo.progress import describe_uncertainty


class Tracker(Callback, ABC):
    """Writes ``loss``, ``results`` and ``seconds`` of each round, and ``held_out/loss`` and the scores beside it.

    Where they are known, ``loss_uncertainty`` and ``held_out/loss_uncertainty`` are the losses' standard errors.
    """

    @abstractmethod
    def write(self, name: str, value: float, round: int) -> None:
        """Write a figure of a round."""

    def on_round(self, closed: ClosedRound) -> None:
        """See :class:`fedspzo.Callback`."""
        figures = {"loss": closed.loss, "results": len(closed.devices), "seconds": closed.seconds}
        for name, value in {**figures, **describe_uncertainty(closed)}.items():
            self.write(name, value, closed.round)

    def on_evaluation(self, evaluated: Evaluated) -> None:
        """See :class:`fedspzo.Callback`."""
        found = evaluated.evaluation
        for name, value in {"loss": found.loss, **describe_uncertainty(found), **found.scores}.items():
            self.write(f"held_out/{name}", value, evaluated.round)


class TensorBoard(Tracker):
    """Writes to a folder that TensorBoard shows."""

    def __init__(self, folder: str | Path) -> None:
        """Raises FedSPZOError when tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _missing("TensorBoard", "tensorboardX") from None
        self._writer = SummaryWriter(str(folder))

    def write(self, name: str, value: float, round: int) -> None:
        """Write a figure of a round."""
        self._writer.add_scalar(name, value, round)

    def on_end(self, result: JobResult) -> None:
        """See :class:`fedspzo.Callback`."""
        self._writer.close()


class MLflow(Tracker):
    """Writes to a run of its own of MLflow."""

    def __init__(self, experiment: str = "fedspzo", uri: str | None = None) -> None:
        """Start a run.

        Args:
            experiment: its name; a new one is made.
            uri: of the tracking server; by default as MLflow's environment says.

        Raises:
            FedSPZOError: MLflow is not installed.
        """
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise _missing("MLflow", "mlflow") from None
        self._client = MlflowClient(uri, registry_uri=uri)  # no registry is used; its default may be out of reach
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self.run_id: str = self._client.create_run(number).info.run_id

    def write(self, name: str, value: float, round: int) -> None:
        """Write a figure of a round."""
        self._client.log_metric(self.run_id, name, value, step=round)

    def on_end(self, result: JobResult) -> None:
        """See :class:`fedspzo.Callback`."""
        self._client.set_tag(self.run_id, "digest", result.digest.hex())
        self._client.set_terminated(self.run_id)


class WandB(Tracker):
    """Writes to a run of its own of Weights & Biases, wherever its environment says; offline into a folder."""

    def __init__(self, project: str = "fedspzo") -> None:
        """Start a run. Raises FedSPZOError when wandb is not installed."""
        try:
            import wandb
        except ImportError:
            raise _missing("Weights & Biases", "wandb") from None
        self._run = wandb.init(project=project)

    def write(self, name: str, value: float, round: int) -> None:
        """Write a figure of a round."""
        self._run.log({name: value, "round": round})  # an evaluation may come after later rounds

    def on_end(self, result: JobResult) -> None:
        """See :class:`fedspzo.Callback`."""
        self._run.summary["digest"] = result.digest.hex()
        self._run.finish()


class OpenTelemetry(Callback):
    """Sends a trace of each round: a span for the round, and in it one for each device until its result came.

    Where to is said by the environment of OpenTelemetry, by default ``http://localhost:4318``.
    """

    def __init__(self, job: str = "default") -> None:
        """Raises FedSPZOError when OpenTelemetry is not installed.

        Args:
            job: its name, for the attribute ``fedspzo.job``.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import set_span_in_context
        except ImportError:
            raise _missing("OpenTelemetry", "opentelemetry-exporter-otlp-proto-http") from None
        self._job, self._inside = job, set_span_in_context
        self._provider = TracerProvider(resource=Resource.create({"service.name": "fedspzo"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("fedspzo")

    def on_round(self, closed: ClosedRound) -> None:
        """See :class:`fedspzo.Callback`."""
        end = time.time_ns()
        begin = end - int(1e9 * closed.seconds)
        figures: dict[str, str | float] = {
            "job": self._job, "round": closed.round, "loss": closed.loss, "results": len(closed.devices),
            "step_seconds": closed.step_seconds,
        }  # fmt: skip
        attributes = {f"fedspzo.{name}": value for name, value in figures.items()}
        span = self._tracer.start_span("round", start_time=begin, attributes=attributes)
        for device, seconds in closed.arrived.items():
            result = self._tracer.start_span(
                "result", self._inside(span), start_time=begin, attributes={"fedspzo.device": device}
            )
            result.end(begin + int(1e9 * seconds))
        span.end(end)

    def on_end(self, result: JobResult) -> None:
        """See :class:`fedspzo.Callback`."""
        self._provider.force_flush()


def _missing(program: str, package: str) -> FedSPZOError:
    return FedSPZOError("install.tracker", f"{program} is not installed here; install it with: pip install {package}")
