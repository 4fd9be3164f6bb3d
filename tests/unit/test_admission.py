import asyncio
import json
import string
import uuid
from concurrent.futures import Future

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.fakes import GRAPH, LONG_S, FakeFaces, FakeHost, new_id, new_job, settings, uploads

from comfyui_guarded.guard import bounds
from comfyui_guarded.guard.bounds import Bounds
from comfyui_guarded.guard.client import Client
from comfyui_guarded.guard.errors import (
    BadImageError,
    ConflictError,
    GuardError,
    InternalError,
    InvalidRequestError,
    InvalidWorkflowError,
    MissingModelError,
    MissingNodeError,
    NoFaceError,
    PayloadTooLargeError,
    PolicyViolationError,
    QueueFullError,
    ServerUnavailableError,
)
from comfyui_guarded.guard.files.files import Files
from comfyui_guarded.guard.files.references import References
from comfyui_guarded.guard.graph import Names
from comfyui_guarded.guard.host import Refusal, Rehearsal
from comfyui_guarded.guard.host_words import explain_refusal, host_body
from comfyui_guarded.guard.job import JobState, Verdict
from comfyui_guarded.guard.life.health import Health
from comfyui_guarded.guard.life.secrets import SECRET_NAMES, Secrets
from comfyui_guarded.guard.quotas import Quotas
from comfyui_guarded.guard.submit import request
from comfyui_guarded.guard.submit.admission import Admission
from comfyui_guarded.guard.submit.limits import Limits
from comfyui_guarded.guard.submit.request import NeedsConversionError, Submission, parse

BOT = Client("bot", operator=False)
OTHER = Client("other", operator=False)
DEPTH = 50
BOUNDS = Bounds(depth=DEPTH)


def _raw(**body) -> bytes:
    return json.dumps({"prompt": GRAPH, **body}).encode()


def _refusal(raw: bytes | str, max_depth: int = DEPTH) -> GuardError:
    with pytest.raises((InvalidRequestError, InvalidWorkflowError)) as caught:
        parse(raw if isinstance(raw, bytes) else raw.encode(), Bounds(depth=max_depth))
    assert caught.value.status == 400
    assert caught.value.message
    json.dumps(caught.value.body("ru"))
    return caught.value


# What a body may look like. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"nonsense",
        b"{",
        b'{"prompt": {}',
        b"{'prompt': {}}",
        b'{"prompt": {}} trailing',
        b"\xff\xfe{\x00}\x00",
        b'{"prompt": "\xff"}',
        b"\x00",
        b"null",
        b"true",
        b"1",
        b'"text"',
        b"[]",
        b'[{"prompt": {}}]',
        b"{}",
        b'{"workflow": {}}',
        b'{"prompt": NaN}',
        b'{"prompt": {"1": {"class_type": "X", "inputs": {"a": Infinity}}}}',
        b'{"prompt": {"1": {"class_type": "X", "inputs": {"a": -Infinity}}}}',
        b'{"prompt": {"1": {"class_type": "X", "inputs": {"a": 1e999}}}}',
        b'{"prompt": {"1": {"class_type": "X", "inputs": {"a": ' + b"9" * 5000 + b"}}}}",
        b'{"prompt": {"1": {"class_type": "X", "inputs": {"a": "\\ud800"}}}}',
        b'{"prompt": {"1": {"class_type": "X", "inputs": {"\\udc00": 1}}}}',
        b'{"prompt": {}, "prompt": {"1": {"class_type": "X", "inputs": {}}}}',
        b'{"prompt": {"1": {"class_type": "X", "inputs": {}}, "1": {"class_type": "Y", "inputs": {}}}}',
        b'{"prompt": {"1": {"class_type": "X", "class_type": "Y", "inputs": {}}}}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    ],
    ids=range(31),
)
def test_a_body_that_is_not_a_sound_json_object_with_a_prompt_is_an_invalid_request(raw):
    assert _refusal(raw).code == "invalid_request"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt_id": "not-a-uuid"},
        {"prompt_id": 5},
        {"prompt_id": ""},
        {"prompt_id": []},
        {"prompt_id": str(uuid.UUID(int=10)).upper().replace("0", "A")},
        {"prompt_id": uuid.UUID(int=2**100).hex},
        {"prompt_id": f"{{{uuid.UUID(int=7)}}}"},
        {"prompt_id": f"urn:uuid:{uuid.UUID(int=7)}"},
        {"client_id": 5},
        {"client_id": ["x"]},
        {"client_id": "x" * 256},
        {"extra_data": None},
        {"extra_data": []},
        {"extra_data": "x"},
        {"extra_data": {"client_id": 5}},
        {"extra_data": {"extra_pnginfo": None}},
        {"extra_data": {"extra_pnginfo": []}},
        {"extra_data": {"extra_pnginfo": {"workflow": "x"}}},
        {"extra_data": {"extra_pnginfo": {"workflow": None}}},
        {"partial_execution_targets": "2"},
        {"partial_execution_targets": [2]},
        {"partial_execution_targets": {"2": 1}},
        {"number": "1"},
        {"number": True},
        {"number": []},
        {"number": 1e300},
        {"front": 1},
        {"front": "yes"},
        {"front": None},
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_is_an_invalid_request(body):
    assert _refusal(_raw(**body)).code == "invalid_request"


@pytest.mark.parametrize(
    ("guard", "names"),
    [
        ([], "guard"),
        ("x", "guard"),
        (5, "guard"),
        (True, "guard"),
        ({"timeout": 5}, "guard.timeout"),
        ({"timeout_s": 0}, "guard.timeout_s"),
        ({"timeout_s": -1}, "guard.timeout_s"),
        ({"timeout_s": "5"}, "guard.timeout_s"),
        ({"timeout_s": True}, "guard.timeout_s"),
        ({"timeout_s": []}, "guard.timeout_s"),
        ({"priority": 101}, "guard.priority"),
        ({"priority": -101}, "guard.priority"),
        ({"priority": 1.5}, "guard.priority"),
        ({"priority": None}, "guard.priority"),
        ({"priority": True}, "guard.priority"),
        ({"metadata": {"x": "y" * 2**16}}, "guard.metadata"),
        ({"metadata": {"x": [[number] for number in range(300)]}}, "guard.metadata"),
        ({"locale": 5}, "guard.locale"),
        ({"locale": "x" * 36}, "guard.locale"),
        ({"face_check": 5}, "guard.face_check"),
        ({"face_check": "yes"}, "guard.face_check"),
        ({"face_check": []}, "guard.face_check"),
        ({"face_check": {"no_such_rule": 1}}, "guard.face_check"),
        ({"metadata": []}, "guard.metadata"),
        ({"metadata": None}, "guard.metadata"),
        ({"": 1}, "guard."),
    ],
    ids=str,
)
def test_a_guard_field_that_is_unknown_or_wrong_is_refused_by_name(guard, names):
    error = _refusal(_raw(guard=guard))
    assert error.code == "invalid_request"
    assert error.message.startswith(names)


def test_a_guard_of_null_or_nothing_means_the_defaults():
    assert parse(_raw(guard=None), BOUNDS).options == parse(_raw(), BOUNDS).options == request.GuardOptions()


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        "x",
        5,
        {},
        {"1": None},
        {"1": []},
        {"1": "x"},
        {"1": {}},
        {"1": {"class_type": "X"}},
        {"1": {"inputs": {}}},
        {"1": {"class_type": None, "inputs": {}}},
        {"1": {"class_type": "", "inputs": {}}},
        {"1": {"class_type": ["X"], "inputs": {}}},
        {"1": {"class_type": "X", "inputs": None}},
        {"1": {"class_type": "X", "inputs": []}},
        {"1": {"class_type": "X", "inputs": {}, "_meta": None}},
        {"1": {"class_type": "X", "inputs": {}, "_meta": "x"}},
        {"1": {"class_type": "X", "inputs": {"a": ["2", 0]}}},
        {"1": {"class_type": "X", "inputs": {"a": ["1", 0]}}},
        {"1": {"class_type": "X", "inputs": {"a": ["2", 0]}}, "2": {"class_type": "X", "inputs": {"a": ["1", 0]}}},
    ],
    ids=str,
)
def test_a_malformed_graph_is_an_invalid_workflow(prompt):
    assert _refusal(json.dumps({"prompt": prompt})).code == "invalid_workflow"


def test_a_bad_node_is_named():
    error = _refusal(json.dumps({"prompt": {**GRAPH, "17": {"class_type": "X"}}}))
    assert "'17'" in error.message
    assert error.extra_info == {"node_id": "17"}


def test_a_circle_is_found_where_no_output_hangs_on_it_and_its_nodes_are_named():
    sound = {"loads": {"class_type": "X", "inputs": {}}, "saves": {"class_type": "X", "inputs": {"a": ["loads", 0]}}}
    ring = {str(at): {"class_type": "X", "inputs": {"a": [str(at % 900 + 1), 0]}} for at in range(1, 901)}
    error = _refusal(json.dumps({"prompt": {**sound, **ring}}))
    assert "circle" in error.message
    assert set(error.extra_info["nodes"]) >= set(ring)


@pytest.mark.parametrize("output", [0, 1, True, False, 0.0])
def test_a_circle_is_one_however_its_outputs_are_numbered(output):
    graph = {
        "1": {"class_type": "A", "inputs": {"x": ["2", output]}},
        "2": {"class_type": "A", "inputs": {"x": ["1", output]}},
    }
    assert "circle" in _refusal(json.dumps({"prompt": graph})).message


def test_a_node_that_feeds_many_is_no_circle():
    many = {str(at): {"class_type": "X", "inputs": {"a": ["0", 0], "b": [str(at - 1), 0]}} for at in range(1, 1500)}
    graph = {"0": {"class_type": "X", "inputs": {}}, **many}
    assert parse(json.dumps({"prompt": graph}).encode(), BOUNDS).graph == graph


def test_nesting_is_allowed_up_to_the_limit_and_no_deeper():
    def nested(levels):
        value = 1
        for _ in range(levels):
            value = [value]
        return _raw(x=value)

    assert parse(nested(9), Bounds(depth=10)).body["x"]
    error = _refusal(nested(10), 10)
    assert error.extra_info == {"max_depth": 10}


def test_a_key_that_stands_twice_is_found_without_comparing_every_key_with_every_other():
    compared = 0

    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    names = [Key(f"key{at}") for at in range(2_000)]
    with pytest.raises(InvalidRequestError, match="twice"):
        bounds._make_object([(name, 0) for name in [*names, Key("key1999")]])
    assert compared < 50 * len(names)


# Hostile JSON: only the two typed refusals ever come. -------------------------------------------------------------

_FIELDS = ["prompt_id", "client_id", "extra_data", "number", "front", "guard", "partial_execution_targets"]
_NAMES = st.text(max_size=5) | st.sampled_from(
    [
        *_FIELDS,
        *("prompt", "extra_pnginfo", "workflow", "timeout_s", "priority", "locale", "metadata", "inputs"),
        *("class_type", "_meta", "1", "2", "nodes", "links", "auth_token_comfy_org"),
    ]
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["1", "2", "LoadImage", "ru", str(uuid.UUID(int=5))])
)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=5), max_leaves=25
)
_NODES = st.fixed_dictionaries(
    {"class_type": _SCALARS | st.just("X"), "inputs": st.dictionaries(_NAMES, _JSON, max_size=3) | _JSON},
    optional={"_meta": _JSON},
)
_BODIES = st.fixed_dictionaries(
    {"prompt": st.dictionaries(st.sampled_from("123"), _NODES | _JSON, max_size=3) | _JSON},
    optional=dict.fromkeys(_FIELDS, _JSON),
)


def _only_typed_refusals(raw: bytes) -> None:
    try:
        prompt = parse(raw, BOUNDS)
    except NeedsConversionError:
        assert b'"nodes"' in raw
    except (InvalidRequestError, InvalidWorkflowError) as error:
        json.dumps(error.body("en"), ensure_ascii=False).encode()
    else:
        assert prompt.graph
        json.dumps(prompt.body, allow_nan=False, ensure_ascii=False).encode()


@given(_JSON | _BODIES)
def test_whatever_the_json_parse_accepts_it_or_raises_one_of_its_two_errors(value):
    _only_typed_refusals(json.dumps(value).encode())


@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf{}")
@example(b"\xef\xbb\xbf" * 2 + b"{}")
@example(b'"\\ud83d\\ude00"')
def test_whatever_the_bytes_parse_accepts_them_or_raises_one_of_its_two_errors(raw):
    _only_typed_refusals(raw)


@given(st.text(alphabet='{}[]",:\\u0123dD8 \t\nntrfae-+.E', max_size=80))
def test_whatever_the_punctuation_parse_accepts_it_or_raises_one_of_its_two_errors(text):
    _only_typed_refusals(text.encode())


@given(_BODIES, st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_a_body_with_a_few_bytes_changed_is_accepted_or_refused_by_type(body, at, junk):
    raw = json.dumps(body).encode()
    _only_typed_refusals(raw[:at] + junk + raw[at + len(junk) :])


_LEAVES = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.text(string.printable + "ёЖ😀", max_size=8)
_SOUND_GRAPHS = st.dictionaries(
    st.text(string.ascii_letters + string.digits + ":#", min_size=1, max_size=4),
    st.fixed_dictionaries(
        {
            "class_type": st.text(string.ascii_letters, min_size=1, max_size=8),
            "inputs": st.dictionaries(st.text(max_size=6), _LEAVES, max_size=4),
        },
        optional={"_meta": st.fixed_dictionaries({"title": st.text(max_size=5)})},
    ),
    min_size=1,
    max_size=5,
).filter(lambda graph: not isinstance(graph.get("nodes"), list))


@given(_SOUND_GRAPHS, st.dictionaries(st.sampled_from(["workflow_id", "extra", "nodes", "links"]), _LEAVES))
def test_a_sound_prompt_passes_unchanged_with_the_fields_that_only_comfyui_knows(graph, more):
    body = {"prompt": graph, "prompt_id": str(uuid.UUID(int=9)), "extra_data": {"x": 1}, **more}
    prompt = parse(json.dumps(body).encode(), BOUNDS)
    assert prompt.graph == graph
    assert prompt.body == body
    assert host_body(prompt.body, prompt.job_id) == body


def test_the_bodys_fields_are_read_as_comfyui_reads_them():
    job_id = new_id()
    prompt = parse(
        _raw(prompt_id=job_id, client_id="c", number=-2.5, front=True, guard={"timeout_s": 5, "locale": "en"}), BOUNDS
    )
    assert (prompt.job_id, prompt.client_id, prompt.order, prompt.front) == (job_id, "c", -2.5, True)
    assert (prompt.options.timeout_s, prompt.options.locale) == (5, "en")
    passed = host_body(prompt.body, prompt.job_id)
    assert passed == {"prompt": GRAPH, "prompt_id": job_id, "client_id": "c"}


def test_a_byte_order_mark_is_no_mistake():
    assert parse(b"\xef\xbb\xbf" + _raw(), BOUNDS).graph == GRAPH


def test_a_client_id_may_stand_in_extra_data():
    assert parse(_raw(extra_data={"client_id": "c"}), BOUNDS).client_id == "c"
    assert parse(_raw(client_id="b", extra_data={"client_id": "c"}), BOUNDS).client_id == "b"


def test_without_a_prompt_id_every_job_has_a_canonical_uuid_of_its_own():
    ids = {parse(_raw(), BOUNDS).job_id for _ in range(20)}
    assert len(ids) == 20
    assert all(str(uuid.UUID(job_id)) == job_id for job_id in ids)


# The host's refusals. ---------------------------------------------------------------------------------------------


def _host_refusal(node_errors=None, **facts):
    told = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": "d"}
    return Refusal(**{**told, "extra_info": {}, "node_errors": node_errors or {}, **facts})


def _not_in_list(name, value):
    info = {"input_name": name, "received_value": value}
    return {"errors": [{"type": "value_not_in_list", "details": "x", "extra_info": info}]}


def _not_valid(details):
    error = {"type": "custom_validation_failed", "details": details, "extra_info": {"input_name": "image"}}
    return {"errors": [error]}


@pytest.mark.parametrize(
    ("node_errors", "error", "shown"),
    [
        ({"4": _not_in_list("ckpt_name", "sd15.safetensors")}, MissingModelError, "sd15.safetensors"),
        ({"4": _not_in_list("ckpt_name", "sub\\sd15.CKPT")}, MissingModelError, "sd15.CKPT"),
        ({"4": _not_in_list("lora_name", "a/b/c.pt")}, MissingModelError, "c.pt"),
        ({"4": _not_in_list("unet_name", "flux.gguf")}, MissingModelError, "flux.gguf"),
        ({"4": _not_valid("image - Invalid image file: photo.png")}, BadImageError, "photo.png"),
        ({"4": _not_valid("image - Invalid image file: sub/photo.JPG [input]")}, BadImageError, "photo.JPG"),
        ({"4": _not_in_list("image", "photo.webp")}, BadImageError, "photo.webp"),
        ({"4": _not_valid("file - Invalid video file: clip.mp4")}, BadImageError, "clip.mp4"),
        ({"4": _not_in_list("sampler_name", "eule")}, InvalidWorkflowError, "failed validation"),
        ({"4": _not_in_list("steps", 5)}, InvalidWorkflowError, "failed validation"),
        ({"4": {"errors": []}}, InvalidWorkflowError, "failed validation"),
        ({"4": {}}, InvalidWorkflowError, "failed validation"),
        ({"4": {"errors": [{"type": "required_input_missing"}]}}, InvalidWorkflowError, "failed validation"),
        ({"4": {"errors": [{"type": "value_not_in_list", "extra_info": None}]}}, InvalidWorkflowError, "failed"),
        ({}, InvalidWorkflowError, "failed validation"),
    ],
    ids=str,
)  # fmt: skip
def test_a_refusal_of_the_host_is_named_by_what_is_really_missing(node_errors, error, shown):
    found = explain_refusal(_host_refusal(node_errors), GRAPH, FakeHost())
    assert type(found) is error
    assert shown in found.message
    body = found.body("ru")
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    assert body["node_errors"] == node_errors
    if error is not InvalidWorkflowError:
        assert found.extra_info["node_id"] == "4"


@pytest.mark.parametrize("code", ["no_face", "too_many_faces", "face_too_small", "bad_image"])
def test_what_our_face_loader_says_as_the_host_validates_keeps_its_code(code):
    """It is asked again where a prompt is shown to the host anew, and its photo may have been replaced."""
    found = explain_refusal(_host_refusal({"4": _not_valid(f"image - {code}: No luck: in a.png.")}), GRAPH, FakeHost())
    assert (found.code, found.message, found.extra_info["node_id"]) == (code, "No luck: in a.png.", "4")


def test_a_missing_model_is_named_before_a_missing_input():
    errors = {"3": _not_valid("image - Invalid image file: p.png"), "4": _not_in_list("ckpt_name", "m.safetensors")}
    assert explain_refusal(_host_refusal(errors), GRAPH, FakeHost()).code == "missing_model"


def test_a_missing_class_is_named_before_everything_else():
    host = FakeHost()
    host.missing = ["SaveImage"]
    found = explain_refusal(_host_refusal({"4": _not_in_list("ckpt_name", "m.safetensors")}), GRAPH, host)
    assert type(found) is MissingNodeError
    assert found.status == 422
    assert "SaveImage" in found.message
    assert (found.extra_info["classes"], found.extra_info["nodes"]) == (["SaveImage"], ["2"])


# The whole way in. ------------------------------------------------------------------------------------------------


class Gate:
    """An admission with everything around it."""

    def __init__(self, store, host, clock, **sections):
        self.store, self.host = store, host
        self.secrets = Secrets()
        self.health = Health(host, store)
        self.health.mark_serving()
        self.faces = FakeFaces()
        chosen = settings(**sections)
        files, self.limits = uploads(host.input_folder), Limits(chosen.limits, clock)
        self.quotas = Quotas(chosen.limits)
        self.admission = Admission(
            chosen,
            store,
            host,
            self.health,
            self.faces,
            References(host, Files(host, store)),
            self.secrets,
            clock,
            files,
            self.limits,
            self.quotas,
        )

    async def admit(self, raw=None, client=BOT, **more):
        return await self.admission.admit(Submission(_raw() if raw is None else raw, client, **more))

    async def refusal(self, *args, **more):
        with pytest.raises(GuardError) as caught:
            await self.admit(*args, **more)
        return caught.value


@pytest.fixture
def gate(store, host, clock):
    return Gate(store, host, clock)


async def test_an_admitted_prompt_is_a_durable_job(gate, store):
    job_id = new_id()
    raw = _raw(prompt_id=job_id, client_id="c", guard={"priority": 7, "metadata": {"chat": 5}, "locale": "en"})
    submitted = await gate.admit(raw)
    job = store.get(job_id).result(LONG_S)
    assert job == submitted.job
    assert (job.owner, job.client_id, job.priority, job.metadata) == ("bot", "c", 7, {"chat": 5})
    assert (job.state, job.locale, job.outputs_to_execute) == (JobState.QUEUED, "en", ("2",))
    assert store.find_entry(job_id).result(LONG_S).body == raw
    assert submitted.waiting.position == 1
    (shown,) = gate.host.rehearsed
    assert shown == {"prompt": GRAPH, "client_id": "c", "prompt_id": job_id}


@pytest.mark.parametrize(
    ("asked", "given"), [(None, 600), (5, 5), (0.5, 0.5), (600, 600), (601, 600), (10**12, 600), (1e300, 600)]
)
async def test_timeout_s_is_capped_by_the_operators(gate, asked, given):
    assert (await gate.admit(_raw(guard={"timeout_s": asked}))).job.timeout_s == given


async def test_the_language_is_the_jobs_own_then_the_headers_then_the_operators(gate):
    assert (await gate.admit()).job.locale == "ru"
    assert (await gate.admit(accept_language="en")).job.locale == "en"
    assert (await gate.admit(_raw(guard={"locale": "ru"}), accept_language="en")).job.locale == "ru"
    assert (await gate.admit(_raw(guard={"locale": "xx"}), accept_language="yy")).job.locale == "ru"


async def test_too_large_a_body_is_refused_before_anything_is_looked_at(store, host, clock):
    gate = Gate(store, host, clock, policy={"max_body_bytes": 1024}, queue={"max_queued": 1})
    await gate.admit(idempotency_key="k")
    host.alive = False
    error = await gate.refusal(b"x" * 1025, idempotency_key="k")
    assert isinstance(error, PayloadTooLargeError)
    assert error.extra_info == {"max_body_bytes": 1024}
    error = await gate.refusal(b"x" * 1025, idempotency_key="a bad key \x00")
    assert isinstance(error, PayloadTooLargeError)


async def test_a_replay_is_answered_although_the_worker_is_dead_and_the_queue_is_full(store, host, clock):
    gate = Gate(store, host, clock, queue={"max_queued": 1})
    raw = _raw()
    first = await gate.admit(raw, idempotency_key="k")
    host.alive = False
    host.rehearsal = Rehearsal(_host_refusal(), ())
    again = await gate.admit(raw, idempotency_key="k")
    assert again.replayed
    assert again.job == first.job
    assert len(host.rehearsed) == 1


async def test_a_key_with_another_body_is_a_conflict_before_that_body_is_looked_at(gate):
    await gate.admit(_raw(), idempotency_key="k")
    assert isinstance(await gate.refusal(b"nonsense", idempotency_key="k"), ConflictError)


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "ключ", "a\n", "\x7f"])
async def test_an_idempotency_key_that_is_not_visible_ascii_is_refused(gate, key):
    assert isinstance(await gate.refusal(idempotency_key=key), InvalidRequestError)


async def test_a_server_that_cannot_run_says_so_before_it_judges_the_queue_or_the_body(store, host, clock):
    gate = Gate(store, host, clock, queue={"max_queued": 1})
    await gate.admit()
    host.alive = False
    error = await gate.refusal(b"nonsense")
    assert isinstance(error, ServerUnavailableError)
    assert error.retry_after_s
    assert error.extra_info == {"problems": ["worker dead"]}


async def test_before_the_server_serves_nothing_is_admitted(store, host, clock):
    gate = Gate(store, host, clock)
    gate.health = gate.admission._health = Health(host, store)
    assert (await gate.refusal()).extra_info == {"problems": ["starting"]}


async def test_a_full_queue_is_said_before_the_body_is_looked_at(store, host, clock):
    gate = Gate(store, host, clock, queue={"max_queued": 2})
    await gate.admit()
    await gate.admit()
    error = await gate.refusal(b"nonsense")
    assert isinstance(error, QueueFullError)
    assert error.extra_info == {"queued": 2, "max_queued": 2}
    assert len(host.rehearsed) == 2


async def test_a_full_queue_tells_when_to_come_back(store, host, clock):
    gate = Gate(store, host, clock, queue={"max_queued": 1})
    await gate.admit()
    assert (await gate.refusal()).retry_after_s


async def test_the_last_place_goes_to_one_of_two_that_ask_at_once(store, host, clock):
    gate = Gate(store, host, clock, queue={"max_queued": 1})
    both = asyncio.Event()

    async def together():  # both have seen room by then
        if len(host.rehearsed) == 2:
            both.set()
        await both.wait()

    host.during_rehearsal = together
    answers = await asyncio.gather(gate.admit(), gate.admit(), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["QueueFullError", "Submitted"]
    assert store.queued == 1


async def test_a_denied_class_is_refused_also_where_the_host_puts_it_in_for_an_older_name(store, host, clock):
    gate = Gate(store, host, clock, policy={"deny_nodes": ["Denied"]})
    told = host.rehearse

    async def renamed(body, timeout_s):
        if body["prompt"]["1"]["class_type"] == "Older":
            body["prompt"]["1"]["class_type"] = "Denied"
        return await told(body, timeout_s)

    host.rehearse = renamed
    for kind in ("Denied", "Older"):
        with pytest.raises(PolicyViolationError) as caught:
            await gate.admit(_raw(prompt={**GRAPH, "1": {"class_type": kind, "inputs": {}}}))
        assert caught.value.extra_info["value"] == "Denied"
    assert store.queued == 0


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda graph: None, 1),
        (lambda graph: graph["2"]["inputs"].update(steps=True), 2),  # which is 1 to a comparison, and not to ComfyUI
        (lambda graph: graph["2"]["inputs"].update(steps=1.0), 2),
        (lambda graph: graph["2"].update(class_type="Other"), 2),
        (lambda graph: graph.update({"9": {"class_type": "X", "inputs": {}}}), 2),
        (lambda graph: graph["2"]["inputs"].update(odd=object()), 2),
    ],
    ids=["nothing", "a flag for a number", "a float for an int", "a class", "a node", "no JSON"],
)
async def test_only_a_prompt_that_validation_changes_is_checked_again(store, host, clock, monkeypatch, change, passes):
    gate, seen = Gate(store, host, clock), []
    costs, told = gate.admission._costs, host.rehearse
    check = costs.check_graph
    monkeypatch.setattr(costs, "check_graph", lambda graph, client: (seen.append(graph), check(graph, client)))

    async def changing(body, timeout_s):
        answer = await told(body, timeout_s)
        change(body["prompt"])
        return answer

    host.rehearse = changing
    await gate.admit(_raw(prompt={**GRAPH, "2": {"class_type": "X", "inputs": {"steps": 1}}}))
    assert len(seen) == passes


async def test_the_shape_is_judged_before_the_policy_and_the_policy_before_the_host(store, host, clock):
    gate = Gate(store, host, clock, policy={"max_nodes": 3})
    many = {str(at): {"class_type": "X", "inputs": {}} for at in range(4)}
    assert isinstance(await gate.refusal(json.dumps({"prompt": {**many, "9": {}}}).encode()), InvalidWorkflowError)
    error = await gate.refusal(json.dumps({"prompt": many}).encode())
    assert isinstance(error, PolicyViolationError)
    assert error.extra_info == {"nodes": 4, "max_nodes": 3}
    assert host.rehearsed == []


async def test_a_node_that_queues_its_prompt_again_by_itself_is_refused_for_everybody(store, host, clock):
    gate = Gate(store, host, clock)
    prompt = {"1": GRAPH["1"], "7": {"class_type": "VHS_BatchManager", "inputs": {"frames_per_batch": 16}}}
    error = await gate.refusal(json.dumps({"prompt": prompt}).encode())
    assert isinstance(error, PolicyViolationError)
    assert error.extra_info == {"node_id": "7", "class_type": "VHS_BatchManager"}
    assert host.rehearsed == []


async def test_of_several_faults_the_first_in_the_order_of_the_steps_is_told(store, host, clock):
    gate = Gate(
        store, host, clock, limits={"jobs_per_minute": 1}, policy={"max_body_bytes": 1024, "deny_nodes": ["Denied"]}
    )
    await gate.admit()
    host.alive = False
    host.declared = {"LoadImage": {"image": Names.FILE}}
    host.rehearsal = Rehearsal(_host_refusal(), ())
    gate.faces.error = NoFaceError("No face found in photo.png")

    async def refuse(kind, image, guard, raw=None, key="k"):
        nodes = {"1": {"class_type": kind, "inputs": {}}, "2": {"class_type": "LoadImage", "inputs": {"image": image}}}
        return (await gate.refusal(raw or _raw(prompt=nodes, guard=guard), idempotency_key=key)).code

    outside, webhook = "../x.png", {"webhook": {"url": "ftp://bot.example/"}}
    assert await refuse("Denied", outside, webhook, b"{" + b" " * 1024, "ё") == "payload_too_large"
    assert await refuse("Denied", outside, webhook, b"{", "ё") == "invalid_request"
    assert await refuse("Denied", outside, webhook, b"{") == "server_unavailable"
    host.alive = True
    assert await refuse("Denied", outside, webhook, b"{") == "rate_limited"
    gate.limits.give_job_back(BOT)
    assert await refuse("Denied", outside, webhook, b"{") == "invalid_request"
    assert await refuse("Denied", outside, webhook) == "policy_violation"
    assert await refuse("Free", outside, webhook) == "invalid_request"
    assert await refuse("Free", outside, {}) == "bad_image"
    host.declared = {}
    assert await refuse("Free", "x.png", {}) == "invalid_workflow"
    host.rehearsal = Rehearsal(None, ("2",))
    assert await refuse("Free", "x.png", {}) == "no_face"
    gate.faces.error = None
    assert not (await gate.admit(idempotency_key="k")).replayed  # none of the refusals took the key or the rate


async def test_what_the_host_refuses_makes_no_job(gate, store, host):
    host.rehearsal = Rehearsal(_host_refusal({"4": _not_in_list("ckpt_name", "m.safetensors")}), ())
    error = await gate.refusal(_raw(extra_data={SECRET_NAMES[0]: "s3cret"}), idempotency_key="k")
    assert isinstance(error, MissingModelError)
    assert store.queued == 0
    assert gate.secrets._by_job == {}
    host.rehearsal = Rehearsal(None, ("2",))
    assert not (await gate.admit(idempotency_key="k")).replayed


async def test_faces_are_looked_for_after_the_host_has_agreed_and_before_there_is_a_job(gate, store, host):
    gate.faces.error = NoFaceError("No face found in photo.png")
    error = await gate.refusal(_raw(extra_data={SECRET_NAMES[0]: "s3cret"}), idempotency_key="k")
    assert error is gate.faces.error
    assert store.queued == 0
    assert gate.secrets._by_job == {}
    assert gate.faces.asked == [(GRAPH, ("2",), None)]
    host.rehearsal = Rehearsal(_host_refusal(), ())
    assert isinstance(await gate.refusal(), InvalidWorkflowError)
    assert len(gate.faces.asked) == 1


@pytest.mark.parametrize(("asked", "given"), [(True, True), ({}, True), (False, False)])
async def test_a_request_may_ask_for_a_face_check_of_its_own(gate, asked, given):
    await gate.admit(_raw(guard={"face_check": asked}))
    assert (gate.faces.asked[0][2] is not None) is given


async def test_a_job_id_in_use_is_a_conflict(gate):
    job_id = (await gate.admit()).job.job_id
    assert isinstance(await gate.refusal(_raw(prompt_id=job_id), OTHER), ConflictError)


# Secrets. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRET_NAMES)
@pytest.mark.parametrize("value", ["s3cret-ключ", {"deep": ["s3cret-ключ"]}, ["s3cret-ключ"]])
async def test_secrets_stay_in_memory_and_never_reach_the_disk(gate, store, host, name, value):
    raw = _raw(extra_data={name: value, "x": 1}, workflow_id="w", number=3)
    job = (await gate.admit(raw)).job
    kept = store.find_entry(job.job_id).result(LONG_S).body
    assert json.loads(kept) == {"prompt": GRAPH, "extra_data": {"x": 1}, "workflow_id": "w", "number": 3}
    assert job.has_secrets
    assert gate.secrets.of(job.job_id) == {name: value}
    for file in store.path.parent.iterdir():
        assert b"s3cret" not in file.read_bytes()
    assert host.rehearsed[0]["extra_data"] == {name: value, "x": 1}


async def test_a_secret_spelled_with_escapes_is_one_all_the_same(gate, store):
    raw = _raw(extra_data={SECRET_NAMES[0]: "s3cret"}).replace(b"auth_token", b"auth\\u005ftoken")
    job = (await gate.admit(raw)).job
    assert b"s3cret" not in store.find_entry(job.job_id).result(LONG_S).body


async def test_a_secret_that_is_null_is_none(gate):
    job = (await gate.admit(_raw(extra_data={SECRET_NAMES[0]: None}))).job
    assert not job.has_secrets
    assert gate.secrets.of(job.job_id) == {}


async def test_a_server_that_runs_no_jobs_takes_none_with_secrets(store, host, clock):
    gate = Gate(store, host, clock, queue={"max_jobs": 0})
    error = await gate.refusal(_raw(extra_data={SECRET_NAMES[0]: "s3cret"}))
    assert (error.code, error.retryable) == ("server_unavailable", True)
    assert gate.secrets._by_job == {}
    assert (await gate.admit(_raw())).job.state is JobState.QUEUED


async def test_a_conflict_over_a_job_id_keeps_no_other_prompt_for_that_job(gate, host):
    job_id = new_id()
    await gate.admit(_raw(prompt_id=job_id))
    assert host.ready == {job_id}
    host.ready.clear()  # it could not be kept, say
    await gate.refusal(_raw(prompt_id=job_id), OTHER)
    await gate.refusal(_raw(prompt_id=job_id))
    assert not host.ready, "it would run in place of the job's own"


@pytest.mark.parametrize("extra_data", [{}, {SECRET_NAMES[0]: "the other's"}])
async def test_a_conflict_over_a_job_id_leaves_that_jobs_secrets_alone(gate, extra_data):
    job_id = (await gate.admit(_raw(extra_data={SECRET_NAMES[0]: "mine"}))).job.job_id
    error = await gate.refusal(_raw(prompt_id=job_id, extra_data=extra_data), OTHER)
    assert isinstance(error, ConflictError)
    assert gate.secrets.of(job_id) == {SECRET_NAMES[0]: "mine"}


async def test_of_two_equal_requests_at_once_one_job_is_made_and_only_its_secrets_are_kept(gate, store, host):
    barrier = asyncio.Event()

    async def together():
        if len(host.rehearsed) == 2:
            barrier.set()
        await barrier.wait()

    host.during_rehearsal = together
    raw = _raw(extra_data={SECRET_NAMES[0]: "s3cret"})
    first, second = await asyncio.gather(gate.admit(raw, idempotency_key="k"), gate.admit(raw, idempotency_key="k"))
    assert first.job.job_id == second.job.job_id
    assert {first.replayed, second.replayed} == {True, False}
    assert store.queued == 1
    assert list(gate.secrets._by_job) == [first.job.job_id]


async def test_secrets_are_forgotten_when_the_job_could_not_be_let_in(store, host, clock):
    gate = Gate(store, host, clock, queue={"max_queued": 1})

    async def overtaken():
        store.submit(new_job(), 10).result(LONG_S)

    host.during_rehearsal = overtaken
    assert isinstance(await gate.refusal(_raw(extra_data={SECRET_NAMES[0]: "s3cret"})), QueueFullError)
    assert gate.secrets._by_job == {}


@pytest.mark.parametrize("step", ["rehearsal", "commit"])
async def test_a_request_that_is_cancelled_on_its_way_leaves_nothing_of_itself(store, host, clock, monkeypatch, step):
    gate = Gate(store, host, clock, limits={"jobs_per_minute": 1})
    raw = _raw(extra_data={SECRET_NAMES[0]: "s3cret"})
    reached, never, commit = asyncio.Event(), asyncio.Event(), Future()

    async def stop():
        reached.set()
        await never.wait()

    def hold_commit(*_arguments, **_more):
        reached.set()
        return commit

    with monkeypatch.context() as patch:
        if step == "rehearsal":
            host.during_rehearsal = stop
        else:
            patch.setattr(store, "submit", hold_commit)
        task = asyncio.create_task(gate.admit(raw))
        await asyncio.wait_for(reached.wait(), LONG_S)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    host.during_rehearsal = None
    assert commit.cancelled() == (step == "commit")
    assert store.queued == 0
    assert gate.secrets._by_job == {}
    assert not gate.admission._in_use._held
    await gate.admit(raw)  # the one job a minute is still there


async def test_a_settled_job_can_be_read_by_its_key(gate, store):
    raw = _raw()
    job = (await gate.admit(raw, idempotency_key="k")).job
    store.settle(job.job_id, Verdict(JobState.CANCELLED, "cancelled", "x")).result(LONG_S)
    replayed = await gate.admit(raw, idempotency_key="k")
    assert (replayed.job.state, replayed.waiting) == (JobState.CANCELLED, None)


async def test_a_node_that_raises_system_exit_when_asked_for_its_inputs_refuses_the_prompt(store, host, clock):
    """It would end the server: asyncio lets it through every task."""

    def asked(_class_type):
        raise SystemExit("of a node")

    host.file_inputs = asked
    gate = Gate(store, host, clock)
    with pytest.raises(InternalError, match="could not be looked at"):
        await gate.admit(_raw(prompt={**GRAPH, "1": {"class_type": "Odd", "inputs": {"image": "a.png"}}}))
    assert store.queued == 0
