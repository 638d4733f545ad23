"""A file fetched from file:, http: or https: into one path, whole or not at all.

A transfer that breaks goes on from where it stands if the server has shown that it
serves ranges of a version which it can name again, within the call and in the next.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nativert.runtime.download_part import RESERVE_BYTES, BrokenTransferError, Part
from nativert.runtime.image_errors import ImageError, full_disk
from nativert.runtime.image_uri import check_uri, file_path, shown_uri
from nativert.runtime.protocols import DownloadLimits, Progress

if TYPE_CHECKING:
    from http.client import HTTPResponse

LIMITS: Final = DownloadLimits(
    max_bytes=8 << 30, connect_timeout_s=10.0, stall_timeout_s=30.0, total_timeout_s=3600.0
)
_CHUNK: Final = 256 << 10
_TRIES: Final = 4
_TRY_BYTES: Final = 1 << 20  # so much progress makes a further break a first one
_LATER_S: Final = 0.5
# Statuses by which a server says that the same request may do later.
_LATER: Final = frozenset({429, 502, 503, 504})


def download(
    uri: str,
    target: Path,
    *,
    limits: DownloadLimits,
    progress: Progress | None = None,
    reserve_bytes: int = RESERVE_BYTES,
) -> None:
    """Fetch `uri` to `target`, replacing it; raises `ImageError` and then leaves no `target`.

    Only one call may work on a target at a time.
    """
    scheme = check_uri(uri)
    part = Part(target, uri, limits, progress, reserve_bytes)
    try:
        if scheme == "file":
            _copy(file_path(uri), part)
        else:
            _fetch(uri, part, limits)
        part.finish()
    except ImageError as e:
        raise ImageError(f"cannot fetch {shown_uri(uri)}: {e.message}", hint=e.hint) from e
    except OSError as e:
        if (full := full_disk(e, f"fetch {shown_uri(uri)}")) is not None:
            raise full from e
        raise ImageError(f"cannot fetch {shown_uri(uri)}: {e}") from e
    finally:
        part.close()


def _copy(path: Path, part: Part) -> None:
    try:
        # Not to hang on a fifo that somebody left under this name.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise ImageError("there is no such file") from e
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise ImageError("it is not a regular file")
        part.begin(total=seen.st_size, version="", ranges=False)
        while data := os.read(fd, _CHUNK):
            part.write(data)
        part.check_whole()
    except BrokenTransferError as e:
        raise ImageError("it changed while it was read") from e
    finally:
        os.close(fd)


def _fetch(uri: str, part: Part, limits: DownloadLimits) -> None:
    deadline = time.monotonic() + limits.total_timeout_s
    tries = 1
    while True:
        before = part.length
        try:
            _fetch_once(uri, part, limits, deadline)
            return
        except BrokenTransferError as e:
            # Going on is cheap; starting a transfer again is left to whoever called.
            again = e.retry_s is not None or part.resumable
            if not again or tries == _TRIES or time.monotonic() >= deadline:
                kept = part.resumable and part.length
                hint = "the next try goes on from there" if kept else ""
                raise ImageError(str(e), hint=hint) from e
            tries = 1 if part.length - before >= _TRY_BYTES else tries + 1
            time.sleep(e.retry_s or 0)


def _fetch_once(uri: str, part: Part, limits: DownloadLimits, deadline: float) -> None:
    import http.client
    import ssl
    import urllib.error

    from nativert.runtime import http_source

    headers = {
        "User-Agent": "nativert",
        # What is counted and hashed are the file's own bytes.
        "Accept-Encoding": "identity",
        **part.range_headers(),
    }
    try:
        response = http_source.open_url(uri, headers, limits, deadline)
    except urllib.error.HTTPError as e:
        with e:
            answer = f"the server answers {e.code} {e.reason!s:.80}"
            if e.code == 416 and part.length:
                part.restart()
                raise BrokenTransferError(answer, retry_s=0) from e
            if e.code in _LATER:
                raise BrokenTransferError(answer, retry_s=_LATER_S) from e
            raise ImageError(answer) from e
    except http.client.HTTPException as e:
        raise ImageError(f"not an HTTP answer: {type(e).__name__} {e}") from e
    except urllib.error.URLError as e:
        reason = e.reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ImageError(
                f"the certificate is not accepted: {reason.verify_message}",
                hint="check the host name, the clock, and the package ca-certificates",
            ) from e
        if isinstance(reason, TimeoutError):
            text = f"no connection within {limits.connect_timeout_s:g} s"
        else:
            text = getattr(reason, "strerror", None) or str(reason)
        raise ImageError(text) from e
    with response:
        _receive(response, part)


def _receive(response: HTTPResponse, part: Part) -> None:
    total = _claimed_length(response)
    if response.status == 206:
        part.go_on(_range_start(response), total)
    elif response.status in (200, 203):
        ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        part.begin(total=total, version=_version(response), ranges=ranges)
    else:
        raise ImageError(f"the server answers {response.status}, which brings no file")
    # A server may keep the connection open behind the last byte: the length decides.
    while part.length != total and (data := _read(response)):
        part.write(data)
    part.check_whole()


def _read(response: HTTPResponse) -> bytes:
    import http.client

    try:
        return response.read1(_CHUNK)
    except http.client.HTTPException as e:
        raise BrokenTransferError("truncated: the answer ends within a chunk") from e
    except OSError as e:
        raise BrokenTransferError(e.strerror or str(e)) from e


def _claimed_length(response: HTTPResponse) -> int | None:
    """Return the length of the whole file as the server claims it, None where it does not."""
    if response.status == 206:
        claim = response.headers.get("Content-Range", "")
        if not re.fullmatch(r"bytes [0-9]{1,19}-[0-9]{1,19}/[0-9]{1,19}", claim):
            raise ImageError(f"the server answers with a range that is none: {claim[:80]!r}")
        return int(claim.rpartition("/")[2])
    lengths = response.headers.get_all("Content-Length") or []
    if any(not re.fullmatch(r"[0-9]{1,19}", text.strip()) for text in lengths):
        raise ImageError(f"the server claims a length that is none: {', '.join(lengths)!r}")
    if len({int(text) for text in lengths}) > 1:
        raise ImageError(f"the server claims several lengths: {', '.join(lengths)}")
    # With chunks, the last one marks the end and a length beside them means nothing.
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return int(lengths[0]) if lengths and not chunked else None


def _range_start(response: HTTPResponse) -> int:
    return int(response.headers["Content-Range"].split()[1].partition("-")[0])


def _version(response: HTTPResponse) -> str:
    """Return what names this version of the file in If-Range (RFC 9110 13.1.5), or nothing."""
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return str(etag)
    return str(response.headers.get("Last-Modified", "")) if not etag else ""
