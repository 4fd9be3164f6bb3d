// Two small charts of the last day: how jobs ended, hour by hour, and how long they ran.

import { h, setText, svg } from "./dom.js";

const HEIGHT = 56;
const SLOT = 10;
const GAP = 2;
const OUTCOMES = ["succeeded", "cancelled", "failed"];

/** A picture with a scale beside it and marks of time below; `scale(top to bottom, left to right)` writes them. */
export function plot(picture) {
    const values = h("div", { class: "g-scale", "aria-hidden": "true" });
    const marks = h("div", { class: "g-axis", "aria-hidden": "true" });
    const write = (place, said) => {
        if (place.childElementCount !== said.length) place.replaceChildren(...said.map(() => h("span")));
        said.forEach((one, index) => setText(place.children[index], one));
    };
    return {
        element: h("div", { class: "g-plot" }, values, picture, marks),
        scale(down, along) {
            write(values, down);
            write(marks, along);
        },
    };
}

export function chartView(board, texts, section) {
    const outcomes = h("div", { class: "g-chart" });
    const times = h("div", { class: "g-chart g-chart-times" });
    const [outcomesPlot, timesPlot] = [plot(outcomes), plot(times)];
    const slowest = h("p", { class: "g-quiet" });
    const rows = h("tbody");
    const column = (key) => h("th", { scope: "col" }, texts.t(key));
    const table = h(
        "table",
        {},
        h("caption", {}, texts.t("chart")),
        h("thead", {}, h("tr", {}, column("column_hour"), ...OUTCOMES.map((one) => column(`state_${one}`)), column("average_run"))),
        rows,
    );
    const nothing = h("p", { class: "g-quiet" }, texts.t("nothing_ended"));
    const legend = h(
        "p",
        { class: "g-legend", "aria-hidden": "true" },
        ...OUTCOMES.map((one) => h("span", { "data-state": one }, texts.t(`state_${one}`))),
    );
    const { element, head } = section(
        "chart",
        texts.t("chart"),
        nothing,
        h("div", {}, outcomesPlot.element, h("h3", {}, texts.t("average_run")), timesPlot.element, slowest),
        h("div", { class: "g-hidden" }, table),
    );
    head.append(legend);
    let drawn = "";
    return {
        element,
        update() {
            const hours = board.stats?.chart ?? [];
            element.hidden = !hours.length;
            nothing.hidden = hours.some((hour) => OUTCOMES.some((one) => hour[one] > 0));
            nothing.nextElementSibling.hidden = legend.hidden = !nothing.hidden;
            const seen = JSON.stringify([hours, board.stats?.slowest]);
            if (!hours.length || seen === drawn) return;
            drawn = seen;
            outcomes.replaceChildren(outcomeBars(hours, texts));
            times.replaceChildren(timeBars(hours, texts));
            const marks = [0, 6, 12, 18].map((index) => texts.clock(hours[Math.floor((index * hours.length) / 24)].from_ms));
            outcomesPlot.scale([texts.number(mostOf(hours)), "0"], [...marks, texts.t("now")]);
            timesPlot.scale([texts.duration(longestOf(hours)), "0"], [...marks, texts.t("now")]);
            rows.replaceChildren(
                ...hours.map((hour) =>
                    h(
                        "tr",
                        {},
                        h("th", { scope: "row" }, texts.clock(hour.from_ms)),
                        ...OUTCOMES.map((one) => h("td", {}, String(hour[one]))),
                        h("td", {}, hour.average_run_s === null ? "–" : texts.duration(hour.average_run_s)),
                    ),
                ),
            );
            const named = (board.stats.slowest ?? []).filter((one) => one.template).slice(0, 3);
            slowest.hidden = !named.length;
            setText(
                slowest,
                `${texts.t("slowest")}: ${named.map((one) => `${one.template} ${texts.duration(one.median_run_s)}`).join(", ")}`,
            );
        },
    };
}

function frame(hours, ...children) {
    // Hidden from screen readers, which get the table.
    return svg(
        "svg",
        { viewBox: `0 0 ${hours.length * SLOT} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
        ...children,
    );
}

const mostOf = (hours) => Math.max(...hours.map((hour) => OUTCOMES.reduce((sum, one) => sum + hour[one], 0)), 1);
const longestOf = (hours) => Math.max(...hours.map((hour) => hour.average_run_s ?? 0), 0.001);

function outcomeBars(hours, texts) {
    const most = mostOf(hours);
    return frame(
        hours,
        ...hours.map((hour, index) => {
            let top = HEIGHT;
            const parts = OUTCOMES.filter((one) => hour[one] > 0).map((one) => {
                const height = (hour[one] / most) * HEIGHT;
                top -= height;
                return svg("rect", { x: index * SLOT + GAP / 2, y: top, width: SLOT - GAP, height, "data-state": one });
            });
            const said = OUTCOMES.map((one) => `${texts.t(`state_${one}`)}: ${hour[one]}`).join("\n");
            return svg("g", {}, ...parts, hover(index, `${texts.clock(hour.from_ms)}\n${said}`));
        }),
    );
}

function timeBars(hours, texts) {
    const longest = longestOf(hours);
    return frame(
        hours,
        ...hours.map((hour, index) => {
            const seconds = hour.average_run_s;
            if (seconds === null) return hover(index, texts.clock(hour.from_ms));
            const height = Math.max((seconds / longest) * HEIGHT, 1);
            return svg(
                "g",
                {},
                svg("rect", { x: index * SLOT + GAP / 2, y: HEIGHT - height, width: SLOT - GAP, height, "data-state": "time" }),
                hover(index, `${texts.clock(hour.from_ms)}\n${texts.duration(seconds)}`),
            );
        }),
    );
}

/** An hour's whole height shows its figures to a mouse. */
function hover(index, text) {
    return svg("rect", { x: index * SLOT, y: 0, width: SLOT, height: HEIGHT, class: "g-hover" }, svg("title", {}, text));
}
