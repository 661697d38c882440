"""Compensated rounding to 4 bits: layers' outputs stay nearer than with plain rounding, for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import make_checkpoint, wide
from refusals import raises

from fedspzo.device_runtime.model.manifest import TensorSpec
from fedspzo.device_runtime.model.stored import GROUP, Quantised, quantise, storable, widened
from fedspzo.export.calibrate import TEXT, compensate_base
from fedspzo.export.checkpoint import Checkpoint
from fedspzo.export.families import find_family
from fedspzo.export.layout import find_constant, write_weights
from fedspzo.export.modules.stage_module import Weights
from fedspzo.export.network.adapters import LowRank
from fedspzo.export.network.target import COMPENSATED, NEAREST, Target
from fedspzo.export.network.tensors import network_tensors
from fedspzo.export.network.tokens import with_special_tokens
from fedspzo.export.rounding import Inputs, compensate, output_errors
from fedspzo.export.tasks import choose_form, load_task


def correlated(random: np.random.Generator, tokens: int, width: int) -> torch.Tensor:
    """Inputs of which some directions are much larger than others, and some columns never used."""
    mixed = random.standard_normal((tokens, width)) @ random.standard_normal((width, width))
    mixed *= np.exp(random.standard_normal(width) * 2) * (random.random(width) > 0.05)
    return torch.from_numpy(mixed.astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 5), st.integers(1, 300))
@example(101493, 1, 3, 1)
def test_no_output_is_further_off_than_by_plain_rounding(seed: int, rows: int, groups: int, tokens: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_normal((rows, GROUP * groups)).astype(np.float32)
    x = correlated(random, tokens, GROUP * groups)
    found = compensate(matrix, Inputs.of(x))
    again = compensate(matrix, Inputs.of(x))
    np.testing.assert_array_equal(found.codes, again.codes)
    np.testing.assert_array_equal(found.scales, again.scales)
    np.testing.assert_array_equal(found.scales, storable(found.scales.astype(np.float32)))
    assert (found.codes.view(np.uint8) & 15 != 8).all(), "codes are −7 … 7"
    assert (found.codes >> 4 != 8).all()

    def errors(rounded: Quantised) -> np.ndarray:
        difference = matrix - widened(rounded)
        return np.square(x.numpy().astype(np.float64) @ difference.T.astype(np.float64)).mean(axis=0)

    plain = errors(quantise(matrix, "int4"))
    assert (errors(found) <= plain * 1.001 + 1e-6 * plain.max()).all()
    inputs = Inputs.of(x)
    theirs = output_errors(torch.from_numpy(matrix), torch.from_numpy(widened(found)), inputs).numpy()
    # The small difference of large float32 sums, where a rounding happens to be right for the few inputs there are.
    largest = np.square(np.abs(x.numpy().astype(np.float64)) @ np.abs(matrix - widened(found)).T).mean(axis=0)
    noise = np.finfo(np.float32).eps * largest
    assert (np.abs(theirs - errors(found)) <= 0.01 * errors(found) + 1e-5 * plain.max() + noise).all()


def test_correlated_inputs_leave_much_less_of_the_error() -> None:
    random = np.random.default_rng(3)
    matrix = random.standard_normal((64, 96)).astype(np.float32)
    x = correlated(random, 400, 96)
    inputs = Inputs.of(x)
    exact = torch.from_numpy(matrix)
    plain, kept = (
        float(output_errors(exact, torch.from_numpy(widened(rounded)), inputs).sum())
        for rounded in (quantise(matrix, "int4"), compensate(matrix, inputs))
    )
    assert kept < plain / 3


class Small:
    """A small model whose tensor files are in a folder, as an export writes them before it lowers anything."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.checkpoint = Checkpoint(str(make_checkpoint(folder / "model", name, **wide(name))))
        self.family = find_family(self.checkpoint)
        architecture = self.family.describe(self.checkpoint, 16)
        task = choose_form(dict(load_task("sst2")), architecture.forms, name)
        target = Target(adapters=LowRank(4), weights="int4")
        task = with_special_tokens(self.checkpoint, task)
        self.tensors = network_tensors(self.checkpoint, architecture, task, target)
        write_weights(folder, list(self.tensors.values()), (architecture.embedding,))
        self.architecture = architecture

    def matrices(self) -> dict[str, np.ndarray]:
        """The matrices of 4 bits as they are in the folder now."""
        specs = [tensor.spec for tensor in self.tensors.values() if tensor.spec.dtype == "int4"]
        return {spec.name: widened(find_constant(self.folder, spec).matrix) for spec in specs}

    def first_layer(self, matrices: dict[str, np.ndarray]) -> np.ndarray:
        """The activations after the first layer for the project's text, with such matrices."""
        ids = np.array(self.checkpoint.tokenizer.encode(TEXT.read_text(encoding="utf-8")).ids[:512]).reshape(32, 16)
        hidden = torch.from_numpy(self.tensors[self.architecture.embedding].load()[0][ids])
        feeds = {"hidden": hidden, "rows": hidden, "mask": torch.ones(ids.shape)}
        for stage in self.architecture.stages[:2]:
            names = {name: stage.prefix + name for name in stage.module.tensors}
            arrays = {name: matrices.get(whole, self.tensors[whole].load()) for name, whole in names.items()}
            weights = Weights({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
            found = stage.module.compute(weights, *(feeds[feed] for feed in stage.module.feeds))
            feeds["hidden"] = (
                found if isinstance(found, torch.Tensor) else found[0]
            )  # decoders give keys and values too
            if not self.matrices().keys().isdisjoint(names.values()):
                break
        return feeds["hidden"].numpy()


@pytest.mark.parametrize("name", ["bert", "opt-350m", "gpt2", "llama-3.2", "qwen3"])
def test_every_matrix_of_a_model_is_rounded_for_its_inputs(name: str, tmp_path: Path) -> None:
    model = Small(tmp_path, name)
    plain = model.matrices()
    steps: list[str] = []
    compensate_base(model.checkpoint, model.family, model.tensors, model.folder, (), steps.append)
    kept = model.matrices()
    assert kept.keys() == plain.keys()
    assert all((kept[matrix] != plain[matrix]).any() for matrix in plain)
    assert len(steps) == len(model.architecture.stages)
    exact = model.first_layer({})
    errors = [np.square(model.first_layer(matrices) - exact).mean() for matrices in (plain, kept)]
    assert errors[1] < 0.9 * errors[0]

    compensate_base(model.checkpoint, model.family, model.tensors, model.folder)
    for matrix, values in model.matrices().items():
        np.testing.assert_array_equal(values, kept[matrix], "the same text gives the same codes")


def test_calibration_texts_of_your_own(tmp_path: Path) -> None:
    model = Small(tmp_path, "llama-3.2")

    def calibrate(*texts: Path) -> None:
        compensate_base(model.checkpoint, model.family, model.tensors, model.folder, texts)

    plain = model.matrices()
    text = tmp_path / "text.txt"
    text.write_text("a short text")
    with raises("export.calibration-short", "tokens", "give more", "--rounding nearest"):
        calibrate(text)
    with raises("export.calibration-unreadable", "none.txt", "UTF-8"):
        calibrate(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with raises("export.calibration-unreadable", "bytes.txt", "UTF-8"):
        calibrate(text, tmp_path / "bytes.txt")
    assert all((values == plain[name]).all() for name, values in model.matrices().items())
    text.write_text("\n".join(f"sentence {number} is long enough to be of use" for number in range(100)))
    calibrate(text)
    assert all((values != plain[name]).any() for name, values in model.matrices().items())


def test_large_models_are_compensated_when_asked() -> None:
    small, large = ([TensorSpec("a", (1000, size), False, "a", False)] for size in (1000, 1_000_000))
    four = {"adapters": LowRank(4), "weights": "int4"}
    assert [Target(**four).rounding_of(tensors) for tensors in (small, large)] == [COMPENSATED, NEAREST]
    assert Target(**four, rounding=COMPENSATED).rounding_of(large) == COMPENSATED
    assert Target(**four, calibration=[Path("text")]).rounding_of(large) == COMPENSATED
    assert Target(**four, rounding=NEAREST).rounding_of(small) == NEAREST
    assert Target(weights="float32").rounding_of(small) == ""
    with raises("export.unknown-rounding", "'up'", "compensated or nearest"):
        Target(**four, rounding="up")
    with raises("export.rounding-without-int4", "int8", "leave them out"):
        Target(adapters=LowRank(4), weights="int8", rounding=NEAREST)
    with raises("export.calibration-unused", "--rounding nearest", "leave out"):
        Target(**four, rounding=NEAREST, calibration=[Path("text")])
