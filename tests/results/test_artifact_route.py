"""The route that serves what passed: ranges, validators, names, previews."""

import io
from typing import Any

import pytest
from contract.client import Answer, Client, assert_refusal, assert_succeeded, unique
from PIL import Image
from results.test_on_hosts import report


async def artifact_of(client: Client, source: str, prefix: str | None = None) -> tuple[dict[str, Any], bytes]:
    job = await client.run(report(source, prefix))
    assert_succeeded(job)
    return job["artifacts"][0], (client.base / "input" / source).read_bytes()


async def get(client: Client, url: str, method: str = "GET", **headers: str) -> Answer:
    return await client.request(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("source", "mime"),
    [
        ("good.png", "image/png"),
        ("large.jpg", "image/jpeg"),
        ("good.mp4", "video/mp4"),
        ("model.glb", "application/octet-stream"),
    ],
)
async def test_a_file_is_served_whole_with_its_type_tag_and_name(client: Client, source: str, mime: str):
    artifact, content = await artifact_of(client, source)
    answer = await get(client, artifact["url"])
    assert (answer.status, answer.content) == (200, content)
    assert answer.headers["Content-Type"] == mime
    assert answer.headers["ETag"] == f'"{artifact["sha256"]}"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"].startswith(f'inline; filename="{artifact["filename"]}"')
    head = await get(client, artifact["url"], "HEAD")
    assert (head.status, head.content) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(content)
    download = await get(client, artifact["url"] + "?download=1")
    assert download.headers["Content-Disposition"].startswith("attachment;")


async def test_a_name_in_another_script_survives(client: Client):
    artifact, _ = await artifact_of(client, "good.png", f"портрет {unique()}")
    disposition = (await get(client, artifact["url"])).headers["Content-Disposition"]
    assert 'filename="_______ t_' in disposition
    assert "filename*=UTF-8''%D0%BF%D0%BE%D1%80%D1%82%D1%80%D0%B5%D1%82%20t_" in disposition


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("bytes=0-99", 0, 100), ("bytes=100-", 100, None), ("bytes=-50", -50, None), ("bytes=0-99999999", 0, None)],
)
async def test_a_range_is_served(client: Client, asked: str, begin: int, end: int | None):
    artifact, content = await artifact_of(client, "good.mp4")
    answer = await get(client, artifact["url"], Range=asked)
    assert (answer.status, answer.content) == (206, content[begin:end])
    first = begin % len(content)
    last = (end or len(content)) - 1
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(content)}"


async def test_ranges_that_cannot_be_and_conditions(client: Client):
    artifact, content = await artifact_of(client, "good.png")
    url, tag = artifact["url"], f'"{artifact["sha256"]}"'
    beyond = await get(client, url, Range=f"bytes={len(content)}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(content)}")
    for none in ("bytes=9-3", "bytes=-0", "bytes=-", "bytes=abc", f"bytes={10**30}-"):
        assert (await get(client, url, Range=none)).status == 416, none
    for whole in ("items=0-1", "bytes 0-1", "bytes=0-1,4-5"):
        answer = await get(client, url, Range=whole)
        assert (answer.status, answer.content) == (200, content), whole
    for some, expected in (("bytes=-1", content[-1:]), (f"bytes=-{10**30}", content), ("BYTES=3-3", content[3:4])):
        answer = await get(client, url, Range=some)
        assert (answer.status, answer.content) == (206, expected), some
    assert (await get(client, url, Range="bytes=0-1,4-5")).status == 200
    assert (await get(client, url, If_None_Match=tag)).status == 304
    assert (await get(client, url, If_None_Match='"other", ' + tag)).status == 304
    assert (await get(client, url, If_None_Match='"other"')).status == 200
    modified = (await get(client, url)).headers["Last-Modified"]
    assert (await get(client, url, If_Modified_Since=modified)).status == 304
    assert (await get(client, url, If_Unmodified_Since=modified)).status == 200
    assert (await get(client, url, If_Unmodified_Since="Thu, 01 Jan 2026 00:00:00 GMT")).status == 412
    assert (await get(client, url, If_Match=tag, If_Unmodified_Since="Thu, 01 Jan 2026 00:00:00 GMT")).status == 200
    assert (await get(client, url, If_Match="W/" + tag)).status == 412, "a weak tag does not tell the bytes"
    assert (await get(client, url, Range="bytes=0-1", If_Range="W/" + tag)).status == 200
    assert (await get(client, url, Range="bytes=0-1", If_None_Match=tag)).status == 304
    assert (await get(client, url, If_Modified_Since="Thu, 01 Jan 2026 00:00:00 GMT")).status == 200
    assert (await get(client, url, If_Modified_Since=modified, If_None_Match='"other"')).status == 200
    assert (await get(client, url, Range="bytes=0-9", If_Range=modified)).status == 206
    assert (await get(client, url, If_Match='"other"')).status == 412
    assert (await get(client, url, If_Match=tag)).status == 200
    assert (await get(client, url, Range="bytes=0-9", If_Range=tag)).status == 206
    assert (await get(client, url, Range="bytes=0-9", If_Range='"other"')).status == 200


@pytest.mark.parametrize("asked", ["webp;90;512", "webp;90", "webp", "", "jpeg;80;320", "jpg;80", "png;;64"])
async def test_a_preview_is_small_enough_for_a_messenger(client: Client, asked: str):
    artifact, content = await artifact_of(client, "large.jpg")
    answer = await get(client, f"{artifact['url']}?preview={asked}")
    assert answer.status == 200, answer
    side = int(asked.split(";")[2]) if asked.count(";") == 2 else 512
    format = {"": "webp", "jpg": "jpeg"}.get(asked.split(";")[0], asked.split(";")[0])
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (side, side)
        assert image.format == format.upper()
        assert not image.getexif()
    assert answer.headers["Content-Type"] == f"image/{format}"
    assert len(answer.content) < 128 * 1024 < len(content)
    assert answer.headers["ETag"] != f'"{artifact["sha256"]}"'
    again = await get(client, f"{artifact['url']}?preview={asked}", If_None_Match=answer.headers["ETag"])
    assert again.status == 304


async def test_a_small_picture_is_not_enlarged(client: Client):
    artifact, _ = await artifact_of(client, "good.png")
    answer = await get(client, artifact["url"] + "?preview=webp;90;1024")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (256, 256)


@pytest.mark.parametrize(
    "asked", ["bmp", "webp;0", "webp;101", "webp;90;8", "webp;90;9999", "webp;90;512;1", "webp;x", "٣"]
)
async def test_a_preview_that_cannot_be_is_refused(client: Client, asked: str):
    artifact, _ = await artifact_of(client, "good.png")
    answer = await client.request("GET", f"{artifact['url']}?preview={asked}")
    assert_refusal(answer, "invalid_request", 400)


async def test_only_pictures_have_previews(client: Client):
    artifact, _ = await artifact_of(client, "good.mp4")
    assert_refusal(await client.request("GET", artifact["url"] + "?preview=webp"), "invalid_request", 400)


async def test_what_has_changed_is_gone_in_every_way_to_ask(client: Client):
    artifact, content = await artifact_of(client, "good.png")
    path = client.base / "output" / artifact["subfolder"] / artifact["filename"]
    assert (await get(client, artifact["url"])).status == 200
    path.write_bytes(content[:-1] + b"\0")
    for query in ("", "?preview=webp", "?download=1"):
        assert_refusal(await client.request("GET", artifact["url"] + query), "artifact_gone", 410)
    assert (await get(client, artifact["url"], "HEAD")).status == 410
    assert (await get(client, artifact["url"], Range="bytes=0-9")).status == 410
    path.unlink()
    assert_refusal(await client.request("GET", artifact["url"]), "artifact_gone", 410)
