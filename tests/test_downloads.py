"""Servers that hang up, stall, drip, never end, or send something else."""

import time

import pytest
from conftest import assert_nothing_left

import helpers
from faces import download


@pytest.mark.parametrize(
    ("behaviour", "tries", "error", "message"),
    [
        ("hangs up", 3, OSError, "download of {} failed.*Run the cell again.*data_dir can be"),
        ("breaks off", 3, OSError, "download of {} failed.*Run the cell again.*data_dir can be"),
        ("is silent", 3, OSError, "download of {} failed.*timed out.*Run the cell again"),
        ("stalls", 3, OSError, "download of {} failed.*timed out.*Run the cell again"),
        ("500", 3, OSError, "download of {} failed.*500.*Run the cell again"),
        ("503", 3, OSError, "download of {} failed.*503.*Run the cell again"),
        ("404", 1, OSError, "download of {} failed.*404.*Run the cell again"),
        ("page", 1, ValueError, "What {} sent is not the file expected.*by hand"),
        ("wrong bytes", 1, ValueError, "What {} sent is not the file expected.*SHA-256"),
        ("breaks off unnoticed", 1, ValueError, "What {} sent is not the file expected"),
    ],
)
def test_a_failed_download_leaves_nothing(
    server, absent, cache, capsys, behaviour, tries, error, message
):
    server.behaviours = [behaviour]
    started = time.monotonic()
    with pytest.raises(error, match=message.format(download.ARCHIVE_URL)):
        helpers.get_data(absent)
    assert time.monotonic() - started < tries * download.DOWNLOAD_TIMEOUT + 5
    assert server.asked == [behaviour] * tries
    assert capsys.readouterr().out.count("trying again") == tries - 1
    assert not absent.exists()
    assert_nothing_left(cache)


def test_a_server_that_stalls_is_left_within_a_minute():
    pauses = (download.DOWNLOAD_TRIES - 1) * download.DOWNLOAD_PAUSE
    reached = download.is_reachable.__defaults__[0]
    assert reached + download.DOWNLOAD_TRIES * download.DOWNLOAD_TIMEOUT + pauses < 60


@pytest.mark.parametrize("first", [["breaks off"], ["503", "stalls"]])
def test_a_download_that_breaks_off_is_tried_again(server, absent, cache, capsys, first):
    server.behaviours = [*first, "whole"]
    assert len(helpers.find_images(helpers.get_data(absent))) == 40
    lines = capsys.readouterr().out.splitlines()
    assert sum("broke off" in line and "trying again" in line for line in lines) == len(first)
    assert [path.name for path in cache.iterdir()] == ["archive.zip"]
    assert (cache / "archive.zip").read_bytes() == server.content


def test_a_download_goes_on_where_it_broke_off(server, absent):
    server.behaviours = ["breaks off", "gives the rest"]
    assert len(helpers.find_images(helpers.get_data(absent))) == 40
    n = len(server.content)
    assert server.sent == [n - n // 2]


def test_a_rest_of_another_file_is_not_taken(server, absent, cache):
    server.behaviours = ["breaks off", "gives the rest"]
    server.content = server.content[:-1] + b"?"
    with pytest.raises(ValueError, match="is not the file expected"):
        helpers.get_data(absent)
    assert_nothing_left(cache)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("drips", r"failed: only \d bytes came within a minute. Run the cell again"),
        ("never ends", "failed: it has more than 300,000 bytes. Run the cell again"),
        ("whole", "failed: it has more than 1,000 bytes. Run the cell again"),
    ],
)
def test_a_server_that_drips_or_never_ends_is_left(
    server, absent, cache, monkeypatch, behaviour, message
):
    monkeypatch.setattr(download, "DOWNLOAD_MINUTE", 0.5)
    largest = 1000 if behaviour == "whole" else 300_000
    monkeypatch.setattr(download, "DOWNLOAD_LARGEST", largest)
    server.behaviours = [behaviour]
    started = time.monotonic()
    with pytest.raises(OSError, match=message):
        helpers.get_data(absent)
    assert time.monotonic() - started < 5
    assert server.asked == [behaviour]
    assert_nothing_left(cache)


def test_a_server_that_drips_is_left_within_two_minutes():
    tries = download.DOWNLOAD_TRIES * download.DOWNLOAD_TIMEOUT
    pauses = (download.DOWNLOAD_TRIES - 1) * download.DOWNLOAD_PAUSE
    reached = download.is_reachable.__defaults__[0]
    assert reached + download.DOWNLOAD_MINUTE + tries + pauses < 120


def test_a_damaged_archive_in_the_cache_is_downloaded_again(server, absent, cache):
    cache.mkdir()
    (cache / "archive.zip").write_bytes(server.content[:-1])
    assert len(helpers.find_images(helpers.get_data(absent))) == 40
    assert (cache / "archive.zip").read_bytes() == server.content
