"""Two boxes that number their files by themselves: a name means one file, on every box."""

import urllib.parse
import urllib.request

import pytest
from contract.client import picture, unique

pytestmark = [pytest.mark.timeout(240)]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def view(box, file):
    query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
    return {path: _DIRECT.open(f"{box.url}{path}?{query}", timeout=30).read() for path in ("/guarded/view", "/view")}


def test_a_name_means_the_file_of_one_box_on_every_box(fleet, tmp_path):
    (tmp_path / "depot").mkdir()
    settings = {
        "GUARDED_FILES__URL": (tmp_path / "depot").as_uri(),
        "GUARDED_NATIVE__MODE": "guarded",
        "shares": False,
    }
    boxes = [fleet.start(**settings)]
    prefix = unique()
    made = []
    for seed in range(2):
        graph = picture(prefix)
        graph["1"]["inputs"]["seed"] = seed
        made.append(boxes[0].settled(boxes[0].admitted(graph))["artifacts"][0])
        if not seed:
            boxes[0].kill()
            boxes.insert(0, fleet.start(**settings))
    boxes[1].start()
    assert made[0]["filename"] != made[1]["filename"]
    assert all(file["filename"].startswith(prefix) for file in made)
    found = [[view(box, file) for box in boxes] for file in made]
    for one, another in found:
        assert one == another
        assert one["/view"] == one["/guarded/view"]
    assert found[0][0] != found[1][0]
