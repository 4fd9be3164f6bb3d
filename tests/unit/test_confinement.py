"""What the prompts of keys may not name: places outside their folders, addresses, nodes that write elsewhere."""

import json
import ntpath
import posixpath
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fakes import FakeHost, settings

from comfyui_guarded.alias import ROOT
from comfyui_guarded.guard.client import LOCAL, Client
from comfyui_guarded.guard.errors import PolicyViolationError
from comfyui_guarded.guard.graph import Names
from comfyui_guarded.guard.settings import SettingsError, load
from comfyui_guarded.guard.submit.confinement import Confinement, find_fault
from comfyui_guarded.guard.submit.keyed_deny import KEYED_DENY_NODES

BOT = Client("bot", operator=False, key_id="1")
BOSS = Client("boss", operator=True, key_id="2")


def checked(graph, client=BOT, host: FakeHost | None = None, **policy) -> None:
    host = host or FakeHost()
    host.types |= {"SaveImage": {"images": "IMAGE", "filename_prefix": "STRING"}, "SaveMesh": {"model_file": "FILE_3D"}}
    host.declared |= {"LoadPath": {"video": Names.PATH}}
    Confinement(settings(policy=policy).policy, host.declaration, host.file_inputs).check(graph, client)


def refused(graph, client=BOT, **policy) -> PolicyViolationError:
    with pytest.raises(PolicyViolationError) as caught:
        checked(graph, client, **policy)
    return caught.value


def one(kind="SaveImage", /, **inputs):
    return {"1": {"class_type": kind, "inputs": inputs}}


# Commands. --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["sierra2_4a,drawtext=textfile=x", "a b", "a;b", "-i", "a:b", "a=b", "a/b", "a\n"])
def test_what_goes_into_a_command_is_one_plain_word(text):
    for value in (text, {"__value__": text}, {"deep": {text: 1}}):
        assert refused(one("VHS_VideoCombine", dither=value)).extra_info["input"] == "dither"
        assert refused(one("VHS_VideoCombine", manual_format_widgets=value))
    assert refused(one("VHS_VideoCombine", dither=["2", 0]))
    checked(one("VHS_VideoCombine", dither="sierra2_4a", pix_fmt="yuv420p10le", crf=19, save_metadata=True))
    checked(one("VHS_VideoCombine", videopreview={"params": {"filename": "a b.mp4"}}))
    checked(one("VHS_VideoCombine", dither=text), LOCAL)
    checked(one("Other", dither=text))


# Places. ----------------------------------------------------------------------------------------------------------

OUTSIDE = [
    "../x", "a/../../x", "..", "a\\..\\b", "/x", "\\x", "//host/share", "\\\\host\\share", "C:x", "c:/x", "x:/a",
    "a/x:/b", "~/x", "~root/x", "a\0b", "a\nb", "a\x1b[31m", "a\u202ex", ".. /x", "a/. ./..", "... /x",
    "\uff0e\uff0e/x", "..\uff0fx", ".\u200d./x", "../../custom_nodes/planted", " /x", "\u2025/x",
    "/".join("a" * 33), "a\\" * 40,
]  # fmt: skip
INSIDE = [
    "",
    "x",
    "a/b",
    "a b/c.d",
    "..a",
    "a..b",
    "a../b",
    "%date:yyyy-MM-dd%/x",
    "видео/кот",
    "x_%width%",
    "./x",
    "a~b",
    "/".join("a" * 32),
]


@pytest.mark.parametrize("text", OUTSIDE)
@pytest.mark.parametrize(
    "name",
    ["filename_prefix", "prefix", "output_path", "savePath", "folder", "subfolder", "file", "file name", "directory",
     "out_dir", "output_file_path", "format.filename", "foldername_prefix"],
)  # fmt: skip
def test_a_place_outside_the_owners_folder_is_refused_for_keys_alone(name, text):
    error = refused(one("Any", **{name: text}))
    assert error.code == "policy_violation"
    assert error.extra_info["input"] == name
    assert refused(one("Any", **{name: text}), BOSS)
    assert refused(one("Any", **{name: {"deep": [text]}}))
    assert refused(one("Any", **{name: {"__value__": [text]}}))
    checked(one("Any", **{name: text}), LOCAL)


@pytest.mark.parametrize("text", INSIDE)
def test_a_place_inside_is_taken(text):
    assert find_fault(text) is None
    checked(one(filename_prefix=text))


@given(st.text(alphabet="./\\ab~ :\u200b\uff0e\uff0f", max_size=12))
def test_whatever_is_taken_stays_below_the_folder_on_every_system(text):
    if find_fault(text) is None:
        for module, root in ((posixpath, "/out/own"), (ntpath, "D:\\out\\own")):
            joined = module.normpath(module.join(root, text))
            assert joined == root or joined.startswith(root + module.sep), joined


def test_words_are_no_places():
    checked(one("Any", text="../x\n/y", profile="../x", multiplier="../x", file_content="/a\n..", path_type="../x"))


def test_the_declared_type_says_that_an_input_is_a_place():
    host = FakeHost()
    host.types["Any"] = {"where": "FOLDER_PATH"}
    with pytest.raises(PolicyViolationError):
        checked(one("Any", where="../x"), host=host)


def text_node(value, kind="PrimitiveString", name="value"):
    return {"class_type": kind, "inputs": {name: value}}


def test_a_place_by_a_link_is_taken_only_where_its_text_is_known_to_be_inside():
    save = one(filename_prefix=["2", 0])
    checked({**save, "2": text_node("mine/x")})
    refused({**save, "2": text_node("../x")})
    refused({**save, "2": {"class_type": "Anything", "inputs": {"value": "x"}}})
    refused({**save, "2": text_node(["2", 0])})  # a circle
    joined = {"class_type": "StringConcatenate", "inputs": {"string_a": ["3", 0], "string_b": "x", "delimiter": "/"}}
    checked({**save, "2": joined, "3": text_node("a")})
    error = refused({**save, "2": joined, "3": text_node("..")})
    assert error.extra_info["input"] == "filename_prefix"
    apart = {"class_type": "StringConcatenate", "inputs": {"string_a": ".", "string_b": "./x", "delimiter": ""}}
    refused({**save, "2": apart})
    switch = {"class_type": "ComfySwitchNode", "inputs": {"switch": ["9", 0], "on_true": ["3", 0], "on_false": "a"}}
    refused({**save, "2": switch, "3": text_node("/x")})
    checked({**save, "2": switch, "3": text_node("x")})
    checked({**save, "2": text_node("../x")}, LOCAL)


def test_what_is_no_text_may_come_by_a_link():
    checked({"1": {"class_type": "SaveMesh", "inputs": {"model_file": ["2", 0]}}, "2": one("Make")["1"]})


def test_texts_that_are_put_together_again_and_again_cost_no_time():
    graph = {"0": text_node("x" * 100)}
    for index in range(1, 400):
        link = [str(index - 1), 0]
        graph[str(index)] = {
            "class_type": "StringConcatenate", "inputs": {"string_a": link, "string_b": link, "delimiter": link}
        }  # fmt: skip
    graph["save"] = one(filename_prefix=["399", 0])["1"]
    begin = time.process_time()
    refused(graph)
    assert time.process_time() - begin < 1


# Addresses. -------------------------------------------------------------------------------------------------------

INSIDE_NETWORK = [
    "http://127.0.0.1:8188/view?filename=a.png", "http://localhost/", "http://LOCALHOST./", "http://a.localhost/",
    "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/", "http://0/", "http://[::1]/",
    "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::]/", "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/", "http://10.0.0.1/", "http://192.168.1.1/", "http://[fd00::1]/", "http://[64:ff9b::7f00:1]/",
    "http://metadata.google.internal/", "http://user@127.0.0.1/", "http://files.example.com@127.0.0.1/",
    "http://127.0.0.1#files.example.com", "http://127.0.0.1\\@files.example.com/", "http://１２７.0.0.1/",
    "http://127。0。0。1/", "http://168.63.129.16/", "http:\\\\127.0.0.1\\", "HTTP://127.0.0.1/", "http:/127.0.0.1/",
    "file:///etc/passwd", "ftp://files.example.com/x", "rtsp://files.example.com/", "gopher://127.0.0.1/",
    "//127.0.0.1/x", "http://files.example.com.evil.com/", "http://evil-files.example.com.x/", "http://xn--n3h.example/",
    "  http://127.0.0.1/", "http://files.example.com:99999/",
]  # fmt: skip


@pytest.mark.parametrize("text", INSIDE_NETWORK)
@pytest.mark.parametrize(("kind", "name"), [("LoadPath", "video"), ("LoadImageFromURL", "text"), ("Any", "image")])
def test_an_address_is_refused_for_keys_alone(kind, name, text):
    error = refused(one(kind, **{name: text}), fetch_hosts=["files.example.com", "*.files.example.com"])
    assert error.extra_info["input"] == name
    refused(one(kind, **{name: ["x", text, 1]}))
    checked(one(kind, **{name: text}), LOCAL)


def test_a_host_of_the_list_is_taken_and_no_other():
    for host in ("files.example.com", "FILES.example.com", "files.example.com."):
        for scheme in ("http", "https"):
            checked(one("LoadPath", video=f"{scheme}://{host}/a.mp4?x=1"), fetch_hosts=["files.example.com"])
    refused(one("LoadPath", video="https://sub.files.example.com/a"), fetch_hosts=["files.example.com"])
    checked(one("LoadPath", video="https://a.b.example.com/a"), fetch_hosts=["*.example.com"])
    refused(one("LoadPath", video="https://example.com/a"), fetch_hosts=["*.example.com"])
    refused(one("LoadPath", video="https://files.example.com/a"))
    refused(one("Any", image="https://files.example.com/a\nhttp://127.0.0.1/"), fetch_hosts=["files.example.com"])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "10.0.0.1", "2130706433", "a/b", "", "http://a.b"])
def test_the_list_takes_no_hosts_inside(host, tmp_path):
    with pytest.raises(SettingsError, match=r"policy\.fetch_hosts"):
        load(None, {"GUARDED_POLICY__FETCH_HOSTS": f'["{host}"]'})


@pytest.mark.parametrize(
    "text",
    ["a cat, (best:1.2), see https://example.com/cat for style", "file: a cat", "tee, jeans", "data: none",
     "<lora:a:1>", "a // b", "http is a protocol", "11:30, cat", "concat: x"],
)  # fmt: skip
def test_words_may_mention_addresses(text):
    checked(one("CLIPTextEncode", text=text, text_g=text, positive_prompt=text, wildcard_text=text))


def test_words_that_are_nothing_but_an_address_are_refused_since_a_link_may_carry_them_to_a_loader():
    refused({"1": text_node("http://127.0.0.1/")})
    refused({"1": text_node("a\n http://127.0.0.1/view \nb", "PrimitiveStringMultiline")})


@pytest.mark.parametrize(
    "text",
    ["concat:a.mp4|b.mp4", "subfile,,start,0,end,9,,:a", "file:a.mp4", "pipe:0", "hls+http://files.example.com/x",
     "crypto+file:a", "data:text/plain,a", "async:file:a", "fd:0"],
)  # fmt: skip
def test_what_ffmpeg_takes_for_an_address_is_one(text):
    refused(one("LoadPath", video=text), fetch_hosts=["files.example.com"])


def test_pictures_that_are_in_the_text_itself_are_taken():
    checked(one("LoadImageBase64", image="data:image/png;base64,iVBORw0KGgo="))


def test_an_input_for_an_address_takes_none_without_a_scheme_either():
    for text in ("127.0.0.1:8188", "localhost:8188", "2130706433", "metadata.google.internal"):
        refused(one("Any", server_url=text))
    checked(one("Any", url="files.example.com/a"), fetch_hosts=["files.example.com"])
    checked(one("Any", url="", host="none"))


def test_an_address_that_is_put_together_is_found():
    parts = {"string_a": "http:", "delimiter": "//", "string_b": "127.0.0.1/"}
    graph = {"1": one("Any", url=["2", 0])["1"], "2": {"class_type": "StringConcatenate", "inputs": parts}}
    refused(graph)
    refused({**graph, "2": {"class_type": "Anything", "inputs": {}}})
    refused({"1": one("LoadImageFromURL", image=["2", 0])["1"], "2": {"class_type": "Anything", "inputs": {}}})


@given(st.integers(0, 2**32 - 1), st.sampled_from(["dec", "hex", "oct", "dots", "mapped", "nat64", "6to4", "hexdots"]))
def test_no_spelling_of_a_number_is_let_through_unless_its_host_is_listed(number, spelling):
    parts = [number >> shift & 255 for shift in (24, 16, 8, 0)]
    high, low = number >> 16, number & 0xFFFF
    host = {
        "dec": str(number),
        "hex": hex(number),
        "oct": f"0{number:o}",
        "dots": ".".join(map(str, parts)),
        "hexdots": ".".join(map(hex, parts)),
        "mapped": f"[::ffff:{high:x}:{low:x}]",
        "nat64": f"[64:ff9b::{high:x}:{low:x}]",
        "6to4": f"[2002:{high:x}:{low:x}::1]",
    }[spelling]
    for text in (f"http://{host}/", f"http://{host}:8188/x", f"https://{host}./", f"http://a@{host}/"):
        refused(one("LoadPath", video=text), fetch_hosts=["files.example.com", "*.com"])


def test_a_long_text_costs_no_time():
    text = "a" * 2_000_000
    begin = time.process_time()
    checked(one("Any", image=text, text=text + " ://", filename_prefix=text, url="x"))
    assert time.process_time() - begin < 5


# Node classes and names. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["SaveImageDataSetToFolder", "SaveImageTextDataSetToFolder", "SaveStringKJ", "Image Save", "VHS_BatchManager"],
)
def test_nodes_that_write_elsewhere_are_refused_for_keys_alone(kind):
    error = refused(one(kind))
    assert error.details == "policy.keyed_deny_nodes"
    checked(one(kind), LOCAL)
    checked(one(kind), keyed_deny_nodes=[f"!{kind}"])
    checked(one(kind), keyed_deny_nodes=["!*"])


def test_the_operator_adds_to_the_list():
    refused(one("MyWriter"), keyed_deny_nodes=["My*"])
    refused(one("SaveStringKJ"), keyed_deny_nodes=["My*"])
    checked(one("MyReader"), keyed_deny_nodes=["My*", "!MyReader"])


def test_the_shipped_list_lets_the_usual_nodes_through():
    assert len(set(KEYED_DENY_NODES)) == len(KEYED_DENY_NODES)
    for kind in ("SaveImage", "PreviewImage", "LoadImage", "KSampler", "VHS_VideoCombine", "SaveVideo", "SaveAudio",
                 "CR Text", "Image Resize", "easy int", "GuardedLoadImage", "LoadImageMask"):  # fmt: skip
        checked(one(kind))


@pytest.mark.parametrize("text", ["a\nb", "a\x1b]0;x\x07", "\0", "a\u202eb", "a\x7f", "a\u2028b"])
def test_names_with_control_characters_are_refused(text):
    for graph in (
        {text: {"class_type": "Any", "inputs": {}}},
        {"1": {"class_type": text, "inputs": {}}},
        {"1": {"class_type": "Any", "inputs": {text: 1}}},
        {"1": {"class_type": "Any", "inputs": {}, "_meta": {"title": text}}},
    ):
        error = refused(graph)
        assert all(letter.isprintable() for letter in error.message)
        checked(graph, LOCAL)


def test_titles_in_any_language_and_with_emoji_are_taken():
    for title in ("Кот 🐈", "👨‍👩‍👧", "ไทย", "", None, 5):
        checked({"1": {"class_type": "Any", "inputs": {}, "_meta": {"title": title}}})


@pytest.mark.parametrize("path", sorted((ROOT / "workflows/api").glob("*.json")), ids=lambda path: path.stem)
def test_the_templates_of_the_package_are_for_keys(path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    checked(graph.get("prompt", graph))
