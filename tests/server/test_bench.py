"""The benchmark's own law: an answer counts only where it is right, and what is measured reaches the table."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from google.protobuf import text_format
from hpack import Encoder

from attnserve.inference import model_config_pb2
from attnserve.v1 import attention_pb2 as v1
from harness import http2
from harness.ceiling import Ceiling
from harness.cells import FULL, SMALL, Cell, chosen
from harness.entries import entry
from harness.events import Event, WrongAnswer
from harness.http1 import Http1
from harness.http2 import Http2, frame, grpc_message
from harness.load import Generator
from harness.messages import Request, requests
from harness.pictures import FEWEST, Pictures, pictures
from harness.processes import Refused, Server, cpu_s
from harness.results import Results
from harness.session import Contender, measure_model
from peers.servers import mosec, triton, write_triton_repository

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def raw() -> Pictures:
    return pictures(entry(SMALL), "raw")


def run(target: str, form: str, sent: list[Request], concurrency: int, seconds: float = 0.2, patience_s: float = 30):
    with closing(Generator(target, form, sent, concurrency, patience_s)) as generator:
        return generator.run(seconds)


# The generator against the real server.


@pytest.mark.parametrize(
    ("form", "images", "concurrency"), [("unary", 1, 1), ("unary", 8, 6), ("stream", 1, 9), ("infer", 3, 2)]
)
def test_right_answers_are_counted_as_the_server_counts_them(server, raw, form, images, concurrency):
    before = server.metric("attnserve_images_total", model=SMALL)
    load = run(server.grpc, form, requests(form, SMALL, raw, images), concurrency)
    assert load.requests >= concurrency
    assert load.images == images * load.requests == server.metric("attnserve_images_total", model=SMALL) - before
    assert len(load.latencies_ms) == load.requests
    assert 0 < max(load.latencies_ms) <= 1e3 * load.seconds
    assert load.generator_cpu_s > 0


def test_jpeg_files_have_the_answers_of_the_pixels_they_decode_to(server):
    files = pictures(entry(SMALL), "jpeg")
    assert all(file.startswith(b"\xff\xd8") for file in files.files)
    assert run(server.grpc, "unary", requests("unary", SMALL, files, 2), 4).images > 0


def test_requests_larger_than_every_window_arrive(server, raw):
    """A thousand pictures of 2,352 bytes are 36 times what may be sent before the server makes room."""
    assert run(server.grpc, "unary", requests("unary", SMALL, raw, 1000), 2, seconds=0).images == 2000


@pytest.mark.parametrize("form", ["unary", "stream", "infer"])
def test_a_wrong_answer_ends_the_run(server, raw, form):
    swapped = Pictures(raw.views, raw.files, raw.probabilities[::-1].copy())
    with pytest.raises(WrongAnswer, match=r"expected|other probabilities"):
        run(server.grpc, form, requests(form, SMALL, swapped, 1), 4)


@pytest.mark.parametrize(("form", "told"), [("unary", "status 5"), ("stream", "status 5"), ("infer", "status 5")])
def test_an_error_is_not_a_success(server, raw, form, told):
    with pytest.raises(WrongAnswer, match=told):
        run(server.grpc, form, requests(form, "no-such-model", raw, 1), 4)


def predictions(*found: tuple[int, float]) -> bytes:
    """A ClassifyResponse with one prediction per picture."""
    results = [v1.ImageResult(predictions=[v1.Prediction(index=index, probability=p)]) for index, p in found]
    return v1.ClassifyResponse(results=results).SerializeToString()


def test_each_picture_has_one_answer_and_it_is_the_best_class(raw):
    rows = raw.probabilities[:2]
    best = [(int(row.argmax()), float(row.max())) for row in rows]
    second = int(rows[1].argsort()[-2])
    check = requests("unary", SMALL, raw, 2)[0].check
    check(predictions(*best))
    for wrong in ([best[0]], [*best, best[0]], [best[1], best[0]], [best[0], (second, float(rows[1][second]))]):
        with pytest.raises(WrongAnswer):
            check(predictions(*wrong))


def test_no_picture_passes_for_another(raw):
    assert len(raw.views) >= FEWEST
    answers = {"http": [row.tobytes() for row in raw.probabilities]}
    answers["unary"] = [predictions((int(row.argmax()), float(row.max()))) for row in raw.probabilities]
    for form, replies in answers.items():
        sent = requests(form, SMALL, raw, 1)
        for number, request in enumerate(sent[: len(replies)]):
            for other, reply in enumerate(replies):
                if other == number:
                    request.check(reply)
                else:
                    with pytest.raises(WrongAnswer):
                        request.check(reply)


# A server that does as it likes.


class Fake:
    """Accepts one connection, says what it is told once it was asked something, and no more if told to."""

    def __init__(self, reply: bytes, *, hang_up: bool) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, args=(reply, hang_up))
        self._thread.start()

    def _serve(self, reply: bytes, hang_up: bool) -> None:
        with self._listening, self._listening.accept()[0] as caller:
            caller.recv(1 << 16)
            caller.sendall(reply)
            if hang_up:
                caller.shutdown(socket.SHUT_WR)
            while caller.recv(1 << 16):  # else what is still to be read here would take back what was sent
                pass

    def close(self) -> None:
        self._thread.join()


def headers(stream: int, *pairs: tuple[str, str], end: bool = False, encoder: Encoder | None = None) -> bytes:
    flags = http2.END_HEADERS | (http2.END_STREAM if end else 0)
    return frame(http2.HEADERS, flags, stream, (encoder or Encoder()).encode(list(pairs)))


OPENING = frame(http2.SETTINGS, 0, 0)
OK = headers(1, ("grpc-status", "0"), end=True)
ANSWER = frame(http2.DATA, 0, 1, grpc_message(b"yes"))
ANYTHING = [Request(grpc_message(b"?"), 1, lambda _: None)]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (OPENING + OK, "no answer, though the status is OK"),
        (OPENING + ANSWER + ANSWER + OK, "two answers"),
        (OPENING + ANSWER + frame(http2.DATA, http2.END_STREAM, 1), "no status"),
        (OPENING + frame(http2.DATA, 0, 1, grpc_message(b"yes")[:-1]) + OK, "cut within a message"),
        (OPENING + ANSWER + headers(1, ("grpc-status", "8"), ("grpc-message", "full"), end=True), "status 8: full"),
        (OPENING + headers(1, (":status", "503")), "HTTP status 503"),
        (OPENING + frame(http2.RST_STREAM, 0, 1, struct.pack(">I", 7)), "reset with code 7"),
        (OPENING + frame(http2.GOAWAY, 0, 0, struct.pack(">II", 0, 11) + b"calm"), "went away: code 11 b'calm'"),
        (OPENING + ANSWER, "closed the connection"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "reply",
)
def test_whatever_is_not_one_answer_with_status_ok_ends_the_run(reply, told):
    with closing(Fake(reply, hang_up=True)) as fake, pytest.raises(WrongAnswer, match=told):
        run(fake.target, "unary", ANYTHING, 1, seconds=0)


def test_a_silent_server_is_given_up():
    with closing(Fake(OPENING, hang_up=False)) as fake, pytest.raises(WrongAnswer, match=r"no answer within 0\.1 s"):
        run(fake.target, "unary", ANYTHING, 1, patience_s=0.1)


# The wires, without a socket.


def data_bytes(sent: list[bytes | memoryview]) -> int:
    """Of the frames of one hand-over: whatever is not a frame's nine bytes alone, less the opening and the headers."""
    return sum(len(part) for part in sent if isinstance(part, memoryview))


def test_no_more_is_sent_than_the_windows_have_room_for():
    wire = Http2("here", "/service/method")
    stream = wire.request(bytes(100_000))
    sent = wire.outgoing()
    assert data_bytes(sent) == 65_535
    assert max(len(part) for part in sent) == 16_384
    wire.feed(frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 50_000)))
    assert data_bytes(wire.outgoing()) == 0  # the stream's own window is still shut
    wire.feed(frame(http2.WINDOW_UPDATE, 0, stream, struct.pack(">I", 1_000)))
    assert data_bytes(wire.outgoing()) == 1_000
    wire.feed(frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 65_535 + 40_000)))
    assert data_bytes(wire.outgoing()) == 100_000 - 65_535 - 1_000


def test_the_same_header_bytes_are_read_by_the_table_of_their_time():
    """The newest entry of the table has index 62, whatever it is."""
    wire, encoder = Http2("here", "/service/method"), Encoder()
    first, second, third = (wire.request(b"") for _ in range(3))
    assert wire.feed(headers(first, ("grpc-status", "0"), end=True, encoder=encoder)) == [Event(first, None)]
    newest = frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, second, b"\xbe")
    assert wire.feed(newest) == [Event(second, None)]
    other = wire.request(b"")
    assert wire.feed(headers(other, ("grpc-status", "5"), end=True, encoder=encoder))[0].failure
    again = frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, third, b"\xbe")
    assert wire.feed(again)[0].failure.startswith("status 5")


def test_messages_are_whole_however_the_bytes_come():
    wire = Http2("here", "/service/method")
    stream = wire.open()
    sent = frame(http2.DATA, 0, stream, grpc_message(b"one") + grpc_message(b"two")[:3])
    sent += frame(http2.DATA, 0, stream, grpc_message(b"two")[3:])
    heard = [event.message for byte in sent for event in wire.feed(bytes([byte]))]
    assert heard == [b"one", b"two"]


def test_an_http_answer_is_whole_however_the_bytes_come_and_only_200_is_a_success():
    wire = Http1("here", "/inference")
    assert wire.request(b"?") == 1
    sent = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes"
    assert [event for byte in sent for event in wire.feed(bytes([byte]))] == [Event(1, b"yes"), Event(1, None)]
    wire.request(b"?")
    _, end = wire.feed(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull")
    assert end.failure == "HTTP status 429: b'full'"


# What is measured.


def test_the_cpu_time_of_a_server_is_that_of_its_children_too():
    child = "import time\nwhile time.process_time() < 0.2: pass\nprint(1, flush=True)\ninput()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        server = Server("", process.pid)
        assert cpu_s(process.pid) <= server.cpu_s() - 0.2
        assert server.rss_mib() > 5
        process.stdin.close()


def test_the_ceiling_takes_the_batch_with_the_least_cpu_time(raw):
    ceiling = Ceiling(entry(SMALL).file, raw.views, threads=1)
    assert ceiling.batch > 1  # of this network one image alone costs far more than one of many
    assert 0 < ceiling.cpu_s_per_image(0.1) < ceiling.p50_ms(0.1) / 1e3


def test_cells_are_chosen_by_their_names():
    names = [cell.name for cell in FULL]
    assert len(set(names)) == len(names)
    few = [cell.name for cell in chosen(FULL, ["small/unary/raw/1x?", "*/stream/jpeg/*"])]
    assert few == [*names[:2], "small/stream/jpeg/1x16", "resnet50/stream/jpeg/1x16"]


def test_a_server_that_answers_something_else_ends_the_measurement(repository, start_server):
    """The same name, other weights: always class 3."""
    repository.write(1, 3, name=SMALL)
    results = Results("", {}, [], {}, {}, 1)
    cell = Cell(SMALL, "unary", "raw", 1, 4)
    with start_server(repository=repository.path) as server:
        liar = Contender("liar", lambda _: nullcontext(Server(server.grpc, server.process.pid)))
        with pytest.raises(WrongAnswer, match="liar: class 3"):
            measure_model(entry(SMALL), [cell], [liar], 0.1, results)
    assert results.rows == []


@pytest.mark.parametrize("start", [triton, mosec])
def test_a_peer_that_is_not_installed_is_refused_with_the_command_that_installs_it(start, tmp_path):
    with pytest.raises(Refused, match="make bench-peers"), start(entry(SMALL), tmp_path):
        pass


def test_tritons_model_takes_and_gives_what_ours_does(tmp_path):
    write_triton_repository(tmp_path, entry(SMALL))
    theirs, ours = (
        text_format.Parse((folder / SMALL / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        for folder in (tmp_path, ROOT / "model_repo")
    )
    assert theirs.max_batch_size == ours.max_batch_size
    assert [(t.name, t.data_type, t.dims) for t in theirs.input] == [(t.name, t.data_type, t.dims) for t in ours.input]
    (probabilities,) = theirs.output
    assert (probabilities.name, probabilities.dims) == (ours.output[0].name, ours.output[0].dims)
    assert theirs.parameters["file"].string_value == str(entry(SMALL).file)


def test_the_command_writes_a_table_and_says_whom_it_could_not_measure(tmp_path):
    command = [sys.executable, str(ROOT / "tests/bench/run.py"), "--pairs", "1", "--seconds", "0.3", "--cells",
               "small/unary/raw/1x[14]", "--transports", "grpcio,pigeon", "--folder", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "RESULTS.md").read_text()
    assert str(tmp_path) not in text
    assert "Not measured: pigeon: attnserve serve: error: argument --transport: invalid choice" in text
    assert f"### {SMALL}\n" in text
    rows = [line.removeprefix("| ").split(" | ") for line in text.splitlines() if line.startswith("| unary")]
    assert [row[:4] for row in rows] == [["unary raw", "1", "1", "grpcio"], ["unary raw", "1", "4", "grpcio"]]
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    (first, second) = json.loads((tmp_path / "run.json").read_text())["rows"]
    figures = first["figures"]
    assert 0 < figures["cpu_share"] < 1
    assert figures["cpu_share"] == pytest.approx(figures["ort_us_per_image"] / figures["server_us_per_image"])
    assert figures["p50_ms"] > figures["raw_p50_ms"]
    assert second["figures"]["raw_p50_ms"] is None
