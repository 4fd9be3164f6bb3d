"""The pages at /guarded/ and /guarded/docs, and their files, as HTTP; tests/browser looks at what they do."""

import re

import pytest
from contract.client import Client, assert_refusal


@pytest.mark.parametrize("path", ["/guarded/", "/api/guarded/", "/guarded/docs", "/api/guarded/docs"])
async def test_a_page_comes_with_a_policy_that_lets_nothing_foreign_in(client: Client, path: str) -> None:
    answer = await client.request("GET", path)
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Frame-Options"] == "DENY"
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="(.*)">', answer.content.decode())
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    if not client.host.kind.real:  # a real one was started without API nodes, and has put its own in that place
        assert answer.headers["Content-Security-Policy"] == f"{policy[1]}; frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.js", "text/javascript"),
        ("docs_page.js", "text/javascript"),
        ("panel.css", "text/css"),
        ("ru.json", "application/json"),
        ("icon.svg", "image/svg+xml"),
    ],
)
async def test_its_files_are_those_that_the_editor_loads(client: Client, name: str, kind: str) -> None:
    answer = await client.request("GET", f"/guarded/panel/{name}")
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"] == kind
    twin = await client.request("GET", f"/extensions/ComfyUI-Guarded/panel/{name}")
    assert (twin.status, twin.content) == (200, answer.content)


@pytest.mark.parametrize(
    "name", ["page.html", "docs.html", "nothing.js", "..%2fguarded.js", "%2e%2e%2f%2e%2e%2fapp.py", ".json"]
)
async def test_no_other_file_is_served(client: Client, name: str) -> None:
    assert_refusal(await client.request("GET", f"/guarded/panel/{name}"), "not_found")


async def test_without_its_slash_the_page_is_found_all_the_same(client: Client) -> None:
    answer = await client.request("GET", "/guarded")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
