from pathlib import Path

import pytest

from comfyui_guarded.guard import settings
from comfyui_guarded.guard.settings import SettingsError, load

REPO = Path(__file__).parents[2]

# The defaults that bots and operators rely on.
DEFAULTS = {
    "queue.max_jobs": 1,
    "queue.max_queued": 1000,
    "queue.timeout_s": 1800,
    "watchdog.job_timeout_s": 600,
    "watchdog.max_attempts": 2,
    "results.min_image_bytes": 1024,
    "results.min_video_bytes": 10240,
    "results.check_timeout_s": 30,
    "policy.max_nodes": 1000,
    "store.url": "",
    "access.trust_loopback": "auto",
}


def _toml(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "guarded.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def _refusal(toml_file, environment) -> str:
    with pytest.raises(SettingsError) as caught:
        load(toml_file, environment)
    return str(caught.value)


def test_the_defaults_are_the_designs():
    told = {name: value for name, value, _help in settings.rows()}
    assert {name: told[name] for name in DEFAULTS} == DEFAULTS


def test_every_setting_has_a_help_text():
    assert all(help_text.strip() for _name, _value, help_text in settings.rows())


def test_nothing_set_gives_the_defaults(tmp_path):
    assert load(None, {}) == load(tmp_path / "absent.toml", {"PATH": "/bin"}) == settings.Settings()


def test_the_environment_wins_over_the_file(tmp_path):
    file = _toml(tmp_path, "[queue]\nmax_jobs = 2\nmax_queued = 5\n[access]\ntrust_loopback = false\n")
    loaded = load(file, {"GUARDED_QUEUE__MAX_JOBS": "3", "GUARDED_WATCHDOG__JOB_TIMEOUT_S": "1.5"})
    assert (loaded.queue.max_jobs, loaded.queue.max_queued) == (3, 5)
    assert loaded.watchdog.job_timeout_s == 1.5
    assert loaded.access.trust_loopback is False
    assert loaded.results == settings.Settings().results


def test_max_gpu_jobs_is_accepted_for_queue_max_jobs(tmp_path):
    file = _toml(tmp_path, "[queue]\nmax_jobs = 2\n")
    assert load(file, {"MAX_GPU_JOBS": "4"}).queue.max_jobs == 4


def test_the_full_name_wins_over_max_gpu_jobs():
    assert load(None, {"MAX_GPU_JOBS": "4", "GUARDED_QUEUE__MAX_JOBS": "3"}).queue.max_jobs == 3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[queue]\nmax_job = 1\n", "queue.max_job:"),
        ("[queu]\nmax_jobs = 1\n", "queu"),
        ("[queue]\nmax_jobs = 0\n", "queue.max_jobs"),
        ("[queue]\nmax_jobs = -1\n", "queue.max_jobs"),
        ("[queue]\nmax_jobs = 1.5\n", "queue.max_jobs"),
        ("[queue]\nmax_jobs = nan\n", "queue.max_jobs"),
        ("[queue]\nmax_jobs = [1]\n", "queue.max_jobs"),
        ("[queue]\ntimeout_s = nan\n", "queue.timeout_s"),
        ("[queue]\ntimeout_s = inf\n", "queue.timeout_s"),
        ("[queue]\ntimeout_s = -1\n", "queue.timeout_s"),
        ("[queue]\ntimeout_s = 0\n", "queue.timeout_s"),
        ('[queue]\ntimeout_s = "soon"\n', "queue.timeout_s"),
        ("[watchdog]\njob_timeout_s = -inf\n", "watchdog.job_timeout_s"),
        ("[results]\nmin_image_bytes = -1\n", "results.min_image_bytes"),
        ("[access]\ntrust_loopback = 7\n", "access.trust_loopback"),
        ('[messages]\nlocale = "tlh"\n', "messages.locale"),
        ('[log]\nlevel = "LOUD"\n', "log.level"),
        ("queue = 5\n", "queue"),
        ("max_jobs = 5\n", "max_jobs"),
    ],
)
def test_an_unknown_key_or_a_bad_value_in_the_file_is_refused_by_name(tmp_path, text, names):
    assert names in _refusal(_toml(tmp_path, text), {})


@pytest.mark.parametrize("name", ["queue.max_jobs", "queue.timeout_s", "watchdog.job_timeout_s"])
def test_true_is_not_a_number(tmp_path, name):
    section, key = name.split(".")
    assert name in _refusal(_toml(tmp_path, f"[{section}]\n{key} = true\n"), {})


@pytest.mark.parametrize(
    ("variable", "value", "names"),
    [
        ("GUARDED_QUEUE__MAX_JOB", "1", "queue.max_job"),
        ("GUARDED_QUEU__MAX_JOBS", "1", "queu"),
        ("GUARDED_QUEUE__MAX_JOBS", "many", "queue.max_jobs"),
        ("GUARDED_QUEUE__MAX_JOBS", "1e3", "queue.max_jobs"),
        ("GUARDED_QUEUE__MAX_JOBS", "0", "queue.max_jobs"),
        ("GUARDED_QUEUE__TIMEOUT_S", "nan", "queue.timeout_s"),
        ("GUARDED_QUEUE__TIMEOUT_S", "inf", "queue.timeout_s"),
        ("GUARDED_QUEUE__TIMEOUT_S", "-5", "queue.timeout_s"),
        ("GUARDED_ACCESS__TRUST_LOOPBACK", "perhaps", "access.trust_loopback"),
        ("MAX_GPU_JOBS", "x", "queue.max_jobs"),
    ],
)
def test_a_bad_variable_is_refused_by_its_key_and_its_own_name(variable, value, names):
    refusal = _refusal(None, {variable: value})
    assert names in refusal
    if names != "queu":
        assert variable in refusal


@pytest.mark.parametrize("variable", ["GUARDED_NATIVE_MODE", "GUARDED_QUEUE_MAX_JOBS"])
def test_a_variable_with_one_underscore_too_few_is_refused_with_the_name_that_was_meant(variable):
    refusal = _refusal(None, {variable: "1"})
    assert refusal.startswith(variable)
    assert variable.replace("_", "__", 2).replace("__", "_", 1) in refusal


def test_variables_of_other_programs_are_left_alone():
    assert load(None, {"GUARDED_URL": "http://127.0.0.1:8188", "GUARDED_KEY": "x"}) == load(None, {})


def test_a_complaint_is_free_of_the_librarys_own_words():
    refusal = _refusal(None, {"GUARDED_POLICY__PROFILE": "rtx5090"})
    assert "policy.profile (from GUARDED_POLICY__PROFILE): there is no such profile; there are a100" in refusal


def test_every_bad_value_is_named_at_once(tmp_path):
    refusal = _refusal(_toml(tmp_path, "[queue]\nmax_jobs = 0\ntimeout_s = -1\n"), {"GUARDED_LOG__LEVEL": "LOUD"})
    assert all(name in refusal for name in ("queue.max_jobs", "queue.timeout_s", "log.level", "GUARDED_LOG__LEVEL"))


@pytest.mark.parametrize("text", ["[queue", "max_jobs: 3", "[queue]\nmax_jobs = \n", b"\xff\xfe[\x00q", b"\x00" * 64])
def test_a_file_that_is_not_toml_is_refused_by_its_name(tmp_path, text):
    assert "guarded.toml" in _refusal(_toml(tmp_path, text), {})


def test_a_section_that_is_no_section_is_refused_also_with_a_variable_for_it(tmp_path):
    assert "queue" in _refusal(_toml(tmp_path, "queue = 5\n"), {"GUARDED_QUEUE__MAX_JOBS": "2"})


def test_settings_cannot_be_changed_behind_the_machines_back():
    with pytest.raises(ValueError, match="frozen"):
        settings.Settings().queue.max_jobs = 2


def test_docs_settings_md_is_what_the_table_says():
    assert (REPO / "docs" / "settings.md").read_text(encoding="utf-8") == settings.markdown()


def test_the_page_has_a_row_for_every_setting():
    page = settings.markdown()
    for name, _value, help_text in settings.rows():
        assert f"| `{name}` |" in page
        assert help_text in page
