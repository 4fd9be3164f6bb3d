import json
import re
from typing import Annotated

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from comfyui_guarded.guard import bounds, errors, messages

# docs/http.md: code -> (HTTP status, retryable). None: only ever settles a job.
TABLE: dict[str, tuple[int | None, bool]] = {
    "invalid_request": (400, False),
    "invalid_workflow": (400, False),
    "missing_node": (422, False),
    "missing_model": (422, False),
    "policy_violation": (422, False),
    "bad_image": (422, False),
    "bad_video": (422, False),
    "bad_audio": (422, False),
    "fetch_failed": (422, True),
    "no_face": (422, False),
    "too_many_faces": (422, False),
    "face_too_small": (422, False),
    "unauthorized": (401, False),
    "forbidden": (403, False),
    "not_found": (404, False),
    "method_not_allowed": (405, False),
    "conflict": (409, False),
    "file_in_use": (409, True),
    "artifact_gone": (410, False),
    "prompt_gone": (410, False),
    "payload_too_large": (413, False),
    "internal_error": (500, True),
    "rate_limited": (429, True),
    "queue_full": (429, True),
    "quota_exceeded": (429, True),
    "server_unavailable": (503, True),
    "disk_full": (507, True),
    "queue_timeout": (None, True),
    "generation_timeout": (None, True),
    "generation_failed": (None, False),
    "out_of_memory": (None, True),
    "worker_died": (None, True),
    "server_restarted": (None, True),
    "interrupted": (None, True),
    "result_missing": (None, True),
    "result_too_small": (None, True),
    "result_corrupt": (None, True),
    "result_blank": (None, True),
    "result_incomplete": (None, True),
    "cancelled": (None, False),
}


def test_the_family_is_the_designs_table_of_codes_statuses_and_retry_flags():
    assert {code: (cls.status, cls.retryable) for code, cls in errors.FAMILY.items()} == TABLE


@pytest.mark.parametrize("code", sorted(TABLE))
def test_every_error_is_named_by_the_rule_and_has_the_one_body(code):
    cls = errors.FAMILY[code]
    camel = "".join(part.capitalize() for part in code.split("_"))
    assert cls.__name__ == (camel if camel.endswith("Error") else camel + "Error")
    assert cls.__module__ == "comfyui_guarded"
    assert errors.type_name(code) == f"comfyui_guarded.{cls.__name__}"
    assert errors.BY_NAME[errors.type_name(code)] is cls
    assert cls.__doc__

    error = cls(
        "Told in English.", details="more", extra_info={"node_id": "3"}, retry_after_s=7, node_errors={"3": {"a": 1}}
    )
    assert isinstance(error, errors.GuardError)
    assert str(error) == "Told in English."
    body = error.body("ru", of_submit=True)
    assert body == {
        "error": {"type": code, "message": "Told in English.", "details": "more", "extra_info": {"node_id": "3"}},
        "node_errors": {"3": {"a": 1}},
        "guard": {
            "code": code,
            "user_message": messages.text(code, "ru"),
            "refund": True,
            "retryable": TABLE[code][1],
            "retry_after_s": 7,
            "job_id": None,
        },
    }
    assert json.loads(json.dumps(body)) == body


def test_a_bare_error_has_every_key_of_the_body():
    body = errors.NoFaceError("No face found in photo.png").body("en")
    assert set(body) == {"error", "node_errors", "guard"}
    assert set(body["error"]) == {"type", "message", "details", "extra_info"}
    assert set(body["guard"]) == {"code", "user_message", "retryable", "retry_after_s", "job_id"}
    assert (body["error"]["details"], body["error"]["extra_info"], body["node_errors"]) == ("", {}, {})
    assert (body["guard"]["retry_after_s"], body["guard"]["job_id"]) == (None, None)


def test_what_was_taken_goes_back_for_a_submit_that_made_no_job_and_for_nothing_else():
    for code, cls in errors.FAMILY.items():
        error = cls("No.", extra_info={"job_id": "some-id"})
        there = "some-id" if code == "conflict" else None
        assert "refund" not in error.body("en")["guard"], code
        told = error.body("en", of_submit=True)["guard"]
        assert (told["refund"], told["job_id"]) == (there is None, there), code
    assert errors.ConflictError("Somebody else's.").body("en", of_submit=True)["guard"]["refund"] is True


def test_the_hosts_own_error_type_is_shown_where_the_host_refused():
    body = errors.InvalidWorkflowError("no", host_type="prompt_no_outputs").body("en")
    assert body["error"]["type"] == "prompt_no_outputs"
    assert body["guard"]["code"] == "invalid_workflow"


def test_every_code_has_a_text_in_every_language():
    assert {"ru", "en"} <= messages.languages()
    for language in messages.languages():
        table = messages.table(language)
        assert set(TABLE) <= set(table), language
        assert {"queued", "queued_place", "queued_time", "seconds", "minutes", "hours"} <= set(table), language
        assert all(text.strip() == text != "" for text in table.values()), language


def test_the_fixed_russian_texts_are_word_for_word():
    assert {code: messages.text(code, "ru") for code in ("server_unavailable", "generation_timeout", "no_face")} == {
        "server_unavailable": "Сервер генерации недоступен. Попробуйте позже.",
        "generation_timeout": "Генерация заняла слишком много времени. Попробуйте упростить промт.",
        "no_face": "На фото не обнаружено лицо. Загрузите фото с четким изображением лица.",
    }
    assert messages.text_of_end("generation_timeout", "ru") == (
        "Генерация заняла слишком много времени. Кредиты возвращены. Попробуйте упростить промт."
    )
    assert messages.text_of_end("generation_failed", "ru") == (
        "Не удалось обработать изображение. Кредиты возвращены. Попробуйте другой промт или фото."
    )
    assert messages.text("queued", "ru", running=1, max_jobs=1) == (
        "Сервер загружен (1/1 задач). Ваша генерация начнется через несколько секунд..."
    )


def test_russian_texts_hold_no_latin_letters_and_no_codes():
    for key, text in messages.table("ru").items():
        shown = re.sub(r"\{\w+\}", "", text)
        assert not re.search(r"[A-Za-z_]", shown), key


def test_no_text_in_any_language_shows_a_code():
    for language in messages.languages():
        for key, text in messages.table(language).items():
            assert not any(code in text for code in TABLE if "_" in code), (language, key)


def test_placeholders_agree_between_languages():
    def placeholders(language):
        return {key: set(re.findall(r"\{(.*?)\}", text)) for key, text in messages.table(language).items()}

    tables = {language: placeholders(language) for language in messages.languages()}
    for language, found in tables.items():
        assert found == tables["en"], language


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("en", "en"),
        ("ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        ("en;q=0.2, ru;q=0.7", "ru"),
        ("de-DE, fr;q=0.9, en-GB;q=0.1", "en"),
        ("EN-us", "en"),
        ("en_US", "en"),
        ("en;q=0, ru;q=0.1", "ru"),
        (" en ; q=0.5 , ru ; q=0.4", "en"),
        ("en , ru", "en"),
    ],
)
def test_the_best_language_of_accept_language_is_taken(header, language):
    assert messages.choose(None, header, "ru" if language == "en" else "en") == language


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "*",
        ",,,;;;",
        ";q=1",
        "en;q=nan",
        "en;q=inf",
        "en;q=-1",
        "en;q=2",
        "en;q=abc",
        "en;q=",
        "en;q=0",
        "../en",
        "..\\..\\ru;q=1",
        "__init__",
        "\x00\xff\u2028",
        "q=" * 10_000,
        "xx," * 100_000 + "en",
        "\ud800",
    ],
)
def test_an_accept_language_that_names_nothing_of_ours_gives_the_default(header):
    assert messages.choose(None, header, "ru") == "ru"


def test_a_locale_asked_for_by_name_goes_before_the_header():
    assert messages.choose("en", "ru", "ru") == "en"
    assert messages.choose("ru-RU", "en", "en") == "ru"


def test_an_unknown_locale_falls_back_to_the_header_and_then_to_the_default():
    assert messages.choose("xx", "en", "ru") == "en"
    assert messages.choose("../../etc/passwd", None, "ru") == "ru"


def test_a_language_without_a_text_shows_the_english_one():
    assert messages.text("no_face", "xx") == messages.text("no_face", "en")


def _require_even(value: int) -> int:
    if value % 2:
        raise ValueError("it is odd")
    return value


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    even: Annotated[int, AfterValidator(_require_even)] = 0


class _Outer(BaseModel):
    inner: _Inner


@pytest.mark.parametrize(
    ("inner", "field", "message"),
    [
        ({"even": 1}, "guard.inner.even", "guard.inner.even: it is odd."),
        ({"odd": 1}, "guard.inner.odd", "guard.inner.odd: there is no such field."),
        ({"even": "x"}, "guard.inner.even", "guard.inner.even: Input should be a valid integer"),
    ],
)
def test_a_field_that_a_model_refuses_is_named_with_its_fault(inner, field, message):
    with pytest.raises(ValidationError) as caught:
        _Outer.model_validate({"inner": inner})
    error = bounds.refuse_field(caught.value, "guard.")
    assert error.message.startswith(message)
    assert error.extra_info == {"field": field}
