"""Refuse webhooks and results to addresses inside the operator's network: in the URL, and again after each look-up."""

from __future__ import annotations

from ..errors import InvalidRequestError
from ..settings import WebhooksSettings
from ..urls import LONGEST, Reach, UrlError

#: Which setting lets through what is refused.
_SETTINGS = {
    "must begin with https": "allow_http",
    "names an address that may not be reached": "allowed_networks",
}


class Rules(Reach):
    """Where webhooks may go, and results that are put to addresses."""

    def __init__(self, settings: WebhooksSettings) -> None:
        super().__init__(settings.allow_http, settings.allowed_networks)

    def check(self, url: str, field: str = "guard.webhook.url", longest: int = LONGEST) -> None:
        """Check all that can be checked before the name is looked up.

        Args:
            field: what the request calls it.

        Raises:
            InvalidRequestError: it is no plain URL, not https, or names an address that may not be reached.
        """
        try:
            self.read(url, longest)
        except UrlError as error:
            setting = _SETTINGS.get(str(error))
            more = f" (the operator may allow it: webhooks.{setting})" if setting else ""
            raise InvalidRequestError(f"{field} {error}{more}.", extra_info={"field": field}) from None
