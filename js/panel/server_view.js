// The machine below the jobs: disks and the janitor, the worker, webhooks and alarms, what the doctor says.

import { alarmHistory } from "./alarm_view.js";
import { showJob, webhookRow } from "./job_view.js";
import { nativeLine } from "./native_view.js";
import { Rows, confirmed, h, setAttribute, setText } from "./dom.js";

const LEVELS = ["error", "warning", "ok"];
const ROOTS = ["output", "temp", "input"];

// Disks. ------------------------------------------------------------------------------------------------------------

export function diskView(board, texts, section, run) {
    const column = (key, attributes) => h("th", { scope: "col", ...attributes }, texts.t(key));
    const body = h("tbody");
    const rows = new Rows(
        body,
        (root) => root.name,
        (root) => diskRow(root, texts),
    );
    const table = h(
        "table",
        { class: "g-table" },
        h("caption", { class: "g-hidden" }, texts.t("disk")),
        h(
            "thead",
            {},
            h(
                "tr",
                {},
                column("column_folder"),
                column("column_files", { class: "g-number" }),
                column("column_size", { class: "g-number" }),
                column("column_would_free", { class: "g-number" }),
            ),
        ),
        body,
    );
    const free = h("p", { class: "g-quiet" });
    const database = h("p", { class: "g-quiet" });
    const next = h("p", { class: "g-quiet" });
    const told = h("div", { class: "g-told", role: "status" });
    const look = h(
        "button",
        { type: "button", class: "g-button", onclick: () => run(() => sweep(true)) },
        texts.t("sweep_look"),
    );
    const native = nativeLine(board, texts, run);
    const view = section("disk", texts.t("disk"), table, free, database, native.element, next, h("p", { class: "g-more" }, look), told);

    async function sweep(dry_run) {
        look.disabled = true;
        setText(told, texts.t("sweeping"));
        try {
            const report = await board.api.ask("POST", `/janitor/sweep?dry_run=${dry_run ? 1 : 0}`);
            told.replaceChildren(...(report.deleted ? outcome(report) : [texts.t("sweep_goes_on")]));
            // The button that was pressed has gone; what follows it is the place to be.
            told.querySelector("button")?.focus();
        } catch (error) {
            setText(told, "");
            throw error;
        } finally {
            look.disabled = false;
        }
        await board.figures();
    }

    function outcome(report) {
        const facts = { count: report.files, size: texts.bytes(report.bytes) };
        const done = report.dry_run ? "would_delete" : "was_deleted";
        const said = [h("p", {}, report.files ? texts.t(done, facts) : texts.t("nothing_to_delete"))];
        const folders = Object.entries(report.deleted)
            .filter(([, one]) => one.files)
            .map(([name, one]) => `${texts.known(`root_${name}`, name)}: ${texts.number(one.files)} (${texts.bytes(one.bytes)})`);
        if (folders.length) said.push(h("p", { class: "g-quiet" }, folders.join(" · ")));
        if (report.errors) said.push(h("p", { class: "g-warning" }, texts.t("sweep_errors", { count: report.errors })));
        if (report.dry_run && report.files) {
            said.push(
                confirmed(texts.t("sweep_now", facts), texts.t("sweep_really"), () => run(() => sweep(false)), {
                    class: "g-button g-danger",
                }),
            );
        }
        if (report.kept?.native?.files) said.push(h("p", { class: "g-quiet" }, texts.t("native_kept")));
        const existing = report.kept?.existing;
        if (existing?.files && !board.janitor?.adopted) {
            const old = { count: existing.files, size: texts.bytes(existing.bytes) };
            said.push(
                h("p", { class: "g-quiet" }, texts.t("existing", old)),
                confirmed(texts.t("adopt"), texts.t("adopt_really"), () =>
                    run(async () => {
                        await board.api.ask("POST", "/janitor/adopt");
                        await sweep(true);
                    }),
                ),
            );
        }
        return said;
    }

    return {
        element: view.element,
        update() {
            const disk = board.stats?.disk;
            const janitor = board.janitor;
            view.element.hidden = !disk && !janitor;
            rows.update(disk ? ROOTS.filter((name) => disk[name]).map((name) => ({ name, ...disk[name] })) : []);
            table.hidden = !disk;
            const disks = janitor?.disks ?? [];
            free.hidden = !disks.length;
            setText(
                free,
                disks
                    .map((one) => texts.t("free_on", { free: texts.bytes(one.free_bytes), total: texts.bytes(one.total_bytes) }))
                    .join(" · "),
            );
            setAttribute(free, "class", disks.some((one) => one.state !== "ok") ? "g-warning" : "g-quiet");
            const store = janitor?.database;
            database.hidden = !store;
            setText(
                database,
                store
                    ? texts.t(store.max_bytes ? "database_of" : "database_size", {
                          size: texts.bytes(store.bytes),
                          limit: texts.bytes(store.max_bytes),
                      })
                    : "",
            );
            native.update();
            look.hidden = !janitor;
            const when = janitor?.next_sweep_at_ms;
            next.hidden = !janitor;
            setText(
                next,
                janitor?.sweeping
                    ? texts.t("sweeping")
                    : when
                      ? texts.t("next_sweep", { when: texts.ago((when - board.now()) / 1000) })
                      : texts.t("no_sweeps"),
            );
        },
    };
}

function diskRow(first, texts) {
    const cell = () => h("td", { class: "g-number" });
    const [files, size, would] = [cell(), cell(), cell()];
    return {
        element: h("tr", {}, h("th", { scope: "row" }, texts.t(`root_${first.name}`)), files, size, would),
        update(root) {
            setText(files, root.files == null ? "–" : texts.number(root.files));
            setText(size, root.bytes == null ? "–" : texts.bytes(root.bytes));
            setText(would, root.would_free_bytes == null ? "–" : texts.bytes(root.would_free_bytes));
        },
    };
}

// The worker, and whether jobs are taken. ---------------------------------------------------------------------------

export function serverView(board, texts, section, run) {
    const worker = h("p");
    const repairs = h("p", { class: "g-quiet" });
    const warmup = h("p", { class: "g-quiet g-warmup" });
    const begin = confirmed(texts.t("drain"), texts.t("drain_really"), () => run(() => turn(true)));
    const end = h("button", { type: "button", class: "g-button", onclick: () => run(() => turn(false)) }, texts.t("drain_end"));
    const advice = doctor();
    const view = section("server", texts.t("server"), worker, repairs, warmup, h("p", { class: "g-more" }, begin, end), webhooks(), alarmHistory(board, texts, run), advice.element);
    let draining = false;

    async function turn(wanted) {
        const answer = await board.api.ask("POST", "/drain", { body: JSON.stringify({ draining: wanted }) });
        draining = answer.draining;
        await board.figures();
    }

    function webhooks() {
        const list = h("ul", { class: "g-plain", "aria-label": texts.t("given_up") });
        const look = async () => {
            const { webhooks } = await board.api.get("/webhooks?state=dead&limit=50");
            const job = (one) =>
                h("button", { type: "button", class: "g-link", onclick: () => run(() => showJob(board, one.job_id)) }, h("code", {}, one.job_id.slice(0, 8)));
            list.replaceChildren(
                ...webhooks.map((one) => webhookRow(one, board, texts, h("span", { class: "g-quiet" }, `${one.owner} · ${texts.moment(one.ended_at_ms ?? one.created_at_ms)}`), job(one))),
                ...(webhooks.length ? [] : [h("li", { class: "g-quiet" }, texts.t("nothing_given_up"))]),
            );
        };
        const details = h("details", { class: "g-more g-given-up", ontoggle: () => details.open && run(look) }, h("summary", {}, texts.t("given_up")), list);
        return details;
    }

    function doctor() {
        const list = h("ul", { class: "g-plain g-doctor", tabindex: "0", "aria-label": texts.t("doctor") });
        const counts = LEVELS.slice(0, 2).map((level) => [level, h("span", { class: "g-count", "data-level": level })]);
        const element = h(
            "details",
            { class: "g-more g-doctor-card", ontoggle: () => element.open && !board.doctor && run(() => board.loadDoctor()) },
            h("summary", {}, texts.t("doctor"), ...counts.map(([, place]) => place)),
            list,
        );
        let shown = null;
        let hasOpened = false;
        const update = () => {
            if (!board.doctor || board.doctor === shown) return;
            shown = board.doctor;
            const urgency = (line) => LEVELS.indexOf(line.level);
            list.replaceChildren(
                ...[...shown].sort((a, b) => urgency(a) - urgency(b)).map((line) =>
                    h(
                        "li",
                        { "data-level": line.level },
                        h("span", { class: "g-level" }, texts.known(`level_${line.level}`, line.level)),
                        h("span", {}, h("b", {}, line.check), ` ${line.message}`, line.mend ? h("i", {}, ` ${line.mend}`) : null),
                    ),
                ),
            );
            for (const [level, place] of counts) {
                const count = shown.filter((line) => line.level === level).length;
                setText(place, count ? texts.t(`doctor_${level}`, { count }) : "");
            }
            // Once: whoever closes it has read it.
            if (!hasOpened && shown.some((line) => line.level === "error")) hasOpened = element.open = true;
        };
        return { element, update };
    }

    return {
        element: view.element,
        update() {
            const state = board.stats?.worker;
            view.element.hidden = !state;
            if (!state) return;
            setText(worker, texts.t(!state.alive ? "worker_dead" : state.running ? "worker_busy" : "worker_idle"));
            setAttribute(worker, "class", state.alive ? "g-good" : "g-bad");
            repairs.hidden = !state.replaced && !state.disowned;
            setText(repairs, texts.t("worker_repairs", { replaced: state.replaced, disowned: state.disowned }));
            const runs = board.stats.warmup?.runs ?? [];
            warmup.hidden = !runs.length;
            setText(warmup, texts.t("warmup", { runs: runs.map((one) => `${one.name}: ${texts.known(`warmup_${one.state}`, one.state)}`).join(", ") }));
            setAttribute(warmup, "class", runs.some((one) => one.state === "failed") ? "g-warning g-warmup" : "g-quiet g-warmup");
            advice.update();
            draining = board.ready?.problems.includes("draining") ?? draining;
            begin.hidden = draining;
            end.hidden = !draining;
        },
    };
}
