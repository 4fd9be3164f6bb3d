// The boxes of a fleet: what each is, what it runs, and which of them are late, gone, draining or different.

import { showJob } from "./job_view.js";
import { Rows, h, setAttribute, setText } from "./dom.js";

export function fleetView(board, texts, section, run) {
    const list = h("ul", { class: "g-plain g-boxes" });
    const sum = h("p", { class: "g-quiet" });
    const { element } = section("fleet", texts.t("fleet"), sum, list);
    const rows = new Rows(
        list,
        (box) => box.box,
        (box) => boxRow(box, board, texts, run),
    );
    let boxes = [];

    return {
        element,
        update() {
            boxes = board.stats?.fleet ?? [];
            element.hidden = !boxes.length;
            const lives = boxes.filter((box) => box.state !== "gone");
            const slots = lives.reduce((count, box) => count + box.max_jobs, 0);
            const runs = lives.reduce((count, box) => count + box.runs.length, 0);
            setText(sum, `${texts.t("boxes", { count: lives.length })} · ${texts.t("running_of", { running: runs, max: slots })}`);
            return rows.update(boxes);
        },
        /** Once a second: clocks. */
        tick() {
            rows.update(boxes);
        },
    };
}

function boxRow(first, board, texts, run) {
    const name = first.url
        ? h("a", { class: "g-link", href: `${first.url}/guarded/`, target: "_blank", rel: "noreferrer" }, first.box)
        : h("span", { class: "g-name" }, first.box);
    const own = h("span", { class: "g-quiet" }, texts.t("box_this"));
    const state = h("span", { class: "g-box-state" });
    const card = h("span", {});
    const version = h("span", { class: "g-box-version" });
    const wrong = h("span", { class: "g-warning" });
    const slots = h("span", { class: "g-quiet" });
    const beat = h("span", { class: "g-quiet" });
    const idle = h("span", { class: "g-quiet" });
    const jobs = h("ul", { class: "g-plain" });
    const rows = new Rows(
        jobs,
        (job) => job.job_id,
        (job) => runRow(job, board, texts, run),
    );
    return {
        element: h(
            "li",
            { "data-box": first.box },
            h("div", { class: "g-box-name" }, name, own, state),
            h("div", { class: "g-box-what" }, card, version, wrong),
            h("div", { class: "g-box-runs" }, jobs, idle),
            h("div", { class: "g-box-when" }, slots, beat),
        ),
        update(box) {
            if (name.href !== undefined && box.url) setAttribute(name, "href", `${box.url}/guarded/`);
            own.hidden = !box.is_this;
            setAttribute(state, "data-state", box.state);
            setText(state, texts.known(`box_${box.state}`, box.state));
            setText(card, [box.gpu, box.gpu_bytes === null ? "" : texts.bytes(box.gpu_bytes)].filter(Boolean).join(", ") || texts.t("box_no_gpu"));
            version.hidden = !box.version;
            setText(version, box.version ?? "");
            setAttribute(version, "class", box.differs.includes("version") ? "g-box-version g-warning" : "g-box-version g-quiet");
            const problems = box.problems.filter((one) => one !== "draining").map((one) => texts.known(`problem_${one.replaceAll(" ", "_")}`, one));
            if (box.differs.includes("version")) problems.push(texts.t("box_version_differs"));
            if (box.differs.includes("settings")) problems.push(texts.t("box_settings_differ"));
            if (box.differs.includes("clock")) problems.push(texts.t("box_clock_differs", { time: texts.duration(Math.abs(box.clock_off_s)) }));
            wrong.hidden = !problems.length;
            setText(wrong, problems.join(" · "));
            rows.update(box.runs);
            idle.hidden = box.runs.length > 0;
            setText(idle, texts.t(box.state === "gone" ? "box_ran_on" : box.max_jobs ? "box_idle" : "box_accepts"));
            slots.hidden = !box.max_jobs;
            setText(slots, texts.t("box_slots", { used: box.runs.length, max: box.max_jobs }));
            setText(beat, texts.t("box_beat", { when: texts.ago((box.beat_at_ms - board.now()) / 1000) }));
        },
    };
}

function runRow(job, board, texts, run) {
    const since = h("span", { class: "g-quiet" });
    const name = job.template || job.job_id.slice(0, 8);
    return {
        element: h(
            "li",
            { class: "g-line", "data-job": job.job_id },
            h("button", { type: "button", class: "g-link", title: job.job_id, onclick: () => run(() => showJob(board, job.job_id)) }, name),
            h("span", { class: "g-owner" }, job.owner),
            since,
        ),
        update(latest) {
            setText(since, latest.since_ms === null ? "" : texts.timer((board.now() - latest.since_ms) / 1000));
        },
    };
}
