"""ComfyUI's own editor with the guard in it: the sidebar tab, the badge, the nodes; `native.mode` is `guarded`."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.conftest import PATIENCE_MS, Faults, made_key, put_photos, shoot
from contract.client import PlainClient, Prompt, node, picture, raises, save, sleep, text
from playwright.sync_api import Browser, Page, Route, TimeoutError, expect

from comfyui_guarded.tests.hosts.launch import HostProcess, real_kinds

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.timeout(360)]

#: What a person has chosen who has used this editor before.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Locale": "en"}


NO_COMFYUI = "the editor is a real ComfyUI's: COMFYUI_PATH names one (tests/hosts/launch.py says where we look)"
KINDS = [pytest.param(kind, id=kind.name.replace(" ", "-")) for kind in real_kinds()]

#: The tab's button: frontends up to 1.49 give it a class, later ones a test id.
OUR_TAB = '.guarded-tab-button, [data-testid="guarded-tab-button"]'
#: Unpacked wheels of comfyui-frontend-package, each in a folder of its own.
FRONTENDS = [
    pytest.param(path, id=path.parents[1].name)
    for path in sorted(Path.home().glob("comfy/frontends/*/comfyui_frontend_package/static"))
]
NO_FRONTENDS = "no other frontend: pip install --target ~/comfy/frontends/1.58.1 comfyui-frontend-package==1.58.1"


@pytest.fixture(scope="module", params=KINDS or [pytest.param(None, id="none", marks=pytest.mark.skip(NO_COMFYUI))])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    base = tmp_path_factory.mktemp("editor")
    process = HostProcess(request.param, base, environment={"GUARDED_NATIVE__MODE": "guarded"})
    put_photos(base)
    with process:
        yield process


@pytest.fixture
def editor(browser: Browser, host: HostProcess) -> Iterator[Callable[..., Page]]:
    """Opens the editor: `editor({"Comfy.Locale": "ru"})`. An error in one of our scripts fails the test."""
    contexts, faults = [], []

    def opened(
        settings: dict[str, Any] | None = None,
        prompt: Prompt | None = None,
        host: HostProcess = host,
        frontend: Path | None = None,
        **options: Any,
    ) -> Page:
        user = host.base / "user" / "default"
        user.mkdir(exist_ok=True)
        (user / "comfy.settings.json").write_text(json.dumps({**SETTINGS, **(settings or {})}))
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en", **options)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        contexts.append(context)
        faults.append(Faults(page))
        if frontend is not None:
            page.route(re.compile(f"^{re.escape(host.url)}/(?!api/|extensions/)"), lambda route: serve(route, frontend))
        page.goto(host.url)
        wait_for_editor(page)
        if prompt is not None:
            load(page, prompt)
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    for context in contexts:
        context.close()
    ours = [fault for seen in faults for fault in seen.seen if "/extensions/ComfyUI-Guarded/" in fault]
    assert ours == []


def wait_for_editor(page: Page) -> None:
    page.wait_for_selector(OUR_TAB)
    # Its own first workflow comes last, and would take the place of ours.
    page.wait_for_function("window.app?.vueAppReady && window.app.graph?._nodes.length")


def load(page: Page, prompt: Prompt) -> None:
    for last in (False, False, True):  # the editor's own may come later still
        page.evaluate("prompt => window.app.loadApiJson(prompt, 'test')", prompt)
        with contextlib.suppress(*([] if last else [TimeoutError])):
            page.wait_for_function(
                # A second one of that name is "test (2)".
                "(({workflow}) => workflow.activeWorkflow?.filename.startsWith('test') && !workflow.isBusy)"
                "(window.app.extensionManager)",
                timeout=PATIENCE_MS / 3,
            )
            break
    page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")


def serve(route: Route, frontend: Path) -> None:
    """A file of the frontend where it has one of that name."""
    path = frontend / (urlsplit(route.request.url).path.lstrip("/") or "index.html")
    if path.is_file():
        route.fulfill(path=path)
    else:
        route.fallback()


def faces(photo: str, min_confidence: float = 0.5) -> Prompt:
    """Another confidence, another entry in ComfyUI's cache: what comes from there does not run, and shows nothing."""
    rules = {"min_faces": 1, "max_faces": 0, "min_face_fraction": 0.04, "detector": "auto"}
    checks = {"check_nan": True, "check_blank": True, "check_speckle": True, "check_frozen": False}
    return {
        "1": node("LoadImage", image=photo),
        "2": node("GuardedFaceCheck", image=["1", 0], min_confidence=min_confidence, **rules),
        "3": node("GuardedValidateImage", image=["2", 0], width=0, height=0, frames=0, on_fail="raise", **checks),
        "4": save("3"),
    }


def run(page: Page) -> None:
    """The button that everybody presses."""
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")):
        page.locator('[data-testid="queue-button"], .comfyui-queue-button button').first.click()


def open_tab(page: Page) -> Any:
    panel = page.locator(".g-panel")
    for last in (False, False, True):  # a click on an editor that is still loading may be lost
        if not panel.is_visible():
            page.locator(OUR_TAB).click()
        with contextlib.suppress(*([] if last else [AssertionError])):
            expect(panel).to_be_visible(timeout=PATIENCE_MS / 3)
            break
    return panel


def test_the_tab_shows_a_job_live_and_stops_it(editor: Callable[..., Page], bot: PlainClient) -> None:
    assert bot.post(json.dumps({"up_to": 2**53}).encode(), "/guarded/alarms/seen").json == {"unseen": 0}
    page = editor()
    panel = open_tab(page)
    expect(panel.get_by_text("Nothing is running.")).to_be_visible()
    job_id = bot.post(json.dumps({"prompt": sleep(600, steps=6000)}).encode()).json["prompt_id"]
    running = panel.locator(f'.g-running-card [data-job="{job_id}"]')
    expect(running).to_contain_text("/ 10:00")
    badge = page.locator(".g-badge")
    expect(badge).to_have_text("1")
    expect(badge).to_have_attribute("aria-label", "Guarded: 1 running, 0 waiting")
    shoot(page, f"editor-tab-{bot.host.kind.name}")
    stop = running.locator(".g-button")
    stop.click()
    stop.click()
    expect(panel.locator(f'.g-recent-card [data-job="{job_id}"]')).to_contain_text("Cancelled")
    expect(badge).to_have_text("0")


def test_a_prompt_queued_in_the_editor_goes_through_the_guard_and_shows_its_result(
    editor: Callable[..., Page], bot: PlainClient
) -> None:
    page = editor(prompt=faces("astronaut.png"))
    run(page)
    check = page.locator(".g-node figure").first
    expect(check.locator("rect")).to_have_count(1)
    expect(page.locator(".g-node p").first).to_have_text("Passed · 1 face")
    expect(page.locator(".g-node p")).to_have_count(2)
    # What SaveImage shows: the picture that was saved.
    page.wait_for_function(
        "window.app.graph._nodes.find(one => one.type === 'SaveImage').imgs?.[0]?.naturalWidth === 512"
    )
    job = bot.get("/guarded/jobs?limit=1").json["jobs"][0]
    assert job["state"] == "succeeded", job
    assert (job["owner"], [one["kind"] for one in job["artifacts"]]) == ("local", ["image"])
    # Neither the workflow's file nor the next prompt has the widget in it.
    values = page.evaluate(
        "window.app.graph.serialize().nodes.find(one => one.type === 'GuardedFaceCheck').widgets_values"
    )
    assert values == [1, 0, 0.5, 0.04, "auto"]
    open_tab(page)
    expect(page.locator(f'.g-recent-card [data-job="{job["job_id"]}"] img')).to_be_visible()
    shoot(page, f"editor-faces-{bot.host.kind.name}")


def test_a_timeout_is_told_in_a_notice_unless_that_is_off(editor: Callable[..., Page], bot: PlainClient) -> None:
    body = json.dumps({"prompt": sleep(600), "guard": {"timeout_s": 0.5}}).encode()
    page, quiet = editor(), editor({"Guarded.Toasts": False, "Guarded.Badge": False})
    expect(page.locator(".g-badge")).to_be_visible()
    open_tab(quiet)
    expect(quiet.locator(".g-badge")).to_be_hidden()
    expect(quiet.get_by_text("Live", exact=True)).to_be_visible()
    bot.post(body, "/guarded/prompt?wait=60")
    told = "A job ran past its deadline and was stopped."
    expect(page.get_by_text(told)).to_be_visible()
    expect(quiet.get_by_role("status", name="Alarms")).to_contain_text(told)
    assert quiet.locator(".p-toast-message").count() == 0


def test_from_elsewhere_the_editor_works_with_a_key_as_its_password(
    editor: Callable[..., Page], host: HostProcess, tmp_path: Path
) -> None:
    environment = {"GUARDED_NATIVE__MODE": "guarded", "GUARDED_ACCESS__TRUST_LOOPBACK": "false"}
    strangers = HostProcess(host.kind, tmp_path, environment=environment)
    put_photos(strangers.base)
    key = made_key(strangers)
    with strangers:
        page = editor(
            prompt=faces("astronaut.png"), host=strangers, http_credentials={"username": "any", "password": key}
        )
        run(page)
        expect(page.locator(".g-node p").first).to_have_text("Passed · 1 face")
        panel = open_tab(page)
        expect(panel.get_by_text("Live", exact=True)).to_be_visible()
        expect(panel.locator(".g-recent-card img")).to_be_visible()
        expect(panel.locator(".g-recent-card")).to_contain_text("key-operate")
        page.goto("about:blank")


def test_a_photo_without_a_face_shows_its_error(editor: Callable[..., Page], bot: PlainClient) -> None:
    page = editor(prompt=faces("chelsea.png"))
    run(page)
    page.get_by_role("button", name="View details").click()
    expect(page.get_by_text("No face found in chelsea.png.").first).to_be_visible()
    shoot(page, f"editor-no-face-{bot.host.kind.name}")


@pytest.mark.parametrize(
    ("language", "said"), [("en", "There is no face in this photo."), ("ru", "На этом фото нет лица.")]
)
def test_a_refused_photo_is_told_on_its_node_and_no_older_verdict_stays(
    editor: Callable[..., Page], bot: PlainClient, language: str, said: str
) -> None:
    seed = {"en": 0.55, "ru": 0.56}[language]  # another confidence: see `faces`
    rules = {"min_faces": 1, "max_faces": 0, "min_confidence": seed, "min_face_fraction": 0.04, "detector": "auto"}
    prompt = faces("astronaut.png", seed)
    prompt["1"] = node("GuardedLoadFaceImage", image="astronaut.png", **rules)
    page = editor({"Comfy.Locale": language}, prompt)
    run(page)
    verdicts = page.locator(".g-node p")
    expect(verdicts).to_have_count(3)
    page.evaluate("window.app.graph.getNodeById(1).widgets.find(one => one.name === 'image').value = 'chelsea.png'")
    run(page)
    expect(verdicts).to_have_count(1)
    expect(verdicts).to_have_attribute("data-verdict", "refused")
    expect(verdicts).to_contain_text("no_face")
    expect(page.locator(".g-node li")).to_have_text(said)
    assert page.evaluate("window.app.graph.getNodeById(1).widgets.some(one => one.element?.querySelector('li'))")
    shoot(page, f"editor-refused-{language}-{bot.host.kind.name}")


def expand_queue(page: Page, shows: str) -> None:
    """Open ComfyUI's Job Queue, which shows that text. A click is lost where the editor is still loading."""
    expand = page.get_by_role("button", name="Expand job queue")
    for last in (False, False, True):
        if expand.count() or not page.get_by_text(shows).count():
            expand.click()
        with contextlib.suppress(*([] if last else [AssertionError])):
            expect(page.get_by_text(shows)).to_be_visible(timeout=PATIENCE_MS / 3)
            return


def test_no_verdict_empties_the_editors_own_panels(editor: Callable[..., Page], bot: PlainClient) -> None:
    """One entry that does not fit its schema, and the editor shows none at all."""
    if bot.get("/api/jobs").status != 200:
        pytest.skip("the editor's panels ask this ComfyUI's history")
    good = bot.run(picture())
    codes = [
        _ended(bot, sleep(3600), timeout_s=0.5),
        _ended(bot, raises("value_error")),
        _ended(bot, {"1": node("FaultMissingFile", filename_prefix="m", seed=0)}),
        _ended(bot, {"1": node("FaultTruncatedImage", filename_prefix="t", seed=0)}),
        _cancelled(bot),
    ]
    assert codes == ["generation_timeout", "generation_failed", "result_missing", "result_corrupt", "cancelled"]
    page = editor()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    (file,) = good["artifacts"]
    expand_queue(page, file["filename"])
    for last in [False] * 100 + [True]:  # a cancelled one may still run, and is listed anew
        listed = bot.get("/api/jobs").json["jobs"]
        failed = [one for one in listed if one["status"] in ("failed", "cancelled")]
        shown = page.locator("span[title=Failed]").count()
        if shown == 2 * len(failed) >= 2 * len(codes) or last:  # its name and its state
            break
        page.wait_for_timeout(300)
    assert shown == 2 * len(failed) >= 2 * len(codes)
    page.locator(".assets-tab-button").click()
    expect(page.get_by_text(Path(file["filename"]).stem, exact=True)).to_be_visible()
    shoot(page, f"editor-panels-{bot.host.kind.name}")
    assert [line for line in said if "Jobs API" in line or "ZodError" in line] == []


def suits(frontend: Path, host: HostProcess) -> bool:
    """Whether ComfyUI of that age came with such a frontend: those before 1.28 ask the history, later ones its jobs."""
    old = tuple(map(int, frontend.parents[1].name.split(".")[:2])) < (1, 28)
    return host.kind == real_kinds()[-1 if old else 0]


@pytest.mark.parametrize("frontend", FRONTENDS or [pytest.param(None, marks=pytest.mark.skip(NO_FRONTENDS))])
def test_another_frontend_has_the_tab_and_whole_panels_too(
    editor: Callable[..., Page], bot: PlainClient, host: HostProcess, frontend: Path
) -> None:
    """Its files in place of those that the server has. The tab shows the jobs, and no list is rejected."""
    if not suits(frontend, host):
        pytest.skip("another ComfyUI came with this frontend")
    good = bot.run(picture())
    codes = [_ended(bot, sleep(3600), timeout_s=0.5), _ended(bot, raises("value_error")), _cancelled(bot)]
    assert codes == ["generation_timeout", "generation_failed", "cancelled"]
    page = editor(frontend=frontend)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    assert page.evaluate("window.__COMFYUI_FRONTEND_VERSION__") == frontend.parents[1].name
    panel = open_tab(page)
    expect(panel.locator(f'.g-recent-card [data-job="{good["job_id"]}"]')).to_be_visible()
    shoot(page, f"frontend-{frontend.parents[1].name}-tab")
    button, expand = page.locator(".queue-tab-button"), page.get_by_role("button", name="Expand job queue")
    button.or_(expand).first.wait_for()
    if button.count():
        button.click()
        expect(page.locator(".task-item, [data-testid='task-item']").first).to_be_visible()
    else:
        expand_queue(page, good["artifacts"][0]["filename"])
    shoot(page, f"frontend-{frontend.parents[1].name}-panel")
    assert [line for line in said if re.search("Jobs API|ZodError|Invalid TaskItem", line)] == []


@pytest.mark.parametrize("language", ["en", "ru"])
def test_in_the_sidebar_nothing_is_cut_off_or_broken_over_lines(
    editor: Callable[..., Page], bot: PlainClient, language: str
) -> None:
    """At the width that the sidebar has by itself."""
    name = f"avatar-bot-of-the-salon-{language}"
    key = {"Authorization": f"Bearer {bot.post(json.dumps({'name': name}).encode(), '/guarded/keys').json['secret']}"}
    for prompt in (picture(), text(), raises("value_error")):
        bot.post(json.dumps({"prompt": prompt}).encode(), "/guarded/prompt?wait=60", key)
    for _ in range(3):
        bot.post(json.dumps({"prompt": sleep(600)}).encode(), headers=key)
    page = editor({"Comfy.Locale": language})
    panel = open_tab(page)
    expect(panel.locator(".g-queue-card tbody tr")).to_have_count(2)
    expect(panel.locator(".g-recent-card .g-took:not(:empty)")).not_to_have_count(0)
    panel.locator(".g-recent-card").scroll_into_view_if_needed()
    shoot(page, f"editor-sidebar-{language}-{bot.host.kind.name}")
    assert panel.bounding_box()["width"] < 420
    faults = panel.evaluate(
        """panel => [...panel.querySelectorAll(
            ".g-name, .g-owner, .g-took, .g-when, .g-number, .g-verdict, .g-value, .g-axis > *, .g-select, .g-button")]
            .filter(one => one.checkVisibility() && one.textContent && one.closest("thead") === null)
            .map(one => {
                const box = one.getBoundingClientRect(), text = document.createRange()
                text.selectNodeContents(one)
                const lines = new Set([...text.getClientRects()].map(part => Math.round(part.top))).size
                const isBroken = one.matches(".g-took, .g-when, .g-number, .g-value, .g-axis > *") && lines > 1
                const isText = !one.matches(".g-select, .g-button")
                const isCut = isText && one.clientWidth && one.scrollWidth > one.clientWidth + 1
                const isOut = box.right > (one.closest(".g-card") ?? panel).getBoundingClientRect().right + 1
                return isBroken || isCut || isOut ? [one.className, one.textContent, box.width, box.height] : null
            })
            .filter(Boolean)"""
    )
    assert faults == []
    for row in panel.locator(".g-queue-card tbody tr").all():
        expect(row).to_contain_text(name)


def test_a_template_opens_with_a_photo_that_is_there_and_runs(editor: Callable[..., Page], bot: PlainClient) -> None:
    """As the template browser opens it: the loader has the first photo, since the server cannot have one of ours."""
    page = editor()
    page.evaluate(
        """async () => {
            const answer = await window.app.api.fetchApi("/workflow_templates/ComfyUI-Guarded/photo_check.json")
            await window.app.loadGraphData(await answer.json(), true, true, "photo_check")
        }"""
    )
    loader = page.wait_for_function("window.app.graph._nodes.find(one => one.type === 'LoadImage')")
    options, chosen = loader.evaluate("one => [one.widgets[0].options.values, one.widgets[0].value]")
    assert chosen in (options if isinstance(options, list) else ["astronaut.png"]), (options, chosen)
    page.evaluate("window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    shoot(page, f"editor-template-{bot.host.kind.name}")
    assert page.evaluate("window.app.graph._nodes.filter(one => one.has_errors).map(one => one.type)") == []
    run(page)
    job = bot.get("/guarded/jobs?limit=1").json["jobs"][0]
    while job["settled_at_ms"] is None:
        job = bot.get(f"/guarded/jobs/{job['job_id']}?wait=5").json
    assert job["state"] == "succeeded", job


def test_the_editor_says_what_the_janitor_would_delete_of_ones_own(
    editor: Callable[..., Page], bot: PlainClient, host: HostProcess
) -> None:
    mine = [host.base / "output" / name for name in ("mine one.png", "mine two.png")]
    for path in mine:
        path.write_bytes(b"x" * 4000)
        os.utime(path, (time.time() - 30 * 86400,) * 2)
    bot.post(b"", "/guarded/janitor/sweep?dry_run=1")  # they are counted every few minutes, and after this
    page = editor()
    told = page.locator(".p-toast-message").filter(has_text="were made by no job")
    expect(told).to_contain_text("2 old files (7.8 KB)")
    panel = open_tab(page)
    question = panel.locator(".g-native")
    expect(question).to_contain_text("2 old files (7.8 KB) were made by no job")
    shoot(page, f"editor-janitor-{bot.host.kind.name}")
    question.get_by_role("button", name="Keep them").press("Enter")
    expect(question).to_be_hidden()
    assert all(path.exists() for path in mine)
    again = editor()
    open_tab(again)
    expect(again.locator(".g-recent-card")).to_be_visible()
    expect(again.locator(".p-toast-message").filter(has_text="were made by no job")).to_have_count(0)


def _ended(bot: PlainClient, prompt: Prompt, **guard: Any) -> str:
    answer = bot.post(json.dumps({"prompt": prompt, "guard": guard}).encode(), "/guarded/prompt?wait=60")
    return str(answer.json["guard"]["job"]["error"]["code"])


def _cancelled(bot: PlainClient) -> str:
    job_id = bot.post(json.dumps({"prompt": sleep(3600)}).encode()).json["prompt_id"]
    return str(bot.delete(f"/guarded/jobs/{job_id}").json["error"]["code"])


def test_in_russian_the_tab_the_nodes_and_the_settings_are_so(editor: Callable[..., Page], bot: PlainClient) -> None:
    page = editor({"Comfy.Locale": "ru", "Comfy.ColorPalette": "light"}, faces("astronaut.png", 0.6))
    panel = open_tab(page)
    expect(panel.get_by_role("heading", name="Недавние")).to_be_visible()
    titles = page.evaluate("window.app.graph._nodes.map(one => one.title)")
    assert "Проверка лица (Guarded)" in titles, titles
    run(page)
    expect(page.locator(".g-node p").first).to_have_text("Проверка пройдена · 1 лицо")
    shoot(page, f"editor-russian-{bot.host.kind.name}")
    serious = [
        (fault["id"], [part["html"][:200] for part in fault["nodes"]])
        for fault in Axe().run(page, context=".g-panel").response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
    page.evaluate("window.app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    page.get_by_role("dialog").get_by_text("Guarded", exact=True).first.click()
    expect(page.get_by_text("Показывать в верхней панели, сколько заданий выполняется и ждет")).to_be_visible()
    shoot(page, f"editor-settings-{bot.host.kind.name}")


def test_the_page_answers_why_a_job_failed_and_retries_it(
    browser: Browser, host: HostProcess, bot: PlainClient
) -> None:
    failing = bot.run({**raises("value_error"), "3": node("EmptyImage", width=8, height=8, batch_size=1, color=0)})
    context = browser.new_context(locale="en", viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    faults = Faults(page)
    page.goto(host.url + "/guarded/")
    row = page.locator(f'.g-recent-card [data-job="{failing["job_id"]}"]')
    row.locator("summary").first.click()
    expect(row.locator("[data-failed]")).to_contain_text("FaultRaise")
    expect(row.locator(".g-inside")).to_contain_text("ValueError")
    row.get_by_role("button", name="Retry").click()
    row.get_by_text("Retried as").get_by_role("button").click()
    repeated = page.locator(".g-recent-card [data-job]")
    expect(repeated).to_have_count(1)
    expect(repeated).to_contain_text("Retry of")
    expect(repeated).to_contain_text("Failed")
    expect(page.locator('[data-series="cpu"] polyline')).to_have_attribute("points", re.compile(r"\d"))
    shoot(page, f"real-page-{host.kind.name.replace(' ', '-')}")
    context.close()
    assert faults.seen == []
