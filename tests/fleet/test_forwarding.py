"""A prompt that the asked box cannot run goes to one that can, for its caller and once; nobody else can make it so."""

import base64
import json
import urllib.error
import urllib.request

import pytest
from contract.client import make_key, node
from fleet.conftest import until
from fleet.test_placement import add_node, find_boxes, make_picture

PICKER = """
import folder_paths


class PicksModel:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "pick", "tests", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (folder_paths.get_filename_list("checkpoints"),)}}

    def pick(self, name):
        return {"ui": {"text": [name]}}


NODE_CLASS_MAPPINGS = {"PicksModel": PicksModel}
"""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(360)]


@pytest.fixture
def unlike(fleet):
    """The asked box, which nobody can reach, and one with another node and an address."""
    settings = {"GUARDED_ACCESS__TRUST_LOOPBACK": "false"}
    boxes = [fleet.make(**settings), fleet.make(tells=True, **settings)]
    for box, name in zip(boxes, ("OnlyFirst", "OnlySecond"), strict=True):
        add_node(box, name)
        (box.base / "custom_nodes" / "picks.py").write_text(PICKER)
    asked, other = boxes
    checkpoints = other.base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "second.safetensors").write_bytes(b"weights")
    asked.key, asked.stranger = make_key(asked.base, "bot"), make_key(asked.base, "stranger")
    asked.start()
    other.start()
    until(lambda: other.ask("GET", "/guarded/jobs", key=asked.key)[0] == 200)
    return asked, other


def post(box, class_type, path="/guarded/prompt", prompt=None, **more):
    return box.ask("POST", path, {"prompt": prompt or make_picture(class_type)}, **more)


def send_form(box, class_type, key):
    prompt = json.dumps(make_picture(class_type))
    body = f'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{prompt}\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{box.url}/guarded/prompt", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_what_only_another_box_has_goes_there_for_its_caller_and_once(fleet, unlike):
    asked, other = unlike
    same = {"prompt": make_picture("OnlySecond"), "key": asked.key, "headers": {"Idempotency-Key": "one"}}
    status, body = until(lambda: (answer := post(asked, "", **same))[0] == 200 and answer)
    status, again = post(asked, "", **same)
    assert (status, again["prompt_id"]) == (200, body["prompt_id"])
    status, waited = post(asked, "OnlySecond", "/guarded/prompt?wait=120", key=asked.key)
    assert (status, waited["guard"]["state"], waited["guard"]["job"]["state"]) == (200, "succeeded", "succeeded")
    job = waited["prompt_id"]
    assert find_boxes(fleet, [job]) == [1]
    assert fleet.ask("SELECT DISTINCT owner FROM jobs") == [("bot",)]
    assert fleet.ask("SELECT count(*) FROM jobs") == [(2,)]
    assert asked.ask("GET", f"/guarded/jobs/{job}", key=asked.stranger)[0] == 404
    # A model is found as a node class is.
    for name, expected in (("second.safetensors", 200), ("nobody.safetensors", 422)):
        status, answer = post(asked, "", prompt={"1": node("PicksModel", name=name)}, key=asked.key)
        assert status == expected, answer
    assert answer["guard"]["code"] == "missing_model"
    # What nobody has, and what one has whom nobody can reach, is refused as ever; so is what a form brings.
    for box, class_type in ((asked, "OnlyNobody"), (other, "OnlyFirst")):
        status, refusal = post(box, class_type, key=asked.key)
        assert (status, refusal["guard"]["code"]) == (422, "missing_node")
    status, refusal = send_form(asked, "OnlySecond", asked.key)
    assert (status, refusal["guard"]["code"]) == (422, "missing_node")
    assert fleet.ask("SELECT count(*) FROM jobs") == [(3,)]


def test_no_header_of_a_caller_makes_anybody_of_it(fleet, unlike):
    asked, other = unlike
    name = (other.base / "user" / "__guarded" / "box.id").read_text()
    facts = json.dumps({"key_id": None, "owner": "local", "template": "", "body": ""})
    forged = {
        "X-Guarded-Facts": base64.urlsafe_b64encode(facts.encode()).decode(),
        "X-Guarded-Box": f"{name} {10**12} {'0' * 64}",
    }
    for key in (None, asked.key):
        for path in ("/guarded/fleet/prompt", "/guarded/fleet/has"):
            for headers in (forged, {}, {**forged, "X-Guarded-Box": "a b"}, {**forged, "X-Guarded-Facts": "%%"}):
                assert post(other, "OnlySecond", path, key=key, headers=headers)[0] == 403
    assert post(other, "OnlySecond", headers=forged)[0] == 401
    status, _body = post(other, "OnlySecond", key=asked.key, headers=forged)
    assert status == 200
    assert fleet.ask("SELECT owner FROM jobs") == [("bot",)]
