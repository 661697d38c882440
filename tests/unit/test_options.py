"""One source of a job's settings: rules, options, files and reference; and how the command line starts and ends."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from refusals import raises, refused

from fedspzo import __version__
from fedspzo.broker.rounds.job import Job, check_job
from fedspzo.broker.rounds.methods import METHODS, SIMULATED, Method, choose_method
from fedspzo.cli import EXTRAS, main
from fedspzo.device_runtime.errors import PlanError
from fedspzo.device_runtime.model.bundle import Bundle
from fedspzo.options.fields import reference
from fedspzo.options.job import add_job_options, make_job, read_settings

FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Job)}
NUMBERS = st.one_of(st.integers(), st.integers(-2, 20), st.floats(), st.sampled_from([0, 1, 1e-3, 0.5, math.nan]))
WORDS = st.one_of(st.text(max_size=5), st.sampled_from(["shared", "device", "energy", "rates", "counts", "gaussian"]))
VALUES = {
    "int": st.one_of(st.integers(), st.integers(0, 20)), "float": NUMBERS, "bool": st.booleans(), "str": WORDS,
    "tuple[int, ...]": st.lists(st.integers(0, 20), max_size=3).map(tuple),
    "tuple[float, ...]": st.lists(NUMBERS, max_size=3).map(tuple), "tuple[str, ...]": st.lists(WORDS, max_size=2),
}  # fmt: skip
ANYTHING = st.one_of(st.none(), NUMBERS, WORDS, st.booleans(), st.lists(st.one_of(NUMBERS, WORDS)), st.binary())


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={name: VALUES[kind] for name, kind in FIELDS.items()}),
    st.dictionaries(st.sampled_from(list(FIELDS)), ANYTHING, max_size=1),
)
def test_a_job_is_valid_or_says_why_not(values: dict[str, object], wrong: dict[str, object]) -> None:
    try:
        job: Job | PlanError = Job(**{**values, **wrong})  # type: ignore[arg-type]
    except PlanError as error:
        job = error
    if isinstance(job, PlanError):
        assert job.kind.startswith(("job.", "plan."))
        assert str(job)
    else:
        assert job.quorum <= job.cohort <= job.asked
        assert dataclasses.replace(job) == job
        assert hash(job) == hash(dataclasses.replace(job))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"quorum": 3, "cohort": 2, "deadline": -5}, "job.out-of-range"),
        ({"quorum": 3, "cohort": 2}, "job.quorum-above-cohort"),
        ({"sampling": "best"}, "job.unknown-choice"),
        ({"seeds": "mine"}, "job.unknown-choice"),
        ({"distribution": "cauchy"}, "job.unknown-choice"),
        ({"sides": 3}, "job.unknown-choice"),
        ({"adapt": ("speed",)}, "job.unknown-choice"),
        ({"rounds": 1.5}, "job.wrong-type"),
        ({"rounds": True}, "job.wrong-type"),
        ({"fanouts": "1,16"}, "job.wrong-type"),
        ({"final_rate": math.nan}, "job.out-of-range"),
        ({"fanouts": (1, 2, 3)}, "job.blocks-differ"),
        ({"fanouts": (), "scales": (1,)}, "job.blocks-differ"),
        ({"fanouts": (1,), "scales": (1,), "learning_rates": (1,), "first_every": 2}, "job.no-first-block"),
        ({"adapt": ("counts",)}, "job.counts-of-one-block"),
        ({"votes": True, "seeds": "device"}, "job.votes-on-own-directions"),
        ({"rebase_every": 3}, "plan.no-pool-to-rebase"),
        ({"fanouts": (1, 0)}, "plan.fanout-not-positive"),
        ({"fanouts": (1, 5000)}, "plan.too-many-scalars"),
        ({"split": (4,), "stages": 4}, "plan.empty-block"),
    ],
)  # fmt: skip
def test_each_rule_has_a_kind(values: dict[str, object], kind: str) -> None:
    with raises(kind):
        Job(**values)  # type: ignore[arg-type]


def test_what_depends_on_the_model(bundle: Bundle) -> None:
    job = Job(rounds=10)
    with raises("job.unresolved", "call check_job"):
        _ = job.blocks
    found = check_job(job, bundle)
    stages = len(bundle.manifest.stages)
    assert (found.split, found.batch, found.stages) == ((stages - 1,), bundle.manifest.batch, stages)
    assert check_job(Job(sides=2), bundle).split == (stages - 2,), "where something is said, the last layer counts"
    assert check_job(found, bundle) == found
    assert job.with_blocks(found.blocks).blocks == found.blocks
    for values, kind in (
        ({"stages": stages + 1}, "plan.other-network"),
        ({"batch": bundle.manifest.batch + 1}, "plan.batch-above-bundle"),
        ({"seeds": "device", "cohort": 10**9}, "job.round-too-large"),
        ({"cohort": 10**9}, "job.round-too-large"),
        # Rounds between which the first block rests are smaller than those that perturb it.
        ({"seeds": "device", "cohort": 17, "fanouts": (990, 1), "sides": 1, "first_every": 2}, "job.round-too-large"),
    ):
        with raises(kind):
            check_job(dataclasses.replace(job, **values), bundle)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cohort", "quorum"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (32, 16)])
def test_one_result_is_no_quorum_of_several(cohort: int, quorum: int) -> None:
    assert Job(cohort=cohort).quorum == quorum
    assert Job(cohort=cohort, quorum=1).quorum == 1


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_job_options(parser, SIMULATED)
    return parser.parse_args(list(map(str, words)))


def test_defaults_are_the_same_everywhere() -> None:
    assert make_job(parse()) == Job()
    described = {option.name: option for option in reference(Job)}
    assert FIELDS.keys() - described.keys() == {"digest_every", "stages"}
    assert (described["fanouts"].flag, described["fanouts"].default) == ("--fanouts", "")
    assert all(option.help for option in described.values())


def test_a_jobs_file_says_what_options_say(tmp_path: Path) -> None:
    """Every setting, there and back."""
    job = Job(
        rounds=7, cohort=5, over_selection=1.5, sampling="energy", quorum=2, deadline=9.5, seed=-3, seeds="device",
        energy=True, distribution="gaussian", steps=2, batch=4, epsilon=1e-5, split=(2, 3), fanouts=(0, 2, 4),
        scales=(0.5, 0.25, 1.0), learning_rates=(1e-7, 0.5, 1.0), sides=1, first_every=2, adapt=("rates", "counts"),
        seed_pool=100, rebase_every=10, final_rate=0.1,
    )  # fmt: skip
    values = {option.name: getattr(job, option.name) for option in reference(Job)}
    file = tmp_path / "job.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    assert make_job(parse("--config", file)) == job
    flags = [
        [option.flag] if value is True else [option.flag, ",".join(map(str, value)) if type(value) is tuple else value]
        for option in reference(Job)
        if (value := values[option.name]) is not False
    ]
    assert make_job(parse(*(word for words in flags for word in words))) == job
    assert make_job(parse("--config", file, "--rounds", 8)) == dataclasses.replace(job, rounds=8), "options win"


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("rouns = 3", "job.unknown-setting", "'rouns' is no setting of a job; there are method, rounds, cohort"),
        ("rounds = '3'", "job.wrong-type", "rounds is a whole number, not '3'"),
        ("fanouts = 3", "job.wrong-type", "fanouts is a list of whole numbers, not 3"),
        ("cohort = 0", "job.out-of-range", "cohort lies between 1 and 1e+09, not 0"),
        ("method = 3", "job.wrong-type", "method is a word, not 3"),
        ("method = ['mezo']", "job.wrong-type", "method is a word, not ['mezo']"),
        (f"a = {'[' * 3000}{']' * 3000}", "job.file-unreadable", "cannot be read as TOML"),
        ("rounds 3", "job.file-unreadable", "cannot be read as TOML"),
    ],
)
def test_a_jobs_file_that_is_wrong(tmp_path: Path, text: str, kind: str, sentence: str) -> None:
    file = tmp_path / "job.toml"
    file.write_text(text)
    with raises(kind, file, sentence):
        read_settings(file)
    with raises("job.file-unreadable", "none.toml cannot be read as TOML (No such file or directory)"):
        read_settings(tmp_path / "none.toml")


def test_given_options_win_over_a_method(tmp_path: Path) -> None:
    """Before or after it, and also where they equal a default; and so does a file."""
    assert make_job(parse("--method", "fedspzo-one-sided")).sides == 1
    for words in (
        ("--sides", 2, "--method", "fedspzo-one-sided"),
        ("--method", "fedspzo-one-sided", "--sides", 2),
    ):
        assert make_job(parse(*words)) == dataclasses.replace(make_job(parse("--method", "fedspzo-one-sided")), sides=2)
    file = tmp_path / "job.toml"
    file.write_text('method = "decomfl:3"\nsides = 1\n')
    assert make_job(parse("--config", file)) == Job(**{**METHODS["decomfl"].settings(3), "sides": 1})
    assert make_job(parse("--config", file, "--method", "fedzo", "--steps", 2)) == Job(
        **{**METHODS["fedzo"].settings(), "sides": 1, "steps": 2}
    )


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--method", "fedzo", "--method", "mezo")
    assert ended.value.code == 2
    assert "--method can be given once" in capsys.readouterr().err
    for name, method in SIMULATED.items():
        assert Job(**method.settings()).rounds == Job().rounds, name
    own = Method("", "mine", 4, 1e-3, first=2, more={"sides": 1})
    assert choose_method("mine:8", {"mine": own}) == ("mine", own.settings(8))
    assert Job(**own.settings(8)).fanouts == (2, 8)
    for text, kind in (
        ("none", "job.unknown-method"),
        ("fedspzo:0", "job.unknown-method"),
        ("fedspzo:", "job.unknown-method"),
        ("fedavg", "job.first-order-method"),
    ):
        with raises(kind):
            choose_method(text)
    with raises("job.no-directions", "leave out ':4'"):
        choose_method("fedavg:4", SIMULATED)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S).stdout


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["device", "--help"]])
def test_help_imports_what_it_needs(words: list[str]) -> None:
    said = run_python(
        f"import sys; from fedspzo.cli import main\ntry: main({words})\n"
        "except SystemExit: print('MODULES', *sys.modules)"
    )
    modules = said.partition("MODULES")[2].split()
    assert "fedspzo.cli" in modules
    commands = {f"fedspzo.commands.{word}" for word in words if not word.startswith("-")}
    assert {name for name in modules if name.startswith("fedspzo.commands.")} == commands
    assert not {"numpy", "cbor2", "torch", "rich", "starlette", "fedspzo.broker"} & set(modules)


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "run the rounds of a job over" not in (said := capsys.readouterr().err)
    assert "simulate" in said
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"fedspzo {__version__}\n")


def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (
            ["server", "b", "--state", "s", "--rounds", "x"],
            "--rounds: it is a whole number, not 'x'; see",
        ),
        (
            ["server", "b", "--state", "s", "--fanouts", "1,x"],
            "--fanouts: it is a whole number, or several",
        ),
        (["simulat"], "invalid choice: 'simulat'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_a_package_that_is_not_installed_names_its_extra(
    capsys: pytest.CaptureFixture[str], bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["rich", *(name for name in sys.modules if name.startswith("rich."))]:  # which others may have imported
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "fedspzo.demo.run", None)
    monkeypatch.delitem(sys.modules, "fedspzo.demo.run")
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    error = refused(capsys, "demo")
    assert "this needs rich, which is not installed; in a clone of FedSPZO, run: pip install '.[demo]'" in error
    assert error.endswith("[install.missing-package]")
    assert "'.[completion]'" in refused(capsys, "completion", "bash")
    assert main(["inspect", str(bundle_folder)]) == 0, "which a device can do"
    assert "layer 2" in capsys.readouterr().out
    monkeypatch.setitem(EXTRAS, "rich", "demo")
    monkeypatch.delitem(EXTRAS, "argcomplete")
    with pytest.raises(ModuleNotFoundError):
        main(["completion", "bash"])


def test_shells_complete(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    line = "fedspzo server --roun"
    environment = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"PYTHONPATH": ":".join(sys.path), "_ARGCOMPLETE_IFS": "|"}
    code = "import os; os.dup2(1, 8)\nfrom fedspzo.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "--rounds"
