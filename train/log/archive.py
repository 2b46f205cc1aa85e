"""Place of an exported log: a local folder, or S3-compatible storage.

Files are written aside first, so a reader sees whole files only: a local one is renamed, an object is uploaded to
NAME.part and moved by the storage (which S3 does up to 5 GB). Credentials come from the environment or the machine's
role, as for every AWS tool; a URL with a key in it is refused. `AWS_ENDPOINT_URL`, or `?endpoint=` in the URL, names
another server than Amazon's.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as fs

from train.errors import InputError, reason_of

S3 = "s3://"
_OPTIONS = ("endpoint", "region")
_COPY_BYTES = 1 << 20


class ArchiveError(InputError):
    """The place of an export is unusable; the message says why."""


class Archive:
    """The files of an export, by names like `decisions/date=2026-11-24/part-0.parquet`."""

    def __init__(self, filesystem: fs.FileSystem, root: str, name: str, folder: Path | None) -> None:
        self._filesystem = filesystem
        self._root = root
        self._name = name
        self._folder = folder
        """Of a local archive."""

    def __str__(self) -> str:
        return self._name

    def address(self, name: str) -> str:
        """The file's whole address, for messages."""
        return f"{self._name}/{name}"

    def holds(self, table: str) -> bool:
        """True if the archive has files of this table."""
        return bool(self.files(table)) if self._folder is None else (self._folder / table).is_dir()

    def files(self, table: str) -> list[str]:
        """The names of a table's files, oldest day first. Raises ArchiveError."""
        selector = fs.FileSelector(f"{self._root}/{table}", recursive=True, allow_not_found=True)
        try:
            found = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise ArchiveError(f"{self._name}: expected readable storage: {reason_of(error)}") from error
        names = [entry.path[len(self._root) + 1 :] for entry in found if entry.type == fs.FileType.File]
        return sorted(name for name in names if re.fullmatch(r"[^/]+/date=[^/]+/[^./][^/]*\.parquet", name))

    def open(self, name: str) -> pa.NativeFile:
        """A file to read from any place. Raises FileNotFoundError, OSError."""
        return self._filesystem.open_input_file(f"{self._root}/{name}")

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A local path for the file while it is written; what is not kept is deleted."""
        if self._folder is None:
            with tempfile.TemporaryDirectory(prefix="seqroute-export-") as folder:
                yield Path(folder) / "part.parquet"
            return
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            yield beside
        finally:
            beside.unlink(missing_ok=True)
            with suppress(OSError):  # keeps an earlier export of a day whose rows are gone
                target.parent.rmdir()

    def keep(self, written: Path, name: str) -> None:
        """Put a finished scratch file in its place. Raises ArchiveError."""
        try:
            if self._folder is None:
                self._upload(written, f"{self._root}/{name}")
            else:
                _place(written, self._folder, name)
        except OSError as error:
            raise ArchiveError(f"{self.address(name)}: cannot be written: {reason_of(error)}") from error

    def _upload(self, written: Path, path: str) -> None:
        """Upload to PATH.part, then move it: an interrupted upload may leave a part of the object."""
        part = f"{path}.part"
        target = self._filesystem.open_output_stream(part)
        try:
            with written.open("rb") as source:
                while chunk := source.read(_COPY_BYTES):
                    target.write(chunk)
            target.close()
            self._filesystem.move(part, path)
        except BaseException:
            with suppress(OSError):
                target.close()
            with suppress(OSError):
                self._filesystem.delete_file(part)
            raise


def archive_at(where: str | Path, environ: Mapping[str, str] = os.environ) -> Archive:
    """The archive at a folder or an `s3://` URL; nothing is read yet. Raises ArchiveError."""
    text = str(where)
    if not text.startswith(S3):
        if "://" in text:
            raise ArchiveError(f"expected a folder or s3://bucket/prefix, got {text.split('://')[0]}://...")
        folder = Path(text).absolute()
        return Archive(fs.LocalFileSystem(), str(folder), text, folder)
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query))
    if parts.username is not None or not parts.hostname or not set(options) <= set(_OPTIONS):
        raise ArchiveError(
            "expected s3://bucket/prefix, with ?endpoint=http://host:port and ?region=NAME at most: keys come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the machine's role"
        )
    endpoint = options.get("endpoint") or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
    server = urlsplit(endpoint)
    if endpoint and (server.scheme not in ("http", "https") or not server.netloc):
        raise ArchiveError(f"endpoint: expected http(s)://host[:port], got {endpoint[:100]}")
    region = options.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    filesystem = fs.S3FileSystem(
        region=region or ("us-east-1" if endpoint else None),
        scheme="http" if server.scheme == "http" else "https",
        endpoint_override=server.netloc or None,
        connect_timeout=10,
        request_timeout=60,
    )
    prefix = parts.path.strip("/")
    root = f"{parts.netloc}/{prefix}" if prefix else parts.netloc
    return Archive(filesystem, root, S3 + root, None)


def _place(written: Path, folder: Path, name: str) -> None:
    """Rename a file into its folder durably, with new folders synced in their parents."""
    _sync(written)
    day = (folder / name).parent
    written.replace(folder / name)
    for entry in (day, *day.parents):
        with suppress(PermissionError):  # of a parent that may not be read
            _sync(entry)
        if entry == folder.parent:
            return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
