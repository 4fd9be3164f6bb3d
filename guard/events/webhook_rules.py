"""Refuse webhooks to addresses inside the operator's network: in the URL, and again after each look-up."""

from __future__ import annotations

import ipaddress

from ..errors import InvalidRequestError
from ..settings import WebhooksSettings
from ..urls import Address, UrlError, is_public, read_url, real_address


class Rules:
    """Where webhooks may go."""

    def __init__(self, settings: WebhooksSettings) -> None:
        self._allow_http = settings.allow_http
        self._allowed = [ipaddress.ip_network(network) for network in settings.allowed_networks]

    def check(self, url: str) -> None:
        """Check all that can be checked before the name is looked up.

        Raises:
            InvalidRequestError: it is no plain URL, not https, or names an address that may not be reached.
        """
        try:
            parts = read_url(url)
        except UrlError as error:
            raise _error(str(error)) from None
        if parts.scheme != "https" and not self._allow_http:
            raise _error("must begin with https (the operator may allow http: webhooks.allow_http)")
        if parts.address is not None and not self.allows(parts.address):
            raise _error("names an address that may not be reached (the operator may: webhooks.allowed_networks)")

    def allows(self, address: Address) -> bool:
        """Whether a webhook may connect to the address: it is public, or the settings allow it."""
        seen = {address, real_address(address)}
        return is_public(address) or any(one in network for one in seen for network in self._allowed)


def _error(text: str) -> InvalidRequestError:
    return InvalidRequestError(f"guard.webhook.url {text}.", extra_info={"field": "guard.webhook.url"})
