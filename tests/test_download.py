"""Fetching a file: whole, resumed, checked, bounded, and never from where it must not be."""

from __future__ import annotations

import hashlib
import socket

import pytest
from helpers_server import serving

from twohop_lib.benchmark import download
from twohop_lib.errors import TwohopError

CONTENT = bytes(range(256)) * 800


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    with serving() as it:
        it.files["/a.bin"] = CONTENT
        yield it


def left(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_comes_whole_and_nothing_is_left_beside_it(server, tmp_path):
    target = tmp_path / "sub" / "a.bin"
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert download.fetch(server.url + "/a.bin", target, sha256=digest.upper()) == target
    assert target.read_bytes() == CONTENT
    assert left(target.parent) == ["a.bin"]


def test_a_cut_connection_is_gone_on_with(server, tmp_path):
    server.faults["/a.bin"] = ["cut"]
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [("/a.bin", ""), ("/a.bin", f"bytes={len(CONTENT) // 2}-")]


def test_a_later_call_goes_on_where_the_first_was_cut(server, tmp_path):
    server.faults["/a.bin"] = ["cut", 503, 503]
    with pytest.raises(TwohopError, match=r"cannot be fetched \(the server answered 503\)"):
        download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked[-1][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_file_that_has_changed_is_fetched_anew(server, tmp_path):
    server.faults["/a.bin"] = ["cut", 503, 503]
    with pytest.raises(TwohopError):
        download.fetch(server.url + "/a.bin", tmp_path / "a")
    server.files["/a.bin"] = CONTENT[::-1]
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]


def test_another_part_than_the_one_asked_for_is_not_joined_on(server, tmp_path):
    server.faults["/a.bin"] = ["cut", "too early"]
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_what_is_left_of_another_file_is_never_marked_as_of_this_one(server, tmp_path, monkeypatch):
    (tmp_path / "a.partial").write_bytes(b"of another file")
    server.faults["/a.bin"] = ["cut", 503, 503]
    with pytest.raises(TwohopError):
        download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert CONTENT.startswith((tmp_path / "a.partial").read_bytes())

    def full(*_: object) -> None:  # the process is stopped as soon as the file is marked
        raise KeyboardInterrupt

    server.files["/a.bin"] = CONTENT[::-1]
    monkeypatch.setattr(download, "_receive", full)
    with pytest.raises(KeyboardInterrupt):
        download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a.partial").read_bytes() == b""
    monkeypatch.undo()
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    server.faults["/a.bin"] = ["cut"]
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.faults["/a.bin"] = [503, 429]
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, r"does not exist \(404\); correct the address"),
        (403, r"may not be read \(403\); ask for access"),
        (400, "the server answered 400"),
    ],
)
def test_a_refusal_is_told_at_once(server, tmp_path, status, told):
    server.faults["/a.bin"] = [status]
    with pytest.raises(TwohopError, match=told):
        download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert len(server.asked) == 1 and left(tmp_path) == []


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(TwohopError, match="did not give the file that was expected"):
        download.fetch(server.url + "/a.bin", tmp_path / "a", sha256="0" * 64)
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.partial").exists()


def test_more_than_the_limit_is_refused(server, tmp_path):
    with pytest.raises(TwohopError, match="larger than 1,000 bytes"):
        download.fetch(server.url + "/a.bin", tmp_path / "a", max_bytes=1000)
    assert not (tmp_path / "a").exists()


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "WAITS", ())
    with socket.socket() as free:  # a port on which nobody listens
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TwohopError, match="cannot be fetched .*; try again later"):
        download.fetch(f"http://127.0.0.1:{port}/a", tmp_path / "a")


def test_the_guard_sees_every_redirect(server, tmp_path):
    server.redirects["/one"] = "/two"
    server.redirects["/two"] = server.url + "/a.bin"
    seen = []
    download.fetch(server.url + "/one", tmp_path / "a", guard=seen.append)
    peer = server.url + "/"  # where the connection led
    assert [u for u in seen if u != peer] == [server.url + p for p in ("/one", "/two", "/a.bin")]
    assert seen[1] == peer

    def refuse(url: str) -> None:
        if url.endswith("/a.bin"):
            raise TwohopError("not there")

    with pytest.raises(TwohopError, match="not there"):
        download.fetch(server.url + "/one", tmp_path / "b", guard=refuse)
    server.redirects["/round"] = "/round"
    with pytest.raises(TwohopError, match="redirected more than 5 times"):
        download.fetch(server.url + "/round", tmp_path / "c")


def test_a_name_that_leads_elsewhere_when_looked_up_again_is_refused(server, tmp_path, monkeypatch):
    real, looked_up = socket.getaddrinfo, []

    def resolve(host, port, *rest, **more):
        if host != "rebound.example":
            return real(host, port, *rest, **more)
        looked_up.append(host)
        return real("93.184.216.34" if len(looked_up) == 1 else "127.0.0.1", port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://rebound.example:{server.url.rsplit(':')[-1]}/a.bin"
    with pytest.raises(TwohopError, match=r"private or local address \(127.0.0.1\)"):
        download.fetch(url, tmp_path / "a", guard=download.guard_public)
    assert len(looked_up) == 2 and server.asked == []


def test_a_redirect_to_what_is_no_address_is_told(server, tmp_path):
    server.redirects["/one"] = "http://["
    with pytest.raises(TwohopError, match="is redirected to what is no address"):
        download.fetch(server.url + "/one", tmp_path / "a")


def test_an_odd_mark_of_the_server_is_not_sent_back(server, tmp_path):
    server.headers["/a.bin"] = {"ETag": '"caf\xe9"'}
    server.faults["/a.bin"] = ["cut"]
    download.fetch(server.url + "/a.bin", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_that_never_ends_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_SECONDS", -1)
    with pytest.raises(TwohopError, match="takes more than -1 seconds; try later"):
        download.fetch(server.url + "/a.bin", tmp_path / "a")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost/a.png",
        "http://10.1.2.3/",
        "http://192.168.0.1:8000/",
        "http://172.16.5.4/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://127.1/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://[64:ff9b::7f00:1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
        f"http://{'a' * 70}.example/",
        "http://a..example/",
    ],
)
def test_private_addresses_are_refused(url):
    with pytest.raises(TwohopError, match="private or local address|cannot be found"):
        download.guard_public(url)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "gopher://x",
        "a.png",
        "http://",
        "http://[::1/a",
        "http://example.org:99999/",
        "http://example.org:no/",
    ],
)
def test_other_schemes_are_refused(url):
    with pytest.raises(TwohopError, match="not an http or https address"):
        download.guard_public(url)


def test_a_name_that_leads_to_a_private_address_is_refused(monkeypatch):
    def resolve(host, port, **_):
        to = "93.184.216.34" if host == "fine.example" else "10.0.0.7"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (to, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    download.guard_public("https://fine.example/a.png")
    with pytest.raises(TwohopError, match=r"private or local address \(10.0.0.7\)"):
        download.guard_public("https://rebound.example/a.png")
