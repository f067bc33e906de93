"""Addresses of routers."""

from __future__ import annotations

import pytest

from pikuri_memory.errors import SettingError
from pikuri_memory.models.endpoint import Endpoint


@pytest.mark.parametrize(
    ("text", "url", "prefix", "versioned"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "", False),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "", False),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080", "", True),
        (" http://127.0.0.1:8080/v1/ ", "http://127.0.0.1:8080", "", True),
        ("HTTP://LocalHost:11434", "http://localhost:11434", "", False),
        ("https://models.example/v1", "https://models.example", "", True),
        ("https://models.example:443", "https://models.example", "", False),
        ("https://models.example/api//v1", "https://models.example/api", "/api", True),
        ("http://[::1]:8080/a/b", "http://[::1]:8080/a/b", "/a/b", False),
        ("unix:/run/llama.sock", "unix:/run/llama.sock", "", False),
        ("unix:///run/llama.sock", "unix:/run/llama.sock", "", False),
        ("unix:/run/llama.sock:/v1", "unix:/run/llama.sock", "", True),
        ("unix:/run/llama.sock:/api/v1", "unix:/run/llama.sock:/api", "/api", True),
    ],
)
def test_an_address_has_one_spelling(text: str, url: str, prefix: str, versioned: bool) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.url, endpoint.prefix, endpoint.versioned) == (url, prefix, versioned)
    assert Endpoint.parse(endpoint.url).url == url
    assert str(endpoint) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "127.0.0.1:8080",
        "localhost:8080",
        "ftp://127.0.0.1",
        "http://",
        "http:///v1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:port",
        "http://[::1",
        "http://host/with blank",
        "http://ho st/",
        "http://models..example",
        "http://.example",
        f"http://{'x' * 64}.example",
        "http://" + ".".join(["x" * 60] * 5),
        "http://host?key=1",
        "http://host/#part",
        "unix:",
        "unix:relative.sock",
        "unix:/" + "x" * 200,
        "file:///etc/passwd",
        "http://host/\r\nX: y",
    ],
)
def test_nonsense_is_refused_with_what_to_give_instead(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        Endpoint.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["http://user:hunter2@host/v1", "https://hunter2@host", "http://host/v1?key=hunter2"]
)
def test_secrets_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        Endpoint.parse(text)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    assert "--router-key-file" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.66.66.66:1", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("unix:/run/router.sock", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example", False),
        ("https://models.example", False),
    ],
)
def test_it_is_known_what_stays_on_this_machine(text: str, loopback: bool) -> None:
    assert Endpoint.parse(text).is_loopback is loopback


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://127.0.0.1:8080/api/v1", "http://127.0.0.1:8080"),
        ("https://[::1]/v1", "https://[::1]"),
        ("unix:/run/router.sock:/api", "http://localhost"),
    ],
)
def test_the_origin_has_no_path(text: str, origin: str) -> None:
    assert Endpoint.parse(text).origin == origin
