"""What an end user reads: whole, natural sentences in every language, whatever file somebody drops in."""

import json
import re
import string
from pathlib import Path

import pytest

from comfyui_guarded.guard import messages
from comfyui_guarded.guard.errors import FAMILY, NoFaceError
from comfyui_guarded.guard.settings import SettingsError, load

LANGUAGES = sorted(messages.languages())
CODES = sorted(FAMILY)
#: What is filled into the notices.
FACTS = {"running": 1, "max_jobs": 2, "position": 3, "time": "5 мин", "seconds": 5, "minutes": 5}
#: Texts that are no sentences: an amount of time, to be put into one.
AMOUNTS = ("seconds", "minutes", "hours")
#: The words of operators and programs. A user of a bot has no use for them.
JARGON = {
    "en": r"\b(prompt_id|node|nodes|worker|queue_full|HTTP|JSON|API|ComfyUI|CUDA|GPU|VRAM|timeout|null|error code)\b",
    "ru": r"\b(нод[аыу]|воркер|таймаут|эндпоинт|токен|запрос[а-я]* API)\b",
}
#: Each language's own letters, and what must not be among them.
LETTERS = {"en": r"[A-Za-z]", "ru": r"[А-Яа-я]"}
FOREIGN = {"en": r"[А-Яа-яЁё]", "ru": r"[A-Za-zЁё]"}


def sentences(language: str) -> dict[str, str]:
    """Every text as it is shown, filled in."""
    shown = {}
    for key, text in messages.table(language).items():
        if key not in AMOUNTS:
            wanted = {name for _, name, _, _ in string.Formatter().parse(text) if name} - {"refunded"}
            shown[key] = messages.text(key, language, **{name: FACTS[name] for name in wanted})
    for code in CODES:
        shown[f"end: {code}"] = messages.text_of_end(code, language)
    return shown


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_and_every_notice_has_a_text_and_nothing_else_has(language):
    asked = set()
    for path in Path(messages.__file__).parents[1].rglob("*.py"):
        asked |= set(re.findall(r"""messages\.(?:text|format_count)\(\s*"(\w+)\"""", path.read_text(encoding="utf-8")))
    assert set(CODES) | asked <= set(messages.table(language))
    assert set(messages.table(language)) == set(messages.table("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_whole_sentences_of_its_language_without_codes_or_placeholders(language):
    for key, text in sentences(language).items():
        assert text == text.strip(), key
        assert text[0].isupper(), key
        assert text.endswith((".", "!", "?", "...")), key
        assert "  " not in text, key
        assert not re.search(r"[{}_<>\[\]|`]", text), key
        assert not re.search(r"[.!?] [a-zа-я]", text), f"{key}: a sentence begins small"
        assert not re.search(r"\s[,.!?;:]", text), f"{key}: a space before a mark"
        assert 10 <= len(text) <= 160, key
        for code in CODES:
            assert "_" not in code or code not in text, key
        if language in LETTERS:
            assert re.search(LETTERS[language], text), key
            assert not re.search(FOREIGN[language], text.replace("5 мин", "")), key
            assert not re.search(JARGON[language], text, re.IGNORECASE), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_codes_say_the_same_unless_they_are_one_thing_to_a_user(language):
    alike = {frozenset({"result_too_small", "result_corrupt"})}
    by_text: dict[str, set[str]] = {}
    for code in CODES:
        by_text.setdefault(messages.text(code, language), set()).add(code)
    assert {frozenset(codes) for codes in by_text.values() if len(codes) > 1} <= alike


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_end_says_that_the_money_is_back_and_no_refusal_does(language):
    money = messages.text("refunded", language)
    for code in CODES:
        assert money in messages.text_of_end(code, language), code
        assert money not in messages.text(code, language), code
        assert not re.search("credit|кредит", messages.text(code, language), re.IGNORECASE), code


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_money_no_end_speaks_of_it(language, install):
    install({}, money=False)
    for code in CODES:
        assert messages.text_of_end(code, language) == messages.text(code, language), code


# Texts of an operator. -------------------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch):
    monkeypatch.setattr(messages, "_installed", messages._installed)
    return messages.install


def write(folder, **files):
    (folder / "messages").mkdir(exist_ok=True)
    for name, texts in files.items():
        (folder / "messages" / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")


def test_own_texts_and_languages_count_before_ours(tmp_path, install):
    write(tmp_path, ru={"refunded": "Звезды возвращены.", "no_face": "Лица нет."}, de={"queue_full": "Es ist voll."})
    install(messages.read_own(tmp_path / "messages"))
    assert messages.text("no_face", "ru") == "Лица нет."
    assert messages.text_of_end("no_face", "ru") == "Лица нет. Звезды возвращены."
    assert "Звезды возвращены. Попробуйте" in messages.text_of_end("worker_died", "ru")
    assert messages.choose("de-AT", None, "ru") == "de"
    assert messages.text("queue_full", "de") == "Es ist voll."
    assert messages.text("no_face", "de") == messages.text("no_face", "en")


def test_a_server_may_speak_a_language_of_its_own(tmp_path):
    write(tmp_path, de={"queue_full": "Es ist voll."})
    (tmp_path / "guarded.toml").write_text('[messages]\nlocale = "de"')
    assert load(tmp_path / "guarded.toml", {}).messages.locale == "de"
    (tmp_path / "messages" / "de.json").unlink()
    with pytest.raises(SettingsError, match="no texts for 'de'"):
        load(tmp_path / "guarded.toml", {})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("ru.json", b'{"no_fase": "x"}', "no text 'no_fase'"),
        ("ru.json", b'{"queued_place": "{posision}"}', "queued_place must be a text that leaves room for {max_jobs}"),
        ("ru.json", b'{"no_face": ""}', "no_face"),
        ("ru.json", b'{"no_face": 5}', "no_face"),
        ("ru.json", b'{"queued": "{running"}', "queued"),
        ("ru.json", b"{", "not JSON"),
        ("ru.json", b"[]", "not a JSON object"),
        ("ru.json", b"\xff", "not UTF-8"),
        ("texts.json", b"{}", "texts.json"),
        ("ru.txt", b"{}", "ru.txt"),
    ],
)
def test_a_mistake_in_own_texts_is_told_at_the_start_by_file_and_text(tmp_path, name, content, told):
    write(tmp_path)
    (tmp_path / "messages" / name).write_bytes(content)
    with pytest.raises(SettingsError, match=re.escape(told)):
        load(tmp_path / "guarded.toml", {})


# A language of somebody's own. -----------------------------------------------------------------------------------


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """Puts a file beside ours, for one test."""
    for path in Path(messages.__file__).parent.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(messages, "_FOLDER", tmp_path)

    def put(name: str, content: str | bytes) -> None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for cached in (messages._our_languages, messages.table, messages._files):
            cached.cache_clear()

    yield put
    for cached in (messages._our_languages, messages.table, messages._files):
        cached.cache_clear()


def test_a_new_language_is_one_file(drop):
    texts = {**messages.table("en"), "no_face": "Auf dem Foto ist kein Gesicht zu sehen."}
    drop("de.json", json.dumps(texts))
    assert "de" in messages.languages()
    assert messages.choose(None, "de-AT,ru;q=0.5", "ru") == "de"
    assert NoFaceError("No face.").body("de")["guard"]["user_message"] == "Auf dem Foto ist kein Gesicht zu sehen."


def test_a_language_may_be_one_of_a_region(drop):
    drop("pt-br.json", json.dumps({"no_face": "Nenhum rosto foi encontrado na foto."}))
    assert messages.choose("pt-BR", None, "ru") == "pt-br"
    assert messages.choose(None, "pt_BR", "ru") == "pt-br"
    assert messages.choose("pt-PT", "en", "ru") == "en"
    drop("pt.json", json.dumps({"no_face": "Nenhum rosto."}))
    assert messages.choose("pt-PT", "en", "ru") == "pt"
    assert messages.choose("pt-BR", "en", "ru") == "pt-br"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"no_face": 5}',
        b'{"queued": "{runing} of {max_jobs}"}',
        b'{"queued": "{running"}',
        b'{"queued": "{0}"}',
        b'{"queued": "{running.__class__}"}',
        b'{"queued": ""}',
        b'{"seconds": ""}',
    ],
)
def test_a_file_with_a_mistake_in_it_shows_the_english_text_instead(drop, content):
    drop("xx.json", content)
    english = {"no_face": {}, "queued": {"running": 1, "max_jobs": 1}}
    for key, facts in english.items():
        assert messages.text(key, "xx", **facts) == messages.text(key, "en", **facts)
