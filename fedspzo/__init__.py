"""FedSPZO: federated fine-tuning of language models with forward passes only.

Everything public is a name of this package, and importing it imports nothing else: a name is looked up when it is used.

    import fedspzo

    bundle = fedspzo.export_model("minilm", task="intents", out="bundle")
    run = fedspzo.simulate(bundle, data="train.jsonl", job=fedspzo.Job(rounds=20), held_out="held-out.jsonl")
    print(run.evaluation.scores)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedspzo.api.models import Prediction as Prediction
    from fedspzo.api.models import estimate_reward as estimate_reward
    from fedspzo.api.models import evaluate as evaluate
    from fedspzo.api.models import export_model as export_model
    from fedspzo.api.models import materialize_model as materialize_model
    from fedspzo.api.models import open_bundle as open_bundle
    from fedspzo.api.models import open_model as open_model
    from fedspzo.api.models import predict as predict
    from fedspzo.api.models import stream_answer as stream_answer
    from fedspzo.api.planning import PlannedSettings as PlannedSettings
    from fedspzo.api.planning import plan_settings as plan_settings
    from fedspzo.api.planning import published_job as published_job
    from fedspzo.api.simulation import Simulation as Simulation
    from fedspzo.api.simulation import simulate as simulate
    from fedspzo.api.trackers import MLflow as MLflow
    from fedspzo.api.trackers import OpenTelemetry as OpenTelemetry
    from fedspzo.api.trackers import TensorBoard as TensorBoard
    from fedspzo.api.trackers import WandB as WandB
    from fedspzo.broker.mqtt.embedded import EmbeddedBroker as EmbeddedBroker
    from fedspzo.broker.mqtt.embedded import spawn_broker as spawn_broker
    from fedspzo.broker.rounds.adaptive import MakePlans as MakePlans
    from fedspzo.broker.rounds.adaptive import Pace as Pace
    from fedspzo.broker.rounds.adaptive import Plans as Plans
    from fedspzo.broker.rounds.aggregate import Aggregate as Aggregate
    from fedspzo.broker.rounds.aggregate import ClosedRound as ClosedRound
    from fedspzo.broker.rounds.aggregate import close_round as close_round
    from fedspzo.broker.rounds.job import Job as Job
    from fedspzo.broker.rounds.sampling import Candidate as Candidate
    from fedspzo.broker.rounds.sampling import Sample as Sample
    from fedspzo.broker.rounds.sampling import choose_cohort as choose_cohort
    from fedspzo.broker.server.admission import Admission as Admission
    from fedspzo.broker.server.evaluation import Evaluated as Evaluated
    from fedspzo.broker.server.progress import Callback as Callback
    from fedspzo.broker.server.progress import JobResult as JobResult
    from fedspzo.broker.server.progress import observe_all as observe_all
    from fedspzo.broker.server.server import Endpoint as Endpoint
    from fedspzo.broker.server.server import Server as Server
    from fedspzo.broker.server.status import ServerStatus as ServerStatus
    from fedspzo.broker.simulation.driver import SimulatedRound as SimulatedRound
    from fedspzo.broker.simulation.fleet import Behaviour as Behaviour
    from fedspzo.broker.simulation.fleet import parse_quantile as parse_quantile
    from fedspzo.device_runtime.data.store import DataStore as DataStore
    from fedspzo.device_runtime.data.store import load_data as load_data
    from fedspzo.device_runtime.device.device import Device as Device
    from fedspzo.device_runtime.errors import BrokerError as BrokerError
    from fedspzo.device_runtime.errors import BundleError as BundleError
    from fedspzo.device_runtime.errors import DataError as DataError
    from fedspzo.device_runtime.errors import EnergyError as EnergyError
    from fedspzo.device_runtime.errors import EngineError as EngineError
    from fedspzo.device_runtime.errors import ExportError as ExportError
    from fedspzo.device_runtime.errors import FedSPZOError as FedSPZOError
    from fedspzo.device_runtime.errors import MessageError as MessageError
    from fedspzo.device_runtime.errors import PlanError as PlanError
    from fedspzo.device_runtime.errors import StateError as StateError
    from fedspzo.device_runtime.link.access import Access as Access
    from fedspzo.device_runtime.model.bundle import Bundle as Bundle
    from fedspzo.device_runtime.model.task import Label as Label
    from fedspzo.device_runtime.model.task import Task as Task
    from fedspzo.device_runtime.platform.conditions import Limits as Limits
    from fedspzo.device_runtime.protocol.entry import Contribution as Contribution
    from fedspzo.device_runtime.protocol.entry import Entry as Entry
    from fedspzo.device_runtime.protocol.messages import Result as Result
    from fedspzo.device_runtime.protocol.plan import Block as Block
    from fedspzo.device_runtime.protocol.plan import Plan as Plan
    from fedspzo.device_runtime.replica.weights import Replica as Replica
    from fedspzo.device_runtime.step.rewards import RewardEstimate as RewardEstimate
    from fedspzo.device_runtime.step.sampling import Sampling as Sampling
    from fedspzo.device_runtime.step.scores import Evaluation as Evaluation
    from fedspzo.export.families import Architecture as Architecture
    from fedspzo.export.families import Family as Family
    from fedspzo.export.families import Stage as Stage
    from fedspzo.export.network.adapters import Cores as Cores
    from fedspzo.export.network.adapters import LowRank as LowRank
    from fedspzo.export.network.adapters import OutputScales as OutputScales
    from fedspzo.export.network.target import Target as Target

__version__ = "0.3.0"

#: Module → its public names, by subject; for type checkers they are imported below.
_PUBLIC = {
    "fedspzo.api.models": (
        *(
            "export_model",
            "open_bundle",
            "open_model",
            "predict",
            "stream_answer",
            "evaluate",
            "estimate_reward",
            "materialize_model",
        ),
        "Prediction",
    ),
    "fedspzo.device_runtime.model.bundle": ("Bundle",),
    "fedspzo.device_runtime.replica.weights": ("Replica",),
    "fedspzo.device_runtime.step.sampling": ("Sampling",),
    "fedspzo.device_runtime.step.rewards": ("RewardEstimate",),
    "fedspzo.device_runtime.step.scores": ("Evaluation",),
    "fedspzo.device_runtime.data.store": ("DataStore", "load_data"),
    "fedspzo.device_runtime.model.task": ("Task", "Label"),
    "fedspzo.export.network.target": ("Target",),
    "fedspzo.export.network.adapters": ("Cores", "LowRank", "OutputScales"),
    "fedspzo.export.families": ("Family", "Architecture", "Stage"),
    "fedspzo.broker.rounds.job": ("Job",),
    "fedspzo.api.planning": ("published_job", "plan_settings", "PlannedSettings"),
    "fedspzo.api.simulation": ("simulate", "Simulation"),
    "fedspzo.broker.simulation.driver": ("SimulatedRound",),
    "fedspzo.broker.simulation.fleet": ("Behaviour", "parse_quantile"),
    "fedspzo.broker.server.server": ("Server", "Endpoint"),
    "fedspzo.broker.server.admission": ("Admission",),
    "fedspzo.broker.server.status": ("ServerStatus",),
    "fedspzo.broker.server.progress": ("JobResult", "Callback", "observe_all"),
    "fedspzo.device_runtime.device.device": ("Device",),
    "fedspzo.device_runtime.platform.conditions": ("Limits",),
    "fedspzo.device_runtime.link.access": ("Access",),
    "fedspzo.broker.mqtt.embedded": ("spawn_broker", "EmbeddedBroker"),
    "fedspzo.broker.server.evaluation": ("Evaluated",),
    "fedspzo.api.trackers": ("TensorBoard", "MLflow", "WandB", "OpenTelemetry"),
    "fedspzo.broker.rounds.aggregate": ("ClosedRound", "Aggregate", "close_round"),
    "fedspzo.broker.rounds.sampling": ("Candidate", "Sample", "choose_cohort"),
    "fedspzo.broker.rounds.adaptive": ("Plans", "MakePlans", "Pace"),
    "fedspzo.device_runtime.protocol.entry": ("Entry", "Contribution"),
    "fedspzo.device_runtime.protocol.plan": ("Plan", "Block"),
    "fedspzo.device_runtime.protocol.messages": ("Result",),
    "fedspzo.device_runtime.errors": (
        *("FedSPZOError", "BrokerError", "BundleError", "DataError", "EnergyError", "EngineError", "ExportError"),
        *("MessageError", "PlanError", "StateError"),
    ),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """A public name, on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fedspzo' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
