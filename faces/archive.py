"""A zip of images: unpacked whole or not at all, and never a dangerous one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

from faces.files import FULL, is_image_name, make_once
from faces.progress import Progress

# JPEG and PNG hardly shrink in a zip. A BMP of one colour shrinks a thousandfold, so a small
# archive may grow at any ratio, if not beyond all measure.
LARGEST_IMAGE = 100 * 2**20  # bytes of one file
LARGEST_RATIO = 100  # of all images to the archive ...
HARMLESS_SIZE = 2**30  # ... where they have more bytes than that


def unpack(archive: str | Path, folder: str | Path) -> None:
    """Unpack the images of a zip into a new folder: all of them, or nothing.

    They are written to a temporary folder beside it, which takes the name at the end. If the
    archive holds a single top folder, that one becomes ``folder``. Links are left out. Nothing is
    done if the folder is there: another process may have made it.

    Raises:
        ValueError: if the file is no zip, is damaged, holds no images, has an entry that would
            land outside ``folder``, or would grow as no photographs do; or if a file cannot be
            written under its name.
        OSError: if there is not enough space.
    """
    archive, folder = Path(archive), Path(folder)

    def extract(temporary: Path) -> Path:
        target = temporary / "images"
        try:
            with zipfile.ZipFile(archive) as opened:
                members = _images_in(opened)
                if sum(m.file_size for m in members) > shutil.disk_usage(temporary).free:
                    raise OSError(errno.ENOSPC, "too large")
                for member in Progress(members, desc=f"Unpacking {archive.name}", unit=" images"):
                    opened.extract(member, target)  # never more bytes than the entry declares
        except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeError) as error:
            raise ValueError(
                f"{archive} is no zip file, or a damaged one ({error}): get it anew."
            ) from error
        except (RuntimeError, OSError) as error:  # a password, a long name
            if getattr(error, "errno", None) in FULL:
                raise
            raise ValueError(
                f"{archive} cannot be unpacked ({error}): set data_dir to a plain zip or a folder."
            ) from error
        tops = list(target.iterdir())
        return tops[0] if len(tops) == 1 and tops[0].is_dir() else target

    make_once(folder, extract)


def _images_in(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The images of a zip, with slashes in their names, once they are known to be harmless."""
    members = []
    for member in opened.infolist():
        name = PureWindowsPath(member.filename)  # it takes either slash, and knows of drives
        if name.name and (name.anchor or ".." in name.parts):  # "/" names nothing
            raise ValueError(
                f"{opened.filename}: the entry {member.filename!r} would be written outside its "
                "folder. Nothing was unpacked: do not use this archive."
            )
        member.filename = name.as_posix()
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the zip does not say
        is_file = kind in (0, stat.S_IFREG) and member.orig_filename[-1:] not in "/\\"
        if is_file and is_image_name(Path(name)):
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotImplementedError(f"compression type {member.compress_type}")
            members.append(member)
    if not members:
        raise ValueError(f"{opened.filename} holds no images: set data_dir to one that does.")
    largest = max(members, key=lambda member: member.file_size)
    total = sum(member.file_size for member in members)
    packed = os.path.getsize(opened.filename)
    if largest.file_size > LARGEST_IMAGE or total > max(HARMLESS_SIZE, LARGEST_RATIO * packed):
        raise ValueError(
            f"{opened.filename} would grow from {packed:,} to {total:,} bytes, its entry "
            f"{largest.filename!r} to {largest.file_size:,}: no photographs do. Nothing was "
            "unpacked: do not use it, or unpack it by hand and set data_dir to that folder."
        )
    return members
