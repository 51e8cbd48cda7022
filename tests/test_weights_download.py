"""Downloading from a server that breaks off, damages, forgets and refuses."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from delineate.errors import ConfigError, DataError, DelineateError
from delineate.weights import download as downloading
from delineate.weights.download import check_sha256, digest, download, matches
from delineate.weights.published import PUBLISHED, locate

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A local server whose next answers are as `faults` say, one an answer: how many bytes, damaged, which status ..."""

    url: str = ""
    faults: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)  # that were asked for


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            answer(self, state.faults.pop(0) if state.faults else "", asked)

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{running.server_port}/models/net-{SHA256[7:15]}.pth?raw=1"
    Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield state
    running.shutdown()
    running.server_close()


def answer(handler: BaseHTTPRequestHandler, fault: str, asked: str | None) -> None:
    if fault.isdigit():
        return handler.send_error(int(fault))
    start = int(re.findall(r"\d+", asked)[0]) if asked and fault != "no ranges" else 0
    body = CONTENT[start:]
    if fault == "damage":
        body = body[:-1] + bytes([body[-1] ^ 1])
    if start >= len(CONTENT):
        return handler.send_error(416)
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
    if fault != "no length":
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
    return None


def test_a_download_and_the_cache(server: Server, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    path = download(server.url, SHA256, folder=tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path.name == f"net-{SHA256[7:15]}.pth"
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert download(server.url, SHA256, folder=tmp_path) == path
    assert len(server.ranges) == 1  # the second time nothing was asked for
    assert list(path.parent.iterdir()) == [path]


def test_a_broken_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", "cut"]
    path = download(server.url, SHA256, folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=150000-", "bytes=225000-"]


def test_what_came_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut"] * 10
    with pytest.raises(DelineateError, match=r"could not be downloaded \(\d+ of 300000 bytes came\); try again"):
        download(server.url, SHA256, folder=tmp_path)
    server.faults = []
    assert download(server.url, SHA256, folder=tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] is not None


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.faults = ["cut", "no ranges"]
    assert download(server.url, SHA256, folder=tmp_path).read_bytes() == CONTENT


def test_a_server_that_does_not_say_how_long_the_file_is(server: Server, tmp_path: Path) -> None:
    server.faults = ["no length"]
    assert download(server.url, SHA256, folder=tmp_path).read_bytes() == CONTENT


def test_a_damaged_file_is_refused_and_deleted(server: Server, tmp_path: Path) -> None:
    server.faults = ["damage"]
    with pytest.raises(DataError, match=f"expected {SHA256}; it was deleted"):
        download(server.url, SHA256, folder=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    """The file on the server changed between two runs: the parts do not fit, and it is loaded whole."""
    server.faults = ["cut", "damage"]
    assert download(server.url, SHA256, folder=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=150000-", None]


def test_a_part_that_is_too_long_is_thrown_away(server: Server, tmp_path: Path) -> None:
    path = download(server.url, SHA256, folder=tmp_path)
    path.with_name(path.name + ".part").write_bytes(bytes(400_000))
    path.unlink()
    assert download(server.url, SHA256, folder=tmp_path).read_bytes() == CONTENT


def test_a_file_that_was_damaged_in_the_cache_is_loaded_again(server: Server, tmp_path: Path) -> None:
    path = download(server.url, SHA256, folder=tmp_path)
    path.write_bytes(b"damaged")
    assert download(server.url, SHA256, folder=tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "message"), [("404", "the server answered 404 Not Found; check the address"), ("503", "answered 503")]
)
def test_a_server_that_refuses(server: Server, tmp_path: Path, fault: str, message: str) -> None:
    server.faults = [fault] * 10
    with pytest.raises(DelineateError, match=message):
        download(server.url, SHA256, folder=tmp_path)


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(DelineateError, match=r"could not be downloaded .*refused"):
        download("http://127.0.0.1:1/net.pth", SHA256, folder=tmp_path)


def test_names_of_published_files(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known name is checked by the beginning of the digest that its file's name holds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[tuple[str, str | None]] = []

    def record(url: str, checksum: str | None, **_: object) -> Path:
        asked.append((url, checksum))
        return tmp_path

    monkeypatch.setattr("delineate.weights.published.download", record)
    for name in (
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
        "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
    ):
        _, published = locate(name)
        assert published is not None
    assert asked == [
        ("https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "sha256:bf2d0c1e"),
        (
            "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/"
            "model_final_f10217.pkl",
            "md5:f10217",
        ),
        ("https://download.pytorch.org/models/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", "sha256:73cbd019"),
    ]


def test_every_published_file_has_a_checksum() -> None:
    for name, published in PUBLISHED.items():
        algorithm, _, start = published.checksum.partition(":")
        assert re.fullmatch("[0-9a-f]{6,64}", start), name
        assert start in published.file
        assert algorithm == ("md5" if published.source == "detectron2" else "sha256")
    assert PUBLISHED["mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"].url == (
        "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/"
        "mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"
    )


def test_torchvisions_files_are_those_that_torchvision_names() -> None:
    from torchvision.models import detection, segmentation

    builders: list[Callable[..., object]] = [
        detection.MaskRCNN_ResNet50_FPN_Weights,
        detection.MaskRCNN_ResNet50_FPN_V2_Weights,
        detection.KeypointRCNN_ResNet50_FPN_Weights,
        segmentation.DeepLabV3_ResNet50_Weights,
        segmentation.FCN_ResNet101_Weights,
    ]
    urls = {weights.url for builder in builders for weights in builder}  # type: ignore[attr-defined]
    assert urls <= {published.url for published in PUBLISHED.values()}


def test_an_unknown_address_needs_its_digest(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="its sha256 is not known; give sha256=DIGEST, or sha256=any"):
        locate(server.url)
    with pytest.raises(ConfigError, match="sha256 is 'abc', expected 64 hexadecimal digits"):
        locate(server.url, "abc")
    path, published = locate(server.url, SHA256[7:].upper())
    assert path.is_relative_to(tmp_path / "delineate" / "weights")
    assert published is None
    path.unlink()
    server.faults = ["damage"]
    assert locate(server.url, "any")[0].exists()
    with pytest.raises(ConfigError, match=r"did you mean 'maskrcnn_resnet50_fpn_coco-bf2d0c1e\.pth'"):
        locate("maskrcnn_resnet50_fpn_coco.pth")


def test_a_local_file_is_known_by_name_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model_final_f10217.pkl"
    path.write_bytes(CONTENT)
    assert locate(path) == (path, None)  # another file of that name
    known = PUBLISHED["COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"]
    monkeypatch.setitem(
        PUBLISHED, "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", type(known)(known.url, SHA256[:15], known.source)
    )
    assert locate(path)[1] is not None


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert digest(path, "md5") == "900150983cd24fb0d6963f7d28e17f72"
    assert matches(path, "md5:900150")
    assert not matches(path, "sha256:900150")
    assert check_sha256("A" * 64) == "sha256:" + "a" * 64
    assert downloading.is_url("https://a/b")
    assert not downloading.is_url("file:///etc/passwd")
