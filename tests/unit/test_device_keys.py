"""A device that changes its key stays the same device, and whoever has an old key is nobody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from heard import HeardByServer
from hypothesis import given
from hypothesis import strategies as st
from refusals import raises, refused

from fedspzo.broker.server.admission import Admission
from fedspzo.broker.server.device_keys import DeviceKeys
from fedspzo.cli import main
from fedspzo.device_runtime.errors import MessageError
from fedspzo.device_runtime.protocol.codec import decode, encode
from fedspzo.device_runtime.protocol.device_keys import MOST, former_keys, hand_over
from fedspzo.device_runtime.protocol.messages import Refusal, Sync
from fedspzo.device_runtime.protocol.signing import Signer, split
from fedspzo.device_runtime.replica.device_key import FORMER, KEY, NEXT, change_key, open_signer
from fedspzo.device_runtime.replica.state import read_identity


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> list[Signer]:
    folder = tmp_path_factory.mktemp("keys")
    return [Signer(folder / str(number)) for number in range(5)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 4), st.booleans(), st.data())
def test_former_keys_are_those_that_have_signed(
    signers: list[Signer], way: list[int], last: int, other: bool, data: st.DataObject
) -> None:
    """And in no other order, for no other device, and with no bit changed."""
    keys = [*way, last]
    chain = [hand_over(signers[a], "a", signers[b].public) for a, b in pairwise(keys)]
    assert former_keys("a", signers[last].public, chain) == tuple(signers[each].public for each in way)
    at, bit = data.draw(st.integers(0, len(chain) - 1)), data.draw(st.integers(0, 96 * 8 - 1))
    flipped = bytearray(chain[at])
    flipped[bit // 8] ^= 1 << bit % 8
    wrong = chain if other else [*chain[:at], bytes(flipped), *chain[at + 1 :]]
    with pytest.raises(MessageError):
        former_keys("b" if other else "a", signers[last].public, wrong)


def test_a_folder_changes_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever instant it is killed at, it has a key that its hand-overs lead to, or its first."""
    folder = tmp_path / "a"
    _, first = read_identity(folder, "a")
    for number in range(1, MOST + 3):
        before = Signer(folder / KEY).public
        assert main(["device", "rotate", str(folder)]) == 0
        signer, hand_overs = open_signer(folder, "a")
        assert capsys.readouterr().out == f"a {signer.public.hex()}\n"
        former = former_keys("a", signer.public, hand_overs)
        assert (former[-1], len(former)) == (before, min(number, MOST))
    assert first not in former
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    old, kept = (copy / KEY).read_bytes(), (copy / FORMER).read_bytes()
    change_key(copy)
    new = Signer(copy / KEY).public
    (copy / KEY).rename(copy / NEXT)
    (copy / KEY).write_bytes(old)  # killed before the last step
    assert open_signer(copy, "a")[0].public == new
    assert not (copy / NEXT).exists()
    (copy / FORMER).write_bytes(kept)
    shutil.copy(copy / KEY, copy / NEXT)
    (copy / KEY).write_bytes(old)  # killed before the one before it
    assert open_signer(copy, "a")[0].public == signer.public
    for damage in (b"", b"\xff", b"\x81\x01", kept[:-1]):
        (copy / FORMER).write_bytes(damage)
        assert open_signer(copy, "a")[1] == ()
    with raises("state.not-a-devices", "--state"):
        change_key(tmp_path)
    assert "[state.not-a-devices]" in refused(capsys, "device rotate", tmp_path)


class Server(HeardByServer):
    """One that tells what it refuses."""

    def refusals(self, name: str, sync: Sync, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        sent: list[bytes] = []
        monkeypatch.setattr(self.server._link, "publish", lambda topic, signed, **more: sent.append(signed))
        self._keys[name] = signer
        self._hear(name, encode(sync))
        said = [decode(split(signed)) for signed in sent]
        return [message.reason for message in said if isinstance(message, Refusal)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    heard = Server(tmp_path, "robust", Random(0))
    yield heard
    heard.close()


@pytest.mark.parametrize("listed", [False, True])
def test_a_server_knows_a_device_by_its_newest_key(
    server: Server, signers: list[Signer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    first, (second, third, thief) = server._keys["d0"], signers[:3]
    if listed:
        admitted = tmp_path / "admitted"
        admitted.write_text("".join(f"{name} {key.public.hex()}\n" for name, key in server._keys.items()))
        server.server._entrance._admission = Admission(admitted)
    sync = server._sync("d0")

    def say(signer: Signer, *chain: bytes) -> list[str]:
        said = replace(sync, key=signer.public, hand_overs_to_key=chain)
        return server.refusals("d0", said, signer, monkeypatch)

    to_second = hand_over(first, "d0", second.public)
    to_third = hand_over(second, "d0", third.public)
    assert len(say(second)) == 1, "it shows nothing for its key"
    assert say(second, to_second) == []
    for signer, chain in ((first, ()), (thief, (hand_over(first, "d0", thief.public),))):
        assert say(signer, *chain)[0].startswith("its key was replaced by another one; bring back")
    assert say(third, to_second, to_third) == []
    assert say(second, to_second)[0].startswith("its key was replaced")
    assert say(third, to_second, to_third) == []
    server.check()
    kept = DeviceKeys(server.store)
    assert kept.former("d0") == (first.public, second.public)
    assert kept.replaced([first.public])
    assert not kept.replaced([third.public])
