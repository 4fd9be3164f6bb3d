"""For mkdocs: what the pages link to outside docs/ lies in the repository."""

import re
from typing import Any

#: Such a link's target, from the repository's root.
_OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, config: Any, **_more: Any) -> str:
    """mkdocs calls this for each page."""
    return _OUTSIDE.sub(rf"]({config['repo_url']}/blob/main/\1)", markdown)
