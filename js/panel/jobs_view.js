// The open jobs: what runs, what waits.

import { showJob } from "./job_view.js";
import { Rows, confirmed, h, setAttribute, setText } from "./dom.js";

/** Rows of the queue that are drawn; the rest is a number. */
const WAITING_AT_MOST = 200;
/** Of its time, from here on a job is about to run into its deadline. */
const CLOSE = 0.8;

export const short = (job) => job.job_id.slice(0, 8);

export function named(job) {
    return job.template || short(job);
}

function meter(name, title) {
    const bar = h("span", { class: "g-bar-fill" });
    const label = h("span", { class: "g-meter-text" });
    const element = h(
        "div",
        { class: "g-meter", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": title, title },
        h("span", { class: "g-meter-name" }, name),
        h("span", { class: "g-bar" }, bar),
        label,
    );
    return {
        element,
        update(share, said) {
            const percent = Math.round(Math.min(Math.max(share ?? 0, 0), 1) * 100);
            bar.style.width = `${percent}%`;
            setAttribute(element, "aria-valuenow", share === null ? null : percent);
            setAttribute(element, "aria-valuetext", said);
            setText(label, said);
        },
    };
}

// What runs. --------------------------------------------------------------------------------------------------------

export function runningView(board, texts, run) {
    const list = h("ul", { class: "g-plain" });
    const nothing = h("p", { class: "g-quiet" }, texts.t("nothing_runs"));
    const rows = new Rows(
        list,
        (job) => job.job_id,
        (job) => runningRow(job, board, texts, run),
    );
    let jobs = [];
    return {
        element: section("running", texts.t("running"), nothing, list).element,
        update() {
            jobs = board.running;
            rows.update(jobs);
            nothing.hidden = jobs.length > 0;
        },
        /** Once a second: clocks. */
        tick() {
            rows.update(jobs);
        },
    };
}

function runningRow(first, board, texts, run) {
    let job = first;
    const name = h("button", { type: "button", class: "g-name g-opens", onclick: () => run(() => showJob(board, job.job_id)) });
    const owner = h("span", { class: "g-owner" });
    const step = h("span", { class: "g-step" });
    const graph = meter(texts.t("graph"), texts.t("graph_progress"));
    const time = meter(texts.t("time"), texts.t("time_used"));
    const stop = confirmed(texts.t("stop"), texts.t("stop_really"), () => run(() => board.cancel(job)), {
        "aria-label": `${texts.t("stop")} ${short(first)}`,
    });
    return {
        element: h(
            "li",
            { class: "g-running", "data-job": first.job_id },
            h("div", { class: "g-line" }, name, owner, stop),
            step,
            graph.element,
            time.element,
        ),
        update(latest) {
            job = latest;
            setText(name, named(job));
            setAttribute(name, "title", job.job_id);
            setText(owner, job.owner);
            const at = job.progress;
            const node = at ? at.node_title || (at.node_id ? texts.t("node", { id: at.node_id }) : "") : "";
            setText(step, job.state === "validating" ? texts.t("state_validating") : node || texts.t("state_running"));
            const share = at ? at.percent / 100 : null;
            graph.update(share, share === null ? "–" : texts.percent(share));
            const elapsed_s = (board.now() - job.started_at_ms) / 1000;
            const used = elapsed_s / job.timeout_s;
            time.update(used, `${texts.timer(elapsed_s)} / ${texts.timer(job.timeout_s)}`);
            time.element.classList.toggle("g-close", used >= CLOSE);
        },
    };
}

// What waits. -------------------------------------------------------------------------------------------------------

export function queueView(board, texts, run) {
    const body = h("tbody");
    const chosen = new Set();
    const rows = new Rows(
        body,
        (job) => job.job_id,
        (job) => queueRow(job, board, texts, run, chosen, () => showMany()),
    );
    const { element: many, update: updateMany } = cancelMany(board, texts, run, chosen);
    const showMany = () => updateMany(jobs);
    const column = (key, attributes) => h("th", { scope: "col", ...attributes }, texts.t(key));
    const table = h(
        "table",
        { class: "g-table" },
        h("caption", { class: "g-hidden" }, texts.t("queue")),
        h(
            "thead",
            {},
            h(
                "tr",
                {},
                h("th", { scope: "col" }, h("span", { class: "g-hidden" }, texts.t("select"))),
                column("column_position", { class: "g-number" }),
                column("column_job"),
                column("column_owner"),
                column("column_waits", { class: "g-number" }),
                column("column_starts", { class: "g-number" }),
                h("th", { scope: "col" }, h("span", { class: "g-hidden" }, texts.t("cancel"))),
            ),
        ),
        body,
    );
    const scrolled = h("div", { class: "g-scrolled", tabindex: "0", role: "group", "aria-label": texts.t("queue") }, table);
    const nothing = h("p", { class: "g-quiet" }, texts.t("nothing_waits"));
    const more = h("p", { class: "g-quiet" });
    const count = h("span", { class: "g-count" });
    let jobs = [];
    const view = section("queue", texts.t("queue"), nothing, scrolled, more, many);
    view.heading.append(count);
    return {
        element: view.element,
        update() {
            const all = board.waiting;
            jobs = all.slice(0, WAITING_AT_MOST);
            const unfinished = rows.update(jobs);
            const total = Math.max(board.stats?.queue?.queued ?? 0, all.length);
            setText(count, total ? texts.number(total) : "");
            nothing.hidden = total > 0;
            scrolled.hidden = jobs.length === 0;
            more.hidden = total <= jobs.length;
            setText(more, texts.t("and_more", { count: total - jobs.length }));
            showMany();
            return unfinished;
        },
        /** Only what can be seen: two hundred clocks a second would be a page's whole work. */
        tick() {
            if (scrolled.hidden || !jobs.length) return;
            const height = body.offsetHeight / jobs.length;
            const first = Math.floor(scrolled.scrollTop / height);
            const count = Math.ceil(scrolled.clientHeight / height);
            for (const job of jobs.slice(first, first + count)) rows.rows.get(job.job_id)?.update(job);
        },
    };
}

/** Cancel those that are marked, or all of one owner, whatever state they are in. */
function cancelMany(board, texts, run, chosen) {
    const said = h("span", { role: "status", class: "g-quiet" });
    const cancel = (which) =>
        run(async () => {
            const count = await board.cancelMany(which());
            setText(said, texts.t("cancelled_many", { count }));
        });
    const count = h("span", { class: "g-count" });
    const marked = confirmed(texts.t("cancel_marked"), texts.t("cancel_many_really"), () => cancel(() => ({ job_ids: [...chosen] })));
    const owner = h("select", { class: "g-select", "aria-label": texts.t("column_owner") });
    const all = confirmed(texts.t("cancel_all_of"), texts.t("cancel_many_really"), () => cancel(() => ({ owner: owner.value })));
    const ofOwner = h("span", { class: "g-line" }, all, owner);
    const ofMarked = h("span", { class: "g-line" }, marked, count);
    const element = h("div", { class: "g-more g-many" }, ofMarked, ofOwner, said);
    let listed = "";
    return {
        element,
        update(jobs) {
            const open = new Set(jobs.map((job) => job.job_id));
            for (const job_id of chosen) if (!open.has(job_id)) chosen.delete(job_id);
            ofMarked.hidden = !chosen.size;
            setText(count, texts.number(chosen.size));
            const owners = [...new Set([...board.open.values()].map((job) => job.owner))].sort();
            ofOwner.hidden = !owners.length;
            element.hidden = ofMarked.hidden && ofOwner.hidden && !said.textContent;
            const seen = JSON.stringify(owners);
            if (seen === listed) return;
            listed = seen;
            const before = owner.value;
            owner.replaceChildren(...owners.map((name) => h("option", { value: name }, name)));
            if (owners.includes(before)) owner.value = before;
        },
    };
}

function queueRow(first, board, texts, run, chosen, marked) {
    let job = first;
    const mark = h("input", {
        type: "checkbox",
        "aria-label": `${texts.t("select")} ${short(first)}`,
        onchange: () => {
            if (mark.checked) chosen.add(job.job_id);
            else chosen.delete(job.job_id);
            marked();
        },
    });
    const cell = (attributes) => h("td", attributes);
    const [position, waits, starts] = [1, 2, 3].map(() => cell({ class: "g-number" }));
    const name = h("button", { type: "button", class: "g-name g-opens", onclick: () => run(() => showJob(board, job.job_id)) });
    const owner = cell({ class: "g-owner" });
    const cancel = confirmed("×", texts.t("cancel_really"), () => run(() => board.cancel(job)), {
        class: "g-button g-small",
        "aria-label": `${texts.t("cancel")} ${short(first)}`,
        title: texts.t("cancel"),
    });
    return {
        element: h(
            "tr",
            { "data-job": first.job_id },
            h("td", { class: "g-mark" }, mark),
            position,
            h("td", {}, name),
            owner,
            waits,
            starts,
            h("td", { class: "g-act" }, cancel),
        ),
        update(latest) {
            job = latest;
            setText(position, job.state === "dispatched" ? texts.t("next") : job.position ? String(job.position) : "–");
            setText(name, named(job));
            setAttribute(name, "title", job.job_id);
            setText(owner, job.owner);
            setText(waits, texts.timer((board.now() - job.created_at_ms) / 1000));
            setText(starts, job.eta_s == null ? "–" : `~ ${texts.timer(job.eta_s)}`);
        },
    };
}

// What all sections share. ------------------------------------------------------------------------------------------

export function section(name, title, ...children) {
    const heading = h("h2", { id: `g-${name}` }, title);
    const head = h("div", { class: "g-head" }, heading);
    const element = h("section", { class: `g-card g-${name}-card`, "aria-labelledby": `g-${name}` }, head, ...children);
    return { element, head, heading };
}
