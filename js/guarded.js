// What ComfyUI's editor loads: the sidebar tab, the badge, the toasts, and what our nodes show of themselves. The other
// files here do nothing by being imported, since the editor imports every one of them.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { showOnNodes, showRefusals } from "./nodes.js";
import { alarmText } from "./panel/alarm_view.js";
import { Api } from "./panel/api.js";
import { Board } from "./panel/board.js";
import { h, setAttribute, setText, styled } from "./panel/dom.js";
import { asks, question } from "./panel/native_view.js";
import { mount } from "./panel/panel.js";
import { chosen, load } from "./panel/texts.js";

const TAB = "guarded";
const BADGE = "Guarded.Badge";
const TOASTS = "Guarded.Toasts";
const OPEN_PAGE = "Guarded.OpenPage";
const TOAST_MS = 8000;

const here = (file) => new URL(file, import.meta.url);
const openPage = () => window.open(api.fileURL("/guarded/"), "_blank", "noopener");
const setting = (id) => app.extensionManager.setting.get(id);

let badge = null;

app.registerExtension({
    name: "guarded",
    aboutPageBadges: [{ label: "ComfyUI-Guarded", url: api.fileURL("/guarded/"), icon: "pi pi-shield" }],
    settings: [
        {
            id: BADGE,
            name: "Show running and waiting jobs in the top bar",
            tooltip: "A click opens the sidebar tab.",
            category: ["Guarded", "Panel", "Badge"],
            type: "boolean",
            defaultValue: true,
            onChange: (shown) => badge && (badge.hidden = !shown),
        },
        {
            id: TOASTS,
            name: "Notify about timeouts, replaced workers and full disks",
            tooltip: "A short notice in the corner when it happens.",
            category: ["Guarded", "Panel", "Toasts"],
            type: "boolean",
            defaultValue: true,
        },
    ],
    commands: [{ id: OPEN_PAGE, label: "Open the guard's page", icon: "pi pi-shield", function: openPage }],
    menuCommands: [{ path: ["Guarded"], commands: [OPEN_PAGE] }],
    setup,
});

async function setup() {
    const language = chosen([setting("Comfy.Locale"), ...navigator.languages]);
    const texts = await load(language);
    const board = new Board(new Api(api.fileURL("/guarded"), { language }));
    styled(here("./panel/panel.css"));
    styled(here("./editor.css"));
    addTab(board, texts);
    addBadge(board, texts);
    showOnNodes(app, api, texts);
    showRefusals(app, api, texts);
    board.onAlarm((alarm) => {
        if (!setting(TOASTS)) return;
        const detail = alarmText(alarm, texts);
        app.extensionManager.toast.add({ severity: "warn", summary: texts.t("toast"), detail, life: TOAST_MS });
    });
    let asked = false;
    board.subscribe(() => {
        if (asked || !setting(TOASTS) || !asks(board.janitor?.native)) return;
        asked = true;
        app.extensionManager.toast.add({ severity: "warn", summary: texts.t("toast"), detail: question(board.janitor.native, texts) });
    });
    board.start();
}

function addTab(board, texts) {
    let unmount = () => {};
    app.extensionManager.registerSidebarTab({
        id: TAB,
        icon: "pi pi-shield",
        title: texts.t("sidebar"),
        tooltip: texts.t("sidebar_tooltip"),
        type: "custom",
        render(element) {
            const said = texts.t("open_page");
            const button = { type: "button", class: "g-button g-small", title: said, "aria-label": said };
            const page = h("button", { ...button, onclick: openPage }, "↗");
            unmount();
            unmount = mount(element, board, texts, { tools: [page] });
            element.classList.add("g-sidebar");
        },
        destroy() {
            unmount();
            unmount = () => {};
        },
    });
}

function addBadge(board, texts) {
    const count = h("span");
    const alarms = h("span", { class: "g-badge-alarms" });
    badge = h(
        "button",
        { type: "button", class: "g-badge", onclick: () => app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${TAB}`) },
        h("i", { class: "pi pi-shield", "aria-hidden": "true" }),
        count,
        alarms,
    );
    badge.hidden = !setting(BADGE);
    // Editors without the top bar have the tab.
    app.menu?.settingsGroup?.element?.before(badge);
    board.subscribe(() => {
        const running = board.running.length;
        const queued = Math.max(board.stats?.queue?.queued ?? 0, board.waiting.length);
        const trouble = board.link === "off" || board.ready?.ready === false;
        const unseen = board.unseen ? texts.t("badge_alarms", { count: board.unseen }) : "";
        const said = [texts.t(trouble ? "badge_not_ready" : "badge", { running, queued }), unseen].filter(Boolean).join(". ");
        setText(count, trouble ? "!" : queued ? `${running} + ${queued}` : String(running));
        alarms.hidden = !board.unseen;
        setText(alarms, board.unseen ? String(board.unseen) : "");
        setAttribute(badge, "data-trouble", trouble);
        setAttribute(badge, "title", said);
        setAttribute(badge, "aria-label", said);
        const tab = app.extensionManager.getSidebarTabs?.().find((one) => one.id === TAB);
        // The editor's own copy of the tab is reactive.
        if (tab) tab.iconBadge = trouble || board.unseen ? "!" : running + queued ? String(running + queued) : null;
    });
}
