"""Weight files of other libraries: what is read, and that no code in them ever runs."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from delineate.errors import DataError
from delineate.weights.pickles import read_state

ARRAYS = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(4, dtype=">f4"),
    "half": np.arange(4, dtype=np.float16),
    "count": np.array(7),
}


class Evil:
    """What it would do: make a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def refuse(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_state(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {**ARRAYS, "names": np.array(["a"])}, "__author__": "someone"}, protocol))
    state = read_state(path)
    assert state.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(state[name].numpy(), array)


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Python 2 spells bytes as texts: here the float32 values 1 and 2, under an old name of NumPy's module."""
    spelled = (
        b"\x80\x02}q\x01U\x05blobs}U\x06conv_wcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08\x00\x00\x80?\x00\x00\x00@tbss."
    )
    path = tmp_path / "detectron.pkl"
    path.write_bytes(spelled)
    assert read_state(path)["conv_w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "checkpoint.pth"
    content = {
        "epoch": 3,
        "mean_iu": np.float64(0.8),
        "history": np.arange(3),
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {0: {"momentum": torch.ones(2)}}},
        "state_dict": collections.OrderedDict([("module.a", torch.ones(2)), ("module.b", torch.zeros(3))]),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    state = read_state(path)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {"a": [1, 1], "b": [0, 0, 0]}


def test_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_state(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, protocol: int) -> None:
    path, place = tmp_path / "model.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(2), "b": Evil(place)}}, protocol))
    assert f"refused, because reading it would call {os.mkdir.__module__}.mkdir" in refuse(path)
    assert not place.exists()
    pickle.loads(path.read_bytes())  # the file would have done it
    assert place.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_of_torch_save_is_refused_and_does_nothing(tmp_path: Path, zipped: bool) -> None:
    path, place = tmp_path / "model.pth", tmp_path / "made"
    torch.save({"a": torch.ones(2), "b": Evil(place)}, path, _use_new_zipfile_serialization=zipped)
    assert f"refused, because reading it would call {os.mkdir.__module__}.mkdir" in refuse(path)
    assert not place.exists()


def test_a_pickle_cannot_reach_through_what_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    for spelled in (
        b"cbuiltins\neval\n(V1\ntR.",
        b"cnumpy\nload\n(Vx\ntR.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",  # only the encoding of bytes
        b"cnumpy.core.multiarray\nsys.modules\n.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    ):
        path.write_bytes(spelled)
        assert "refused" in refuse(path)


def test_a_pickle_cannot_change_what_the_next_one_sees(tmp_path: Path) -> None:
    """Setting an attribute of a function that the unpickler gives out changes a copy."""
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__(X\x05\x00\x00\x00rot13tstb.")
    refuse(path)  # a function holds no tensors
    path.write_bytes(pickle.dumps({"a": np.ones(2)}, 2))
    assert read_state(path)["a"].tolist() == [1, 1]


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    assert "would call torch.nn.modules.linear.Linear" in refuse(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or no weight file"),
        (b"hello", "is damaged or no weight file"),
        (pickle.dumps([1, 2]), "holds list, expected named tensors"),
        (pickle.dumps({"epoch": 3}), "holds no tensors (it has epoch)"),
        (b"\x10\0\0\0\0\0\0\0{not json}......", "is a damaged safetensors file"),
    ],
)
def test_what_is_no_weight_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert message in refuse(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refuse(tmp_path / "none.pth")
    assert "cannot be read" in refuse(tmp_path)


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_damage_ends_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": ARRAYS}, 2))
    else:
        torch.save({"a": torch.ones(5), "b": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=kind == "zip")
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(3):
            if damaged:
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            read_state(path)  # some flips change a value only
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
