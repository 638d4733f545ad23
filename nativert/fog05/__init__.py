"""The published client and SDK of fog05 0.2, over Zenoh 1.x.

Their package `yaks` does not work with Zenoh 1.x: `install` puts one in its place, then
``from fog05 import FIMAPI`` works as it is.
"""

from __future__ import annotations

import sys

from nativert.errors import Code, NativertError
from nativert.plugin import zenoh_package


def install() -> None:
    """Have ``import yaks`` find the stand-in.

    NativertError: FAILED if another one is imported already, REQUIREMENTS without Zenoh.
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
