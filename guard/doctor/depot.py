"""What there is to say of the depot."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..depot import Depot, read_address
from ..settings import FilesSettings, SettingsError
from .facts import Line

#: Each submit with files, and each verdict, waits for one or two answers.
SLOW_S = 1.0
#: Signatures of S3 are refused from fifteen minutes on; ages would be wrong before.
SKEW_S = 60.0


def examine_depot(settings: FilesSettings) -> Iterator[Line]:
    """Put a file in, read it and delete it. Blocks."""
    mend = "docs/depot.md says what it must be like."
    try:
        depot = Depot(read_address(settings.url))
    except SettingsError as error:
        yield Line("error", "files", f"{error}.", mend)
        return
    began_s = time.monotonic()
    depot.look()
    took_s = time.monotonic() - began_s
    if depot.trouble is not None:
        yield Line("error", "files", f"{depot.trouble}.".capitalize(), mend)
        return
    shown = depot.address.shown
    if depot.skew_s is not None and abs(depot.skew_s) > SKEW_S:
        message = f"The clock of {shown} is {depot.skew_s:+.0f} s off the machine's."
        yield Line("error", "files", message, "Set the clock of the machine (chrony, systemd-timesyncd), or its own.")
    if settings.redirect and not depot.can_sign:
        mend = "Leave files.redirect at its default: results come from the server."
        yield Line("warning", "files", "files.redirect wants S3; a folder makes no addresses.", mend)
    message = f"{shown} can be written, read and deleted from ({took_s * 1000:.0f} ms together)."
    if took_s > SLOW_S:
        yield Line("warning", "files", message, "Put it nearer: submits with files and verdicts wait for it.")
    else:
        yield Line("ok", "files", message)
