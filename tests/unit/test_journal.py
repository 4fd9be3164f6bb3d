"""The log: what a line may hold, and that nobody can forge one."""

import io
import json
import logging
import re
import sys

import pytest
from unit.fakes import LONG_S

from comfyui_guarded.guard import journal
from comfyui_guarded.guard.errors import GenerationFailedError, NoFaceError, WorkerDiedError
from comfyui_guarded.guard.job import SUCCESS, Artifact, Result, Verdict
from comfyui_guarded.guard.journal import Throttle, clean
from comfyui_guarded.guard.settings import LogSettings

KEY = "gk_0123abcd_" + "A" * 43
log = logging.getLogger("guarded.test")


@pytest.fixture
def written(caplog, monkeypatch):
    """Installs the journal as at start; what was written, as lines."""
    logger = journal.LOGGER
    before = logger.level, logger.handlers, logger.propagate
    stderr = io.StringIO()
    stream = logging.StreamHandler(stderr)
    logging.getLogger().addHandler(stream)

    def start(**settings):
        monkeypatch.setattr(sys, "stderr", stderr)
        journal.install(LogSettings(**settings))
        return lambda: stderr.getvalue().splitlines()

    yield start
    logging.getLogger().removeHandler(stream)
    logger.level, logger.handlers, logger.propagate = before


def timeless(lines):
    return [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "T", line) for line in lines]


class TestALine:
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("photo.png", "photo.png"),
            ("фото №1.png", "фото №1.png"),
            ("a\n[guarded] job 1 succeeded.png", "a\\n[guarded] job 1 succeeded.png"),
            ("a\r\x1b[2K\x1b[31m.png", "a\\r\\x1b[2K\\x1b[31m.png"),
            ("a\u2028b\u202egnp.exe", "a\\u2028b\\u202egnp.exe"),
            ("a\ud800b", "a\\ud800b"),
        ],
    )
    def test_control_signs_in_names_are_written_out(self, name, shown):
        assert clean(name) == shown

    @pytest.mark.parametrize(
        "text",
        [
            f"unknown key {KEY}",
            "Authorization: Bearer abcSECRETdef",
            "/guarded/ws?token=abcSECRETdef&clientId=1",
            "Basic dXNlcjpSECRETdef",
            "api_key_comfy_org: SECRETdef",
        ],
    )
    def test_keys_and_tokens_are_left_out(self, text):
        assert "SECRETdef" not in clean(text)
        assert "A" * 43 not in clean(text)

    def test_a_line_without_a_secret_stays_as_it_is(self):
        text = "job 1 of bot-a failed: no_face: No face found in token.png."
        assert clean(text) == text


class TestText:
    def test_goes_where_the_host_writes_and_says_whose_it_is(self, written):
        lines = written()
        log.info("job %s started", "1\n2", extra={"job_id": "1"})
        log.debug("not at this level")
        assert timeless(lines()) == ["[guarded] T job 1\\n2 started"]

    def test_it_says_when_only_where_the_hosts_own_lines_do_not(self, written, monkeypatch):
        lines = written()
        stamped = logging.Formatter("%(asctime)s %(message)s")
        for handler in logging.getLogger().handlers:
            monkeypatch.setattr(handler, "formatter", stamped)
        log.info("ready")
        assert re.fullmatch(r"[\d-]+ [\d:,]+ \[guarded\] ready", lines()[0])

    def test_no_line_of_an_exception_can_pass_for_one_of_ours(self, written):
        lines = written()
        try:
            raise ValueError("oops\n[guarded] job 7 succeeded")
        except ValueError:
            log.exception("it failed")
        assert [line for line in timeless(lines()) if line.startswith("[guarded]")] == ["[guarded] T it failed"]
        assert "    [guarded] job 7 succeeded" in lines()

    @pytest.mark.parametrize("level", ["INFO", "DEBUG"])
    def test_what_a_node_said_is_left_out_unless_debugging(self, written, level):
        lines = written(level=level)
        said = "could not draw 'a very {} prompt'".format("private")
        try:
            raise RuntimeError(said)
        except RuntimeError:
            log.exception("the node failed", extra={"quotes_prompt": True})
        text = "\n".join(lines())
        assert "RuntimeError" in text
        assert "test_journal.py" in text
        assert ("very private" in text) == (level == "DEBUG")


class TestJson:
    def test_one_object_a_line(self, written):
        lines = written(format="json")
        log.warning("job %s: %s", "1", "фото\n.png", extra={"job_id": "1"})
        try:
            raise ValueError("x")
        except ValueError:
            log.exception("it failed")
        first, second = map(json.loads, lines())
        assert first.pop("time").endswith("+00:00")
        assert first == {
            "level": "WARNING",
            "logger": "guarded.test",
            "message": "job 1: фото\\n.png",
            "job_id": "1",
        }
        assert second["exception"].startswith("Traceback")
        assert all(line.isascii() for line in lines())


class TestHowAJobEnded:
    @pytest.fixture
    def ended(self, machine, caplog):
        def end(verdict, result=None):
            caplog.set_level(logging.INFO, "guarded")
            job_id = machine.submit()
            machine.store.claim("local", 1).result(LONG_S)
            machine.store.start(job_id).result(LONG_S)
            machine.settler.settle(machine.job(job_id), verdict, result).result(LONG_S)
            machine.store.flush()
            found = [record for record in caplog.records if getattr(record, "job_id", None) == job_id]
            said = [(record.levelname, record.getMessage().replace(job_id, "J")) for record in found]
            return [(level, re.sub(r"\d+\.\d s", "T", text)) for level, text in said]

        return end

    def test_success_is_information(self, ended):
        assert ended(SUCCESS) == [("INFO", "job J of bot succeeded with 0 files; waited T, ran T")]

    def test_a_thin_video_is_a_warning(self, ended):
        video = Artifact(0, "2", "video", "clip.mp4", "", "output", 9, "", warnings=("low_bitrate",))
        assert ended(SUCCESS, Result({}, (video,)))[1:] == [("WARNING", "job J: clip.mp4: low_bitrate")]

    @pytest.mark.parametrize(
        ("error", "level"),
        [
            (NoFaceError, "INFO"),
            (GenerationFailedError, "WARNING"),
            (WorkerDiedError, "ERROR"),
        ],
    )
    def test_a_failure_is_as_grave_as_what_the_operator_has_to_do_with_it(self, ended, error, level):
        assert ended(Verdict.of(error("So it was."))) == [
            (level, f"job J of bot failed: {error.code}: So it was.; waited T, ran T")
        ]

    def test_a_node_that_raised_is_named_but_not_quoted(self, ended):
        facts = {"node_id": "3", "node_type": "KSampler", "exception_type": "ValueError", "exception_message": "secret"}
        verdict = Verdict.of(GenerationFailedError("KSampler failed: secret", extra_info=facts))
        assert ended(verdict) == [
            ("WARNING", "job J of bot failed: generation_failed: node 3 (KSampler) raised ValueError; waited T, ran T")
        ]


def test_what_strangers_cause_is_written_once_a_second_with_the_number_of_the_others(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    throttle = Throttle()
    assert [throttle.take("a") for _ in range(4)] == [0, None, None, None]
    assert throttle.take("b") == 0
    now[0] += 1.0
    assert throttle.take("a") == 3


def test_a_traceback_that_repeats_is_written_once_a_second(written, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    lines = written()

    def fault(logger: str, text: str, number: int) -> None:
        for at in range(number):
            try:
                raise OSError(24, "Too many open files")
            except OSError:
                logging.getLogger(logger).exception(f"{text}\nsocket: %s", at)

    fault("asyncio", "socket.accept() out of system resource", 100)
    fault("guarded.test", "POST failed", 100)
    assert sum("Traceback" in line for line in lines()) == 2
    now[0] += 1.0
    fault("asyncio", "socket.accept() out of system resource", 1)
    assert any("(99 more since the last)" in line for line in lines())
    log.error("a job failed")
    log.error("a job failed")
    assert sum("a job failed" in line for line in lines()) == 2, "without a traceback each line is news of its own"


def test_lines_of_the_hosts_are_cut_and_those_that_strangers_cause_are_thinned(written):
    lines = written()
    logging.error("invalid prompt: %s", "Q" * 100_000)
    for number in range(50):
        logging.warning(f"WARNING: request with non matching host and origin {number} != {'a' * 7000}")
    cut, stranger = lines()
    assert len(cut) < journal.LINE_CHARS + 100
    assert cut.endswith("… (100016 characters)")
    assert len(stranger) < 250
