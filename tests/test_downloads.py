"""Servers that hang up, stall, drip, never end, or send something else."""

import time

import pytest
from conftest import assert_nothing_left

from faces import data
from faces.data import get_data
from faces.images import find_images


@pytest.mark.parametrize(
    ("behaviour", "tries", "error", "message"),
    [
        ("hangs up", 3, OSError, "download of {} failed.*Run the cell again.*data_dir can be"),
        ("breaks off", 3, OSError, "download of {} failed.*Run the cell again.*data_dir can be"),
        ("is silent", 3, OSError, "download of {} failed.*timed out.*Run the cell again"),
        ("stalls", 3, OSError, "download of {} failed.*timed out.*Run the cell again"),
        ("503", 3, OSError, "download of {} failed.*503.*Run the cell again"),
        ("404", 1, OSError, "download of {} failed.*404.*Run the cell again"),
        ("counts in letters", 1, OSError, "download of {} failed.*'abc'.*Run the cell again"),
        ("page", 1, ValueError, "What {} sent is not the file expected.*SHA-256.*by hand"),
        ("breaks off unnoticed", 1, ValueError, "What {} sent is not the file expected"),
    ],
)
def test_a_failed_download_leaves_nothing(
    server, absent, cache, capsys, behaviour, tries, error, message
):
    server.behaviours = [behaviour]
    started = time.monotonic()
    with pytest.raises(error, match=message.format(data.ARCHIVE_URL)):
        get_data(absent)
    assert time.monotonic() - started < tries * data.DOWNLOAD_TIMEOUT + 20
    assert server.asked == [behaviour] * tries
    assert capsys.readouterr().out.count("trying again") == tries - 1
    assert not absent.exists()
    assert_nothing_left(cache)


def test_a_file_of_certificates_that_is_not_there_is_named(server, absent, cache, monkeypatch):
    monkeypatch.setattr(data, "ARCHIVE_URL", data.ARCHIVE_URL.replace("http:", "https:"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/certificates.pem")
    with pytest.raises(OSError, match="download of https.* failed.*/nowhere/certificates.pem"):
        get_data(absent)
    assert not server.asked and not absent.exists()
    assert_nothing_left(cache)


def test_a_server_that_stalls_is_left_within_a_minute():
    pauses = (data.DOWNLOAD_TRIES - 1) * data.DOWNLOAD_PAUSE
    reached = data.is_reachable.__defaults__[0]
    assert reached + data.DOWNLOAD_TRIES * data.DOWNLOAD_TIMEOUT + pauses < 60


@pytest.mark.parametrize("first", [["breaks off"], ["503", "stalls"]])
def test_a_download_that_breaks_off_is_tried_again(server, absent, cache, capsys, first):
    server.behaviours = [*first, "whole"]
    assert len(find_images(get_data(absent))) == 40
    lines = capsys.readouterr().out.splitlines()
    assert sum("broke off" in line and "trying again" in line for line in lines) == len(first)
    assert [path.name for path in cache.iterdir()] == ["archive.zip"]
    assert (cache / "archive.zip").read_bytes() == server.content


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("drips", r"failed: only [\d,]+ bytes came within a minute. Run the cell again"),
        ("never ends", "failed: it has more than 300,000 bytes. Run the cell again"),
    ],
)
def test_a_server_that_drips_or_never_ends_is_left(
    server, absent, cache, monkeypatch, behaviour, message
):
    monkeypatch.setattr(data, "DOWNLOAD_MINUTE", 0.5)
    monkeypatch.setattr(data, "DOWNLOAD_LARGEST", 300_000)
    monkeypatch.setattr(data, "DOWNLOAD_LEAST", 300_000)
    server.behaviours = [behaviour]
    started = time.monotonic()
    with pytest.raises(OSError, match=message):
        get_data(absent)
    assert time.monotonic() - started < 20
    assert server.asked == [behaviour]
    assert_nothing_left(cache)


def test_a_damaged_archive_in_the_cache_is_downloaded_again(server, absent, cache):
    cache.mkdir()
    (cache / "archive.zip").write_bytes(server.content[:-1])
    assert len(find_images(get_data(absent))) == 40
    assert (cache / "archive.zip").read_bytes() == server.content
