"""The face check at the door, in the graph and as a route of its own; on real photos."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from contract.client import assert_ended_badly, assert_refusal, assert_succeeded, node, save
from PIL import Image

PHOTOS = Path(sys.prefix) / "photos"
SKIMAGE = PHOTOS / "skimage" / "data"
SOMEBODY, NOBODY, SIX = "somebody.png", "nobody.png", "six.jpg"

pytestmark = pytest.mark.skipif(not SKIMAGE.is_dir(), reason="the photos are not there; `make venv` brings them")


@pytest.fixture(autouse=True)
def photos(request):
    """Uploaded, as a bot would have done it."""
    for name in ("host", "client"):
        if name in request.fixturenames:
            _upload(request.getfixturevalue("host").base)
            return


def _upload(base):
    shutil.copy(SKIMAGE / "astronaut.png", base / "input" / SOMEBODY)
    shutil.copy(SKIMAGE / "coffee.png", base / "input" / NOBODY)
    shutil.copy(PHOTOS / "insightface" / "data" / "images" / "t1.jpg", base / "input" / SIX)


def loaded(name, *, through=None, **rules):
    """A loader, perhaps a node in between, the face check and a save."""
    graph = {"1": node("LoadImage", image=name)}
    if through is not None:
        graph["5"] = node(through, image=["1", 0])
    return {**graph, "2": node("GuardedFaceCheck", image=["5" if through else "1", 0], **rules), "3": save("2")}


def plain(name):
    return {"1": node("LoadImage", image=name), "3": save("1")}


async def test_a_photo_without_a_face_is_refused_while_another_job_runs_and_never_reaches_the_queue(client):
    async with client.busy() as running:
        body = assert_refusal(await client.submit(loaded(NOBODY)), "no_face", 422)
        assert await client.native_queue() == [running]
        assert await client.guarded_queue() == [running]
    assert body["error"]["extra_info"]["node_id"] == "1"
    assert body["error"]["extra_info"]["image"] == NOBODY
    assert body["error"]["extra_info"]["faces"] == []
    assert body["guard"]["user_message"].startswith("На фото не обнаружено лицо.")


async def test_a_photo_with_a_face_is_let_in_and_passes_the_check_in_the_graph(client):
    assert_succeeded(await client.run(loaded(SOMEBODY)))


async def test_too_many_and_too_small_faces_have_codes_of_their_own(client):
    many = assert_refusal(await client.submit(loaded(SIX, max_faces=1)), "too_many_faces", 422)
    assert len(many["error"]["extra_info"]["faces"]) == 6
    small = assert_refusal(await client.submit(loaded(SIX, min_face_fraction=0.9)), "face_too_small", 422)
    assert len(small["error"]["extra_info"]["small_faces"]) == 6


async def test_a_picture_made_on_the_way_is_checked_in_the_graph_and_refunded(client):
    async with client.socket() as socket:
        job_id = await client.admitted(loaded(NOBODY, through="ImageInvert"), client_id=socket.client_id)
        job = await client.settled(job_id)
    assert_ended_badly(job, "no_face")
    assert job["error"]["details"]["exception_type"] == "comfyui_guarded.NoFaceError"
    assert job["error"]["details"]["node_id"] == "2"


async def test_a_detector_that_is_not_there_is_refused_also_for_a_picture_that_the_run_makes(client):
    prompt = loaded(NOBODY, through="ImageInvert", detector="insightface")
    body = assert_refusal(await client.submit(prompt), "missing_model", 422)
    assert body["error"]["extra_info"]["node_id"] == "2"


async def test_a_face_loader_that_names_no_picture_is_refused(client):
    for image in (None, 5):
        prompt = {"1": node("GuardedLoadFaceImage", image=image), "3": save("1")}
        body = assert_refusal(await client.submit(prompt), "bad_image", 422)
        assert (body["error"]["extra_info"]["node_id"], body["error"]["extra_info"]["input"]) == ("1", "image")


async def test_the_face_loader_refuses_in_comfyuis_own_validation(client):
    graph = {"1": node("GuardedLoadFaceImage", image=NOBODY, min_faces=1, max_faces=2, detector="auto"), "3": save("1")}
    native = await client.request("POST", "/prompt", {"prompt": graph})
    assert native.status == 400
    (error,) = native.json["node_errors"]["1"]["errors"]  # ComfyUI blames every input that the node is given
    assert error["extra_info"]["input_name"] == "image"
    assert error["details"] == f"image - no_face: No face found in {NOBODY}."
    assert_refusal(await client.submit(graph), "no_face", 422)
    graph["1"]["inputs"]["image"] = SOMEBODY
    assert_succeeded(await client.run(graph))


async def test_a_request_may_ask_for_a_face_in_any_picture_that_the_prompt_loads(client):
    assert_succeeded(await client.run(plain(NOBODY)))
    assert_succeeded(await client.run(plain(SOMEBODY), guard={"face_check": True}))
    assert_refusal(await client.submit(plain(NOBODY), guard={"face_check": True}), "no_face", 422)
    assert_refusal(await client.submit(plain(NOBODY), guard={"face_check": {"nodes": ["1"]}}), "no_face", 422)
    rules = {"max_faces": 5}
    assert_refusal(await client.submit(plain(SIX), guard={"face_check": rules}), "too_many_faces", 422)
    assert_succeeded(await client.run(plain(NOBODY), guard={"face_check": False}))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"nodes": ["3"]}, "guard.face_check"),
        ({"faces": 1}, "guard.face_check.faces"),
        ({"min_faces": -1}, "guard.face_check.min_faces"),
        ({"min_faces": True}, "guard.face_check.min_faces"),
        ("yes", "guard.face_check"),
    ],
)
async def test_a_face_check_that_makes_no_sense_is_refused_by_name(client, asked, named):
    answer = await client.submit(plain(SOMEBODY), guard={"face_check": asked})
    body = assert_refusal(answer, "invalid_request", 400)
    assert body["error"]["extra_info"]["field"] == named


async def test_classes_that_need_a_face_are_the_operators_choice(sandbox_client):
    client = await sandbox_client(GUARDED_FACES__REQUIRED_BY='{"ImageInvert": ["image"], "FaultRaise": []}')
    _upload(client.base)
    graph = {**plain(NOBODY), "2": node("ImageInvert", image=["1", 0]), "3": save("2")}
    body = assert_refusal(await client.submit(graph), "no_face", 422)
    assert body["error"]["extra_info"]["needed_by"] == "2"
    words = node("FaultRaise", kind="value_error", message="Reference Image: No face detected.", seed=1)
    assert_ended_badly(await client.run({"1": words, "2": save("1")}), "no_face")


# The route. --------------------------------------------------------------------------------------------------


async def test_a_bot_can_ask_before_it_takes_a_credit(client):
    raw = (SKIMAGE / "astronaut.png").read_bytes()
    faces = await client.request("POST", "/guarded/face-check", raw=raw, headers={"Content-Type": "image/png"})
    assert faces.status == 200, faces
    (face,) = faces.json["faces"]
    left, top, right, bottom = face["box"]
    assert 150 < left < right < 300
    assert 30 < top < bottom < 220
    assert (faces.json["width"], faces.json["height"], faces.json["detector"]) == (512, 512, "centerface")
    stored = await client.request("POST", "/guarded/face-check", {"image": SOMEBODY, "type": "input"})
    assert stored.json == faces.json
    nobody = (SKIMAGE / "coffee.png").read_bytes()
    assert_refusal(await client.request("POST", "/guarded/face-check", raw=nobody), "no_face", 422)


async def test_a_form_brings_the_picture_and_the_rules(client):
    form = b"".join(
        [
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n',
            (PHOTOS / "insightface" / "data" / "images" / "t1.jpg").read_bytes(),
            b'\r\n--b\r\nContent-Disposition: form-data; name="max_faces"\r\n\r\n2\r\n--b--\r\n',
        ]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await client.request("POST", "/guarded/face-check", raw=form, headers=headers)
    assert_refusal(answer, "too_many_faces", 422)


async def test_files_for_which_a_form_has_no_field_are_refused_by_name_however_many_they_are(client):
    head = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="a.jpg"\r\n\r\n'
    names = [b"image", *(b"other%d" % number for number in range(20))]
    form = b"".join(head % name + b"not empty\r\n" for name in names) + b"--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await client.request("POST", "/guarded/face-check", raw=form, headers=headers)
    assert_refusal(answer, "invalid_request", 400)
    assert answer.json["error"]["extra_info"] == {"field": "other0"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"image": 1}', "invalid_request"),
        (b'{"image": "absent.png"}', "bad_image"),
        (b'{"image": "../../secret.png"}', "bad_image"),
        (b'{"image": "somebody.png", "type": "user"}', "invalid_request"),
        (b'{"image": "somebody.png", "faces": 1}', "invalid_request"),
    ],
)
async def test_a_file_that_cannot_be_asked_about_is_refused(client, body, code):
    answer = await client.request("POST", "/guarded/face-check", raw=body, headers={"Content-Type": "application/json"})
    assert_refusal(answer, code)


async def test_what_is_no_picture_is_bad_image(client):
    cut = (SKIMAGE / "astronaut.png").read_bytes()[:20_000]
    for data in (b"not a picture", cut, _bomb()):
        assert_refusal(await client.request("POST", "/guarded/face-check", raw=data), "bad_image", 422)


async def test_health_says_which_detector_looks_and_why(client):
    faces = (await client.get("/guarded/health"))["faces"]
    assert faces["detector"] == "centerface"
    assert faces["reason"]
    assert faces["runtime"] == ("onnxruntime" if faces["onnxruntime"]["providers"] else "torch")


def _bomb():
    """30,000 × 30,000 pixels in 110 KB."""
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    return buffer.getvalue()
