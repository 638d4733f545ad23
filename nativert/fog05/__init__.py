"""The published client and SDK of fog05 0.2, over Zenoh 1.x.

Their package `yaks` does not work with Zenoh 1.x: `install` puts one in its place, then
``from fog05 import FIMAPI`` works as it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nativert.errors import Code, NativertError
from nativert.plugin import zenoh_credentials, zenoh_package


def install(credentials: str | os.PathLike[str] | None = None) -> None:
    """Have ``import yaks`` find the stand-in.

    *credentials* is a file as `nativert zenoh init` makes it for clients, which is shown to nodes;
    the variable NATIVERT_ZENOH_CREDENTIALS names one too. An endpoint without a protocol is then
    one of TLS.

    NativertError: FAILED if another one is imported already, REQUIREMENTS without Zenoh, USAGE
    or PERMISSION for credentials that cannot be used.
    """
    zenoh_package.require()
    from nativert.fog05 import yaks

    present = sys.modules.setdefault("yaks", yaks)
    if present is not yaks:
        raise NativertError(
            "another package yaks has been imported already",
            code=Code.FAILED,
            hint="call nativert.fog05.install() first",
        )
    if credentials is not None:
        path = Path(credentials)
        zenoh_credentials.read(path)
        yaks.show(path.absolute())
