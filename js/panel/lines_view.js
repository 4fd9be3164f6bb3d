// How busy the machine was over the last hour, as lines.

import { h, setText, svg } from "./dom.js";
import { plot } from "./chart.js";

const WIDTH = 360;
const HEIGHT = 40;
/** The first that covers what there is: lines would begin as dots. */
const SPANS_MS = [600e3, 1800e3, 3600e3];
const MARKS = [1, 0.75, 0.5, 0.25, 0];

export function linesView(board, texts, section) {
    const percent = (value) => texts.percent(value / 100);
    const celsius = (value) => `${texts.number(value)} °C`;
    const series = [
        { name: "cpu", key: "cpu_percent", most: () => 100, say: percent },
        { name: "ram", key: "ram_used_bytes", most: (machine) => machine.ram_total_bytes, say: (value) => texts.bytes(value) },
        { name: "gpu", key: "gpu_percent", most: () => 100, say: percent },
        { name: "vram", key: "vram_used_bytes", most: (machine) => machine.vram_total_bytes, say: (value) => texts.bytes(value) },
        { name: "temperature", key: "gpu_celsius", most: () => 100, say: celsius },
    ].map((one) => ({ ...one, ...line(one) }));
    const { element } = section("lines", texts.t("load"), ...series.map((one) => one.element));
    let drawn = 0;

    function line({ name }) {
        const now = h("b", {});
        const path = svg("polyline", { points: "" });
        const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, path);
        const place = plot(h("div", { class: "g-chart g-line-chart" }, picture));
        const element = h("div", { class: "g-series", "data-series": name }, h("h3", {}, `${texts.t(`line_${name}`)} `, now), place.element);
        return { element, now, path, picture, place };
    }

    return {
        element,
        update() {
            const machine = board.machine;
            const last = machine?.samples.at(-1);
            element.hidden = !last;
            if (!last || last.at_ms === drawn) return;
            drawn = last.at_ms;
            const span_ms = SPANS_MS.find((one) => last.at_ms - machine.samples[0].at_ms <= one) ?? SPANS_MS.at(-1);
            for (const { key, most, say, element, now, path, picture, place } of series) {
                const seen = machine.samples.filter((sample) => sample[key] !== null);
                element.hidden = !seen.length;
                if (!seen.length) continue;
                const top = most(machine) || Math.max(...seen.map((sample) => sample[key]), 1);
                const x = (sample) => (WIDTH * (1 - (last.at_ms - sample.at_ms) / span_ms)).toFixed(1);
                const y = (sample) => (HEIGHT * (1 - Math.min(sample[key] / top, 1))).toFixed(1);
                path.setAttribute("points", seen.map((sample) => `${x(sample)},${y(sample)}`).join(" "));
                const values = seen.map((sample) => sample[key]);
                setText(now, say(values.at(-1)));
                // Of the line a screen reader gets its ends.
                picture.setAttribute("aria-label", texts.t("line_said", { least: say(Math.min(...values)), most: say(Math.max(...values)) }));
                place.scale([say(top), say(0)], MARKS.map((share) => (share ? texts.clock(last.at_ms - share * span_ms) : texts.t("now"))));
            }
        },
    };
}
