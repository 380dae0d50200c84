"""Scrapes and probes over a real socket, with and without REST beside them."""

from __future__ import annotations

import contextlib
import functools
import http.client
import logging
import socket
import struct
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from attnserve.errors import ConfigError
from attnserve.http_server import HttpServer
from attnserve.metrics import Metrics
from attnserve.statistics import Statistics

PATIENCE_S = 10


class Readiness:
    """Whether the server is ready, as the test says."""

    ready = False

    def __call__(self) -> bool:
        return self.ready


@contextlib.contextmanager
def serving_by(make, registry=None, ready=None, host: str = "127.0.0.1") -> Iterator[HttpServer]:
    server = make(host, 0, registry or CollectorRegistry(), ready or Readiness())
    try:
        yield server
    finally:
        server.close()


def rest_server(*args):
    pytest.importorskip("aiohttp", reason="needs the extra rest")
    from attnserve.transport.rest_server import RestServer

    return RestServer(*args)


@pytest.fixture(scope="module", params=[HttpServer, rest_server], ids=["http.server", "aiohttp"])
def make(request):
    return request.param


@pytest.fixture(scope="module")
def serving(make):
    """A context manager that runs a server of the test's own."""
    return functools.partial(serving_by, make)


@pytest.fixture(scope="module")
def server(serving) -> Iterator[HttpServer]:
    """One server for all tests that leave it as they found it; not ready, with the metrics of an idle server."""
    with serving(Metrics(Statistics()).registry) as shared:
        yield shared


def request(server: HttpServer, path: str, method: str = "GET", host: str = "127.0.0.1", **headers: str):
    """Status, content type and body."""
    with contextlib.closing(http.client.HTTPConnection(host, server.port, timeout=PATIENCE_S)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()


def test_metrics_are_what_prometheus_parses(serving):
    metrics = Metrics(Statistics())
    metrics.dropped(("net", "1"), "expired", 3)
    with serving(metrics.registry) as server:
        status, content_type, body = request(server, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in parse_text(body.decode())}
    (drop,) = [s for s in families["attnserve_dropped_images"].samples if s.name == "attnserve_dropped_images_total"]
    assert (drop.value, drop.labels) == (3, {"model": "net", "version": "1", "reason": "expired"})
    assert "attnserve_ready" in families


def test_metrics_are_openmetrics_for_those_who_ask(serving):
    registry = CollectorRegistry()
    Counter("pictures_total", "Pictures.", registry=registry).inc(2)
    with serving(registry) as server:
        _, content_type, body = request(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    (family,) = parse_openmetrics(body.decode())
    assert family.name == "pictures"


def test_triton_s_counters_are_counters_in_plain_text_and_unknown_where_their_names_could_not_be_counters(server):
    openmetrics = request(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")[2]
    assert b"\n# TYPE nv_inference_count counter\n" in request(server, "/metrics")[2]
    assert b"\n# TYPE nv_inference_count unknown\n" in openmetrics


def test_each_scrape_is_fresh(serving):
    registry = CollectorRegistry()
    counter = Counter("pictures_total", "Pictures.", registry=registry)
    with serving(registry) as server:
        assert b"pictures_total 0.0" in request(server, "/metrics")[2]
        counter.inc()
        assert b"pictures_total 1.0" in request(server, "/metrics")[2]


def test_readyz_turns_from_503_to_200_and_back_while_livez_stays(serving):
    readiness = Readiness()
    with serving(ready=readiness) as server:
        for ready, status, body in [
            (False, 503, b"not ready\n"),
            (True, 200, b"ready\n"),
            (False, 503, b"not ready\n"),
        ]:
            readiness.ready = ready
            assert request(server, "/readyz") == (status, "text/plain", body)
            assert request(server, "/livez") == (200, "text/plain", b"ok\n")


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/../etc/passwd", "/%6civez", "/LIVEZ"])
def test_an_unknown_path_is_not_found(server, path):
    assert request(server, path)[0] == 404


def test_a_query_changes_nothing(server):
    assert request(server, "/livez?verbose=1&x=/metrics")[2] == b"ok\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused(server, method):
    assert request(server, "/metrics", method)[0] in (405, 501)


def test_a_head_has_the_status_and_length_of_a_get_and_no_body(server):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)) as connection:
        for path, status, length in [("/livez", 200, "3"), ("/readyz", 503, "10")]:
            connection.request("HEAD", path)
            reply = connection.getresponse()
            assert (reply.status, reply.headers["Content-Length"], reply.read()) == (status, length, b"")


def test_one_connection_may_ask_many_times(server):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)) as connection:
        local_ports = set()
        for path, status in [("/livez", 200), ("/none", 404), ("/readyz", 503), ("/livez", 200)]:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == status
            local_ports.add(connection.sock.getsockname()[1])
        assert len(local_ports) == 1


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /metr", id="half a line"),
        pytest.param(b"GET /metrics HTTP/1.1\r\n", id="no end of headers"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50, id="many requests and no ear for the answers"),
        pytest.param(b"\0\xff\r\n\r\n", id="rubbish"),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_hangs_up_does_no_harm_and_is_no_news(server, capfd, caplog, sent, reset):
    caplog.set_level(logging.INFO)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
            client.sendall(sent)
            if reset:  # a lingering time of zero makes close() send RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert request(server, "/livez")[0] == 200
    assert request(server, "/metrics")[0] == 200
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_a_silent_client_does_not_keep_the_others_waiting(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as silent:
        silent.sendall(b"GET /livez HTTP/1.1\r\n")
        assert request(server, "/livez")[0] == 200


def test_requests_are_not_logged_above_debug(server, caplog, capfd):
    caplog.set_level(logging.INFO)
    request(server, "/livez")
    request(server, "/none")
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_refused_by_its_name(make):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen for HTTP on 127.0.0.1:{port}: "):
            make("127.0.0.1", port, CollectorRegistry(), Readiness())


def test_a_host_that_is_not_ours_is_refused(make):
    with pytest.raises(ConfigError, match=r"cannot listen for HTTP on 192\.0\.2\.1:0: "):
        make("192.0.2.1", 0, CollectorRegistry(), Readiness())


def test_after_close_nobody_listens(serving):
    with serving() as server:
        port = server.port
        assert port > 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_listened_on(serving):
    with serving(host="::1") as server:
        assert request(server, "/livez", host="::1")[0] == 200
