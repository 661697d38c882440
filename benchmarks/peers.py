"""What FedSPZO's step is compared with, in PyTorch on the CPU: MeZO, DeComFL, and backpropagation with Adam or LoRA.

They were written for this comparison after the papers and their authors' programs, and where those leave a choice, the
quicker one was taken: parameters are changed by one in-place addition (MeZO's program allocates two temporaries), only
the label words are scored and only at the mask, dropout is off, and what else the programs do (statistics, resetting
a client's model, schedules) is left out. All train the same tensors as FedSPZO, which are all but the tables of tokens
and positions. :class:`Authors` takes the steps of the program that DeComFL's authors published, as it is, on the same
loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter
from transformers import AutoModelForMaskedLM

from fedspzo.device_runtime.data.store import DataStore
from fedspzo.device_runtime.model.bundle import Bundle

AUTHORS_URL = "https://github.com/ZidongLiu/DeComFL"
#: The loss of the model as its parameters are now: a scalar.
Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """A RoBERTa that peers train, and its loss on one batch.

    Attributes:
        model: in evaluation mode; the parameters that are trained require gradients.
        ids: int64 [batch, tokens].
        mask: int64 [batch, tokens], 1 for tokens and 0 for padding.
        places: int64 [batch], where the mask token is.
        labels: int64 [batch].
        words: int64 [labels], the token of each label word.
    """

    model: Module
    ids: Tensor
    mask: Tensor
    places: Tensor
    labels: Tensor
    words: Tensor

    @property
    def trained(self) -> list[Parameter]:
        """The parameters that are trained, in the model's order."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def scores(self) -> Tensor:
        """Float32 [batch, labels]: of the label words at the mask."""
        hidden = self.model.roberta(input_ids=self.ids, attention_mask=self.mask).last_hidden_state
        head = self.model.lm_head
        at = head.layer_norm(F.gelu(head.dense(hidden[torch.arange(len(self.ids)), self.places])))
        return F.linear(at, head.decoder.weight[self.words], head.decoder.bias[self.words])

    def loss(self) -> Tensor:
        """Mean cross-entropy of the scores."""
        return F.cross_entropy(self.scores(), self.labels)


def load_peer(checkpoint: Path, bundle: Bundle, store: DataStore) -> Peer:
    """The checkpoint that a bundle was exported from, with all examples of a store as its batch."""
    from fedspzo.export.checkpoint import Checkpoint
    from fedspzo.export.network.tokens import label_tokens

    model = AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    train_only(model, {spec.source for spec in bundle.manifest.tensors if spec.trainable})
    longest = int(store.lengths.max())
    return Peer(
        model,
        torch.from_numpy(store.ids[:, :longest]).long(),
        (torch.arange(longest) < torch.from_numpy(store.lengths)[:, None]).long(),
        torch.from_numpy(store.starts).long(),
        torch.from_numpy(store.labels).long(),
        torch.tensor(label_tokens(Checkpoint(str(checkpoint)), bundle.manifest.task)),
    )


def train_only(model: Module, names: Collection[str]) -> None:
    """Let the parameters of these names require gradients, and no others. Raises KeyError when one is missing."""
    parameters = dict(model.named_parameters())
    model.requires_grad_(False)
    for name in names:
        parameters[name].requires_grad_(True)


@torch.inference_mode()
def mezo_step(
    loss: Loss, parameters: Collection[Parameter], seed: int, epsilon: float = 1e-3, learning_rate: float = 1e-6
) -> float:
    """One step of MeZO (arXiv 2305.17333, algorithm 1): z is drawn four times from its seed and never kept whole.

    Returns:
        The projected gradient (l₊ − l₋)/2ε.
    """

    def shift(factor: float) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.add_(torch.normal(0.0, 1.0, parameter.shape), alpha=factor)

    shift(epsilon)
    above = loss()
    shift(-2 * epsilon)
    below = loss()
    shift(epsilon)
    projected = float((above - below) / (2 * epsilon))
    shift(-learning_rate * projected)
    return projected


@torch.inference_mode()
def decomfl_step(
    loss: Loss,
    parameters: Collection[Parameter],
    perturbations: int,
    seed: int,
    epsilon: float = 1e-3,
    learning_rate: float = 1e-6,
) -> list[float]:
    """One local step of a DeComFL client (arXiv 2405.15861), two-sided, in place, at the memory of inference.

    Returns:
        The scalar (l₊ − l₋)/2ε of each perturbation.
    """

    def shift(perturbation: int, factor: float) -> None:
        generator = torch.Generator().manual_seed(seed * perturbations + perturbation)
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=factor)

    scalars = []
    for perturbation in range(perturbations):
        shift(perturbation, epsilon)
        above = loss()
        shift(perturbation, -2 * epsilon)
        below = loss()
        shift(perturbation, epsilon)
        scalars.append(float((above - below) / (2 * epsilon)))
    for perturbation, scalar in enumerate(scalars):
        shift(perturbation, -learning_rate * scalar / perturbations)
    return scalars


@torch.inference_mode()
def decomfl_step_keeping(
    loss: Loss,
    parameters: Collection[Parameter],
    perturbations: int,
    seed: int,
    epsilon: float = 1e-3,
    learning_rate: float = 1e-6,
) -> list[float]:
    """The same step as its authors' program takes it by default: z and the gradient are kept whole.

    Each z is drawn once, for twice the weights' memory more.
    """
    sizes = [parameter.numel() for parameter in parameters]

    def shift(whole: Tensor, factor: float) -> None:
        for parameter, part in zip(parameters, whole.split(sizes), strict=True):
            parameter.add_(part.view(parameter.shape), alpha=factor)

    gradient = torch.zeros(sum(sizes))
    scalars = []
    for perturbation in range(perturbations):
        generator = torch.Generator().manual_seed(seed * perturbations + perturbation)
        z = torch.randn(len(gradient), generator=generator)
        shift(z, epsilon)
        above = loss()
        shift(z, -2 * epsilon)
        below = loss()
        shift(z, epsilon)
        scalars.append(float((above - below) / (2 * epsilon)))
        gradient.add_(z, alpha=scalars[-1] / perturbations)
    shift(gradient, -learning_rate)
    return scalars


class Authors:
    """A client of the program of DeComFL's authors, from a folder with its source.

    It takes their local update whole, with the forward pass of its own that their statistics take.
    """

    def __init__(self, folder: Path, peer: Peer, perturbations: int, recommended: bool) -> None:
        """Prepare a client for a peer's model and batch.

        Args:
            recommended: as their README's command has it, with one-sided differences and z drawn again for each use;
                otherwise as their program does by default, two-sided with z kept.

        Raises:
            SystemExit: the folder does not hold their program.
        """
        sys.path.insert(0, str(folder))
        try:
            from cezo_fl.client import ResetClient
            from cezo_fl.gradient_estimators import random_gradient_estimator_splitted as estimators
            from cezo_fl.util.metrics import accuracy
        except ImportError as error:
            raise SystemExit(f"'{folder}' does not hold DeComFL's program ({error}); clone {AUTHORS_URL}") from error
        finally:
            sys.path.remove(str(folder))
        kind = "RandomGradientEstimatorParamwise" if recommended else "RandomGradientEstimatorBatch"
        method = "rge-forward" if recommended else "rge-central"
        with redirect_stdout(sys.stderr):
            estimator = getattr(estimators, kind)(
                peer.trained, mu=1e-3, num_pert=perturbations, grad_estimate_method=method, device="cpu"
            )
        self._client = ResetClient(
            peer.model, lambda _model, _ids: peer.scores(), [(peer.ids, peer.labels)], estimator,
            torch.optim.SGD(peer.trained, lr=1e-6), F.cross_entropy, accuracy, torch.device("cpu"),
        )  # fmt: skip

    @torch.no_grad()
    def step(self, seed: int) -> list[float]:
        """One local update.

        Returns:
            The scalar of each perturbation.
        """
        (scalars,) = self._client.local_update([seed]).grad_tensors
        return [float(scalar) for scalar in scalars]


def adam(parameters: Collection[Parameter]) -> torch.optim.Optimizer:
    """Adam (arXiv 1412.6980) with two moments of every parameter."""
    return torch.optim.Adam(parameters, lr=1e-5)


def add_lora(model: Module, rank: int = 8) -> None:
    """Put low-rank adapters (LoRA, arXiv 2106.09685) on queries and values, and train them alone."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
    inject_adapter_in_model(settings, model)
    train_only(model, [name for name, _ in model.named_parameters() if "lora_" in name])


def backpropagation_step(loss: Loss, optimizer: torch.optim.Optimizer) -> None:
    """Forward, backward, and the optimizer's step."""
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()
