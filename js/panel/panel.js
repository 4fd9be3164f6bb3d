// The operator's view of the guard, behind both the page at /guarded/ and the sidebar tab in ComfyUI's editor.

import { alarmView } from "./alarm_view.js";
import { h, setAttribute, setText } from "./dom.js";
import { chartView } from "./chart.js";
import { figuresView } from "./figures.js";
import { failuresView } from "./failures_view.js";
import { fleetView } from "./fleet_view.js";
import { queueView, runningView, section } from "./jobs_view.js";
import { keysView } from "./keys_view.js";
import { linesView } from "./lines_view.js";
import { modelsView } from "./models_view.js";
import { nativeView } from "./native_view.js";
import { recentView } from "./recent_view.js";
import { diskView, serverView } from "./server_view.js";
import { spendingView } from "./spending_view.js";

const TICK_MS = 1000;

/**
 * Fill `root` and keep it up to date; the board is the caller's to start and stop.
 *
 * `heading` is the level-one title's text, empty where the surroundings have one. The answer ends it.
 */
export function mount(root, board, texts, { heading = "", tools = [] } = {}) {
    const refusal = h("p", { class: "g-refusal", role: "alert" });
    const run = async (act) => {
        setText(refusal, "");
        try {
            await act();
        } catch (error) {
            setText(refusal, texts.t("refused", { message: error.message }));
        }
    };
    const state = h("span", { class: "g-pill", role: "status" });
    const link = h("span", { class: "g-live" });
    const views = [
        alarmView(board, texts, run),
        nativeView(board, texts, run),
        figuresView(board, texts),
        fleetView(board, texts, section, run),
        failuresView(board, texts, section, run),
        runningView(board, texts, run),
        queueView(board, texts, run),
        recentView(board, texts, run),
        chartView(board, texts, section),
        linesView(board, texts, section),
        diskView(board, texts, section, run),
        serverView(board, texts, section, run),
        keysView(board, texts, section, run),
        spendingView(board, texts, section, run),
        modelsView(board, texts, section, run),
    ];
    const [alarms, native, figures, fleet, failures, running, queue, recent, ...house] = views.map((view) => view.element);
    const panel = h(
        "div",
        { class: "g-panel", lang: texts.language },
        h("header", { class: "g-header" }, heading ? h("h1", {}, heading) : null, state, link, ...tools),
        refusal,
        alarms,
        native,
        figures,
        fleet,
        failures,
        h("div", { class: "g-columns" }, h("div", {}, running, queue, recent), h("div", {}, ...house)),
    );
    root.replaceChildren(panel);

    const update = () => {
        setAttribute(link, "data-link", board.link);
        setText(link, texts.t(`link_${board.link}`));
        const ready = board.ready;
        state.hidden = !ready;
        setAttribute(state, "data-ready", ready?.ready ? "yes" : "no");
        const why = ready?.problems.map((one) => texts.known(`problem_${one.replace(" ", "_")}`, one)) ?? [];
        setText(state, [texts.t(ready?.ready ? "ready" : "not_ready"), why.join(", ")].filter(Boolean).join(": "));
        // One after the other, and all of them: a view that has more to make says so.
        const unfinished = views.map((view) => view.update()).includes(true);
        if (unfinished) board.changed();
    };
    const unsubscribe = board.subscribe(update);
    const timer = setInterval(() => {
        if (document.hidden) return;
        for (const view of views) view.tick?.();
    }, TICK_MS);
    update();
    return () => {
        unsubscribe();
        clearInterval(timer);
        for (const view of views) view.destroy?.();
        root.replaceChildren();
    };
}
