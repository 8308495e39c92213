"""What does `vdsr -v` tell? The settings that are not the default and whose they are, then what libraries log."""

from __future__ import annotations

import logging
import sys


def tell_more() -> None:
    """Settings to standard error, and from here on what is logged: retries and lost connections among it."""
    from cli.output import printable, say
    from worker.settings import given_settings, mask

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.INFO)
    logging.getLogger("botocore.retries").setLevel(logging.DEBUG)  # it tells of a repetition at this level only
    for name, given in sorted(given_settings().items()):
        say(f"{name} = {printable(mask(given.text))}   ({printable(given.origin)})")
