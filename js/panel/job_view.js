// One job: everything an operator is asked about it.

import { h } from "./dom.js";
import { settled } from "./board.js";
import { graphView } from "./graph_view.js";

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
        job.retry_of && ["fact_retry_of", jobLink(job.retry_of, board)],
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
    const way = h("div", { class: "g-way" });
    showWay(way, job, board, texts).catch((error) => way.replaceChildren(error.message));
    return [list, ...(files.length ? [h("ul", { class: "g-files" }, ...files)] : []), way, graphView(job, board, texts)];
}

/** A job's short id; a click shows that job. */
export function jobLink(job_id, board) {
    const show = () => showJob(board, job_id).catch(() => board.changed());
    return h("button", { type: "button", class: "g-link", onclick: show }, h("code", {}, job_id.slice(0, 8)));
}

/** A button that makes a new job like this one, or a link to the one that was made. */
function retryRow(job, retried_as, board, texts) {
    const said = h("span", { role: "status" });
    const row = h("p", { class: "g-more g-retry" }, said);
    if (retried_as) {
        said.append(`${texts.t("retried_as")} `, jobLink(retried_as, board));
        return row;
    }
    const retry = h(
        "button",
        {
            type: "button",
            class: "g-button",
            title: texts.t("retry_help"),
            onclick: async () => {
                retry.disabled = true;
                try {
                    const made = await board.api.ask("POST", `/jobs/${encodeURIComponent(job.job_id)}/retry`);
                    board.apply(made);
                    said.replaceChildren(`${texts.t("retried_as")} `, jobLink(made.job_id, board));
                    said.lastChild.focus();
                    retry.remove();
                } catch (error) {
                    retry.disabled = false;
                    const gone = error.status === 410;
                    retry.hidden = gone;
                    said.textContent = gone ? texts.t("retry_gone") : texts.t("refused", { message: error.message });
                }
            },
        },
        texts.t("retry"),
    );
    row.prepend(retry, " ");
    return row;
}

/** The states with their times, and the webhooks, each of which can be sent again. */
async function showWay(place, job, board, texts) {
    const { states, webhooks, retried_as } = await board.api.get(`/jobs/${encodeURIComponent(job.job_id)}/way`);
    const began_ms = states[0]?.at_ms;
    const steps = states.map(({ state, at_ms }) =>
        h(
            "li",
            {},
            h("time", { class: "g-quiet", datetime: new Date(at_ms).toISOString(), title: texts.moment(at_ms) }, `+ ${texts.timer((at_ms - began_ms) / 1000)}`),
            ` ${texts.known(`state_${state}`, state)}`,
        ),
    );
    place.replaceChildren(
        ...(retried_as || ["failed", "cancelled"].includes(job.state) ? [retryRow(job, retried_as, board, texts)] : []),
        h("h3", {}, texts.t("way")),
        h("ol", { class: "g-plain g-steps", "aria-label": texts.t("way") }, ...steps),
        ...(webhooks.length
            ? [h("h3", {}, texts.t("webhooks")), h("ul", { class: "g-plain", "aria-label": texts.t("webhooks") }, ...webhooks.map((one) => webhookRow(one, board, texts)))]
            : []),
    );
}

/** One webhook: what became of it, and a button that sends it again. */
export function webhookRow(first, board, texts, ...more) {
    const said = h("span", { role: "status" });
    const show = (one) => {
        const why = [one.last_status && `HTTP ${one.last_status}`, one.last_error].filter(Boolean).join(": ");
        said.replaceChildren(
            h("b", { class: one.state === "dead" ? "g-bad" : "" }, texts.known(`webhook_${one.state}`, one.state)),
            ` ${one.type} → `,
            h("code", {}, one.url),
            ` · ${texts.t("attempts", { count: one.attempts })}`,
            why ? ` · ${why}` : "",
        );
    };
    show(first);
    const resend = h(
        "button",
        {
            type: "button",
            class: "g-button g-small",
            onclick: async () => {
                resend.disabled = true;
                try {
                    show(await board.api.ask("POST", `/webhooks/${encodeURIComponent(first.id)}/redeliver`));
                } catch (error) {
                    said.append(` ${texts.t("refused", { message: error.message })}`);
                } finally {
                    resend.disabled = false;
                }
            },
        },
        texts.t("resend"),
    );
    return h("li", { class: "g-webhook", "data-webhook": first.id }, said, h("span", { class: "g-acts" }, ...more, resend));
}

/** The one job, opened, in the list below the queue: also one that waits or runs. */
export async function showJob(board, job_id) {
    await board.only({ text: job_id });
    document.getElementById("g-recent")?.scrollIntoView({ block: "start" });
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
