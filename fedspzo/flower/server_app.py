"""The ServerApp: a job's server, whose devices are on Flower's nodes."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedspzo.broker.rounds.aggregate import ClosedRound
from fedspzo.broker.server.evaluation import Evaluated
from fedspzo.broker.server.progress import Event, JobResult
from fedspzo.broker.server.server import Server
from fedspzo.device_runtime.data.store import load_data
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.device_runtime.model.modes import MODES
from fedspzo.flower.grid import GridTransport
from fedspzo.flower.settings import Settings
from fedspzo.options.job import add_job_options, make_job
from fedspzo.progress import show

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a job to its end, or the rest of one whose state folder is given.

    Raises:
        FedSPZOError: as :class:`fedspzo.Server`; or the job is one whose results are masked.
    """
    options = settings().read(context.run_config)
    job, bundle = make_job(options), Bundle(options.bundle)
    if job.runs_as != MODES[0]:
        raise PlanError(
            "flower.masked",
            f"results are masked in the mode {job.runs_as}, which needs devices that stay from one message to the next,"
            " and Flower starts them for each; set mode = robust, or run the job over MQTT",
        )
    Server(
        bundle,
        job,
        GridTransport(grid, options.job),
        options.state,
        name=options.job,
        held_out=load_data(options.data, bundle) if options.data else None,
        engine=options.engine,
        devices=options.devices,
        evaluate_every=options.evaluate_every,
        patience=options.patience,
        serve_after=0.0,
        observe=_observe,
    ).run()


def settings() -> Settings:
    """What the table ``server`` may say: options of ``fedspzo server``, a job's settings among them."""
    known = Settings("server")
    known.add_argument("--bundle", type=Path, required=True)
    known.add_argument("--state", type=Path, required=True)
    known.add_argument("--data")
    known.add_argument("--job", default="default")
    known.add_argument("--engine", default="litert")
    known.add_argument("--devices", type=int, default=1)
    known.add_argument("--evaluate-every", type=int, default=20)
    known.add_argument("--patience", type=int)
    add_job_options(known)
    return known


def _observe(event: Event) -> None:
    """Print progress, which Flower logs."""
    if isinstance(event, ClosedRound):
        show(False, round=event.round, loss=event.loss, results=len(event.devices), seconds=event.seconds)
    elif isinstance(event, Evaluated):
        show(False, round=event.round, held_out_loss=event.evaluation.loss, **event.evaluation.scores)
    elif isinstance(event, JobResult):
        differing = [name for name, report in event.reports.items() if report.digest != event.digest]
        models = f"the models of {', '.join(differing)} DIFFER" if differing else "all models are equal"
        print(
            f"finished: {len(event.reports)} devices have reported, {models}; the digest is {event.digest.hex()}",
            flush=True,
        )
