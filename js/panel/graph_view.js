// A job's graph as a list of its nodes in the order in which they can run: it reads the same with five and with 400.

import { h, setText } from "./dom.js";

/** A longer value of an input is cut. */
const VALUE_CHARS = 160;

export const isLink = (value) =>
    Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && ["number", "boolean"].includes(typeof value[1]);

/** The ids of the nodes, each after those that feed it; as they came where that leaves a choice. */
export function inOrder(prompt) {
    const waits = new Map();
    const feeds = new Map();
    for (const [id, node] of Object.entries(prompt)) {
        const from = new Set(Object.values(node.inputs ?? {}).filter(isLink).map(([source]) => source).filter((source) => source in prompt));
        waits.set(id, from.size);
        for (const source of from) feeds.set(source, [...(feeds.get(source) ?? []), id]);
    }
    const order = [...waits.keys()].filter((id) => !waits.get(id));
    for (const id of order) {
        for (const fed of feeds.get(id) ?? []) {
            waits.set(fed, waits.get(fed) - 1);
            if (!waits.get(fed)) order.push(fed);
        }
    }
    return order;
}

/** What opens below a job. A failed one's is there at once, with the node that failed in sight. */
export function graphView(job, board, texts) {
    const failed = job.state === "failed" ? job.error?.details?.node_id : null;
    const count = h("span", { class: "g-count" });
    const place = h("div", {});
    let asked = false;
    const look = async () => {
        if (asked) return;
        asked = true;
        try {
            const { prompt } = await board.api.get(`/jobs/${encodeURIComponent(job.job_id)}/prompt`);
            setText(count, texts.number(Object.keys(prompt).length));
            place.replaceChildren(nodeList(prompt, failed == null ? null : String(failed), texts));
            showFailed(place);
        } catch (error) {
            asked = error.status === 410;
            const gone_at_ms = error.body?.error?.extra_info?.gone_at_ms;
            const gone = gone_at_ms ? texts.t("graph_gone_since", { when: texts.moment(gone_at_ms) }) : texts.t("graph_gone");
            place.replaceChildren(h("p", { class: "g-quiet" }, error.status === 410 ? gone : texts.t("refused", { message: error.message })));
        }
    };
    const details = h(
        "details",
        { class: "g-more g-graph", open: job.state === "failed", ontoggle: () => details.open && look() },
        h("summary", {}, texts.t("graph"), count),
        place,
    );
    return details;
}

function nodeList(prompt, failed, texts) {
    const rows = new Map();
    const title = (id) => prompt[id]._meta?.title || prompt[id].class_type;
    const input = ([name, value]) => {
        if (!isLink(value) || !(value[0] in prompt)) {
            const said = typeof value === "string" ? value : JSON.stringify(value);
            return [h("dt", {}, name), h("dd", {}, h("code", {}, said.length > VALUE_CHARS ? `${said.slice(0, VALUE_CHARS)}…` : said))];
        }
        const go = () => {
            rows.get(value[0]).focus();
            rows.get(value[0]).scrollIntoView({ block: "nearest" });
        };
        return [h("dt", {}, name), h("dd", {}, "← ", h("button", { type: "button", class: "g-link", onclick: go }, `${value[0]} · ${title(value[0])}`))];
    };
    for (const id of inOrder(prompt)) {
        const node = prompt[id];
        const inputs = Object.entries(node.inputs ?? {});
        rows.set(
            id,
            h(
                "li",
                { tabindex: "-1", "data-node": id, "data-failed": id === failed },
                h(
                    "div",
                    { class: "g-line" },
                    h("b", { class: "g-name" }, `${id} · ${title(id)}`),
                    title(id) === node.class_type ? null : h("code", { class: "g-quiet" }, node.class_type),
                    id === failed ? h("b", { class: "g-bad" }, texts.t("failed_here")) : null,
                ),
                inputs.length ? h("dl", {}, ...inputs.flatMap(input)) : null,
            ),
        );
    }
    return h("ol", { class: "g-plain g-nodes", tabindex: "0", "aria-label": texts.t("graph") }, ...rows.values());
}

function showFailed(place) {
    const list = place.firstElementChild;
    const row = list.querySelector("[data-failed]");
    if (row) list.scrollTop = row.offsetTop - list.offsetTop - list.clientHeight / 3;
}
