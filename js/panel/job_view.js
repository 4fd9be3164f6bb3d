// One job: everything an operator is asked about it.

import { h } from "./dom.js";
import { settled } from "./board.js";

/** What opens below a recent job: everything an operator is asked about it. */
export function facts(job, board, texts) {
    const { node_id, node_type, exception_type, ...details } = job.error?.details ?? {};
    const pairs = [
        ["fact_job", h("code", {}, job.job_id)],
        ["fact_sent", texts.moment(job.created_at_ms)],
        job.started_at_ms && ["fact_waited", texts.duration((job.started_at_ms - job.created_at_ms) / 1000)],
        ["fact_attempts", String(job.attempts)],
        settled(job) && ["fact_refund", texts.t(job.refund ? "yes" : "no")],
        node_id != null && [
            "fact_node",
            [node_id, node_type].filter(Boolean).join(" · "),
        ],
        job.error && ["fact_code", h("code", {}, job.error.code)],
        job.error && ["fact_error", job.error.message],
        exception_type && ["fact_exception", h("code", {}, exception_type)],
        Object.keys(details).length > 0 && ["fact_details", h("pre", { tabindex: "0" }, JSON.stringify(details, null, 1))],
        job.idempotency_key && ["fact_idempotency_key", h("code", {}, job.idempotency_key)],
        job.parameters && ["fact_parameters", h("code", {}, JSON.stringify(job.parameters))],
        Object.keys(job.metadata ?? {}).length > 0 && ["fact_metadata", h("code", {}, JSON.stringify(job.metadata))],
    ].filter(Boolean);
    const list = h(
        "dl",
        {},
        ...pairs.flatMap(([key, value]) => [h("dt", {}, texts.t(key)), h("dd", {}, value)]),
    );
    const files = (job.artifacts ?? []).map((artifact) => {
        const size = [
            artifact.width && `${artifact.width} × ${artifact.height}`,
            artifact.duration_s && texts.duration(artifact.duration_s),
            texts.bytes(artifact.bytes),
        ];
        return h(
            "li",
            {},
            h(
                "button",
                { type: "button", class: "g-link", onclick: () => openFile(board.api, job, artifact) },
                artifact.filename,
            ),
            ` ${size.filter(Boolean).join(", ")}`,
            ...artifact.warnings.map((warning) => h("span", { class: "g-warning" }, ` ${warning}`)),
        );
    });
    return [list, ...(files.length ? [h("ul", { class: "g-files" }, ...files)] : [])];
}

/** In a tab of its own. The tab is opened at the click, before the bytes are there: browsers want it so. */
async function openFile(api, job, artifact) {
    const opened = window.open("about:blank", "_blank");
    if (!opened) return;
    opened.opener = null;
    try {
        opened.location = await api.openable(job, artifact.index);
    } catch (error) {
        opened.document.body.textContent = error.message;
    }
}
