// The five figures: success rate, run time, GPU, disk, queue.

import { h, setAttribute, setText } from "./dom.js";

const WINDOWS = ["1h", "24h", "7d"];

export function figuresView(board, texts) {
    const tile = (key) => {
        const value = h("dd", { class: "g-value" });
        const note = h("dd", { class: "g-note" });
        return { element: h("div", { class: "g-tile" }, h("dt", {}, texts.t(key)), value, note), value, note };
    };
    const tiles = Object.fromEntries(
        ["success_rate", "average_run", "gpu", "disk", "queue"].map((key) => [key, tile(key)]),
    );
    const buttons = WINDOWS.map((name) =>
        h(
            "button",
            {
                type: "button",
                class: "g-segment",
                onclick: () => {
                    board.window = name;
                    board.changed();
                },
            },
            texts.t(`window_${name}`),
        ),
    );
    const element = h(
        "section",
        { class: "g-figures", "aria-label": texts.t("figures") },
        h("div", { class: "g-segments", role: "group", "aria-label": texts.t("window") }, ...buttons),
        h("dl", { class: "g-tiles" }, ...Object.values(tiles).map((one) => one.element)),
    );
    const put = (key, value, note = "") => {
        tiles[key].element.hidden = value === null;
        setText(tiles[key].value, value ?? "");
        setText(tiles[key].note, note);
    };
    function update() {
        const stats = board.stats;
        element.hidden = !stats;
        if (!stats) return;
        buttons.forEach((button, index) => setAttribute(button, "aria-pressed", String(WINDOWS[index] === board.window)));
        const seen = stats.windows[board.window];
        const rate = seen.success_rate;
        put(
            "success_rate",
            rate === null ? "–" : texts.percent(rate),
            texts.t("of_jobs", { count: seen.succeeded + seen.failed, succeeded: seen.succeeded }),
        );
        put("average_run", seen.average_run_s === null ? "–" : texts.duration(seen.average_run_s), texts.t("per_job"));
        const gpu = stats.gpu;
        put(
            "gpu",
            gpu ? texts.percent(gpu.utilization_percent / 100) : null,
            gpu ? `${texts.bytes(gpu.vram_used_bytes)} / ${texts.bytes(gpu.vram_total_bytes)}` : "",
        );
        const output = stats.disk?.output;
        put(
            "disk",
            output ? texts.bytes(output.free_bytes) : null,
            output ? texts.t("free_of", { total: texts.bytes(output.total_bytes) }) : "",
        );
        const queue = stats.queue;
        put("queue", texts.number(queue.queued), texts.t("running_of", { running: queue.running, max: queue.max_jobs }));
    }
    return { element, update };
}
