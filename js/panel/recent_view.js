// The jobs that have ended, and those that were searched for.

import { Rows, h, setAttribute, setText } from "./dom.js";
import { facts } from "./job_view.js";
import { named, section } from "./jobs_view.js";

const PREVIEW = "?preview=webp;80;96";

export function recentView(board, texts, run) {
    const list = h("ul", { class: "g-plain g-recent" });
    const rows = new Rows(
        list,
        (job) => job.job_id,
        (job) => recentRow(job, board, texts),
    );
    const nothing = h("p", { class: "g-quiet" });
    const older = h(
        "p",
        { class: "g-more" },
        h("button", { type: "button", class: "g-button", onclick: () => run(() => board.moreRecent()) }, texts.t("older")),
    );
    const { form, update: updateFilter } = filterForm(board, texts, run);
    const view = section("recent", texts.t("recent"), form, nothing, list, older);
    return {
        element: view.element,
        update() {
            const jobs = board.ended;
            const unfinished = rows.update(jobs);
            const filtered = board.filtered;
            nothing.hidden = jobs.length > 0 && !board.searching;
            const starting = board.link === "starting";
            setText(
                nothing,
                texts.t(board.searching ? "searching" : starting ? "loading" : filtered ? (board.older ? "nothing_yet" : "nothing_found") : "nothing_ended"),
            );
            older.hidden = !board.older || board.searching;
            updateFilter();
            return unfinished;
        },
        tick() {
            for (const row of rows.rows.values()) row.tick();
        },
        destroy() {
            for (const row of rows.rows.values()) row.destroy();
        },
    };
}

/** The texts that a job must have one of, and the facts that it must have. */
function filterForm(board, texts, run) {
    const known = { owner: h("datalist", { id: "g-owners" }), template: h("datalist", { id: "g-templates" }), code: h("datalist", { id: "g-codes" }) };
    const apply = () => {
        const filter = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.value.trim()]));
        for (const [name, input] of Object.entries(times)) filter[name] = input.value ? String(new Date(input.value).getTime()) : "";
        if (Object.entries(filter).some(([name, value]) => board.filter[name] !== value)) run(() => board.only(filter));
    };
    const field = (name, attributes) =>
        h("input", {
            class: "g-select g-field",
            name,
            autocomplete: "off",
            spellcheck: "false",
            placeholder: texts.t(`filter_${name}`),
            "aria-label": texts.t(`filter_${name}`),
            onchange: apply,
            ...attributes,
        });
    const fields = {
        text: field("text", { type: "search", title: texts.t("filter_text_help") }),
        state: h(
            "select",
            { class: "g-select", name: "state", "aria-label": texts.t("filter"), onchange: apply },
            ...["", "succeeded", "failed", "cancelled"].map((state) =>
                h("option", { value: state }, texts.t(state ? `state_${state}` : "all")),
            ),
        ),
        code: field("code", { list: "g-codes" }),
        owner: field("owner", { list: "g-owners" }),
        template: field("template", { list: "g-templates" }),
    };
    const times = { created_after_ms: h("input", { type: "datetime-local" }), created_before_ms: h("input", { type: "datetime-local" }) };
    const labels = Object.entries(times).map(([name, input]) => {
        setAttribute(input, "class", "g-select");
        setAttribute(input, "name", name);
        input.addEventListener("change", apply);
        return h("label", { class: "g-labelled" }, texts.t(`filter_${name}`), " ", input);
    });
    const clear = h("button", { type: "button", class: "g-button", onclick: () => run(() => board.only({})) }, texts.t("filter_clear"));
    const form = h(
        "form",
        {
            class: "g-filter",
            role: "search",
            "aria-label": texts.t("filter_jobs"),
            onsubmit: (event) => {
                event.preventDefault();
                apply();
            },
        },
        ...Object.values(fields),
        ...labels,
        clear,
        ...Object.values(known),
    );
    let shown = board.filter;
    let listed = "";
    return {
        form,
        update() {
            clear.hidden = !board.filtered;
            fields.owner.hidden = !board.stats?.failing;
            if (board.filter !== shown) {
                shown = board.filter;
                for (const [name, field] of Object.entries(fields)) field.value = shown[name];
                for (const [name, input] of Object.entries(times)) input.value = shown[name] ? toLocal(Number(shown[name])) : "";
            }
            const week = board.stats?.windows["7d"];
            const some = {
                code: Object.keys(week?.by_code ?? {}),
                owner: (board.stats?.failing?.["7d"] ?? []).map((one) => one.owner),
                template: (board.stats?.slowest ?? []).map((one) => one.template).filter(Boolean),
            };
            const seen = JSON.stringify(some);
            if (seen === listed) return;
            listed = seen;
            for (const [name, values] of Object.entries(some)) known[name].replaceChildren(...values.map((value) => h("option", { value })));
        },
    };
}

/** A time as `datetime-local` has it: by the clock on this wall. */
function toLocal(ms) {
    return new Date(ms - new Date(ms).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

function recentRow(first, board, texts) {
    let job = first;
    const picture = h("span", { class: "g-thumb", "aria-hidden": "true" });
    const verdict = h("span", { class: "g-verdict" });
    const said = h("span", { class: "g-said" });
    const name = h("span", { class: "g-name" });
    const owner = h("span", { class: "g-owner" });
    const took = h("span", { class: "g-took" });
    const when = h("time", { class: "g-when" });
    const inside = h("div", { class: "g-inside" });
    const details = h(
        "details",
        { ontoggle: () => details.open && inside.replaceChildren(...facts(job, board, texts)) },
        h(
            "summary",
            {},
            picture,
            h("span", { class: "g-what" }, h("span", { class: "g-top" }, verdict, took), said),
            h("span", { class: "g-who" }, h("span", { class: "g-top" }, name, owner), when),
        ),
        inside,
    );
    const element = h("li", { "data-job": first.job_id, "data-state": first.state }, details);
    const thumbnail = lazily(element, () => showPicture(picture, job, board.api));
    let shown = null;
    let lastStep = null;
    let openedFor = null;
    return {
        element,
        update(latest) {
            const isNew = latest !== shown;
            job = shown = latest;
            if (board.filter.text === job.job_id && openedFor !== board.filter) {
                openedFor = board.filter;
                details.open = true;
            }
            if (!isNew) return;
            setAttribute(element, "data-state", job.state);
            setText(verdict, texts.known(`state_${job.state}`, job.state));
            const code = job.error?.code;
            const told = job.state === "failed" ? job.error?.user_message || job.error?.message || "" : "";
            said.replaceChildren(
                ...(code && job.state === "failed" ? [h("code", {}, code), " "] : []),
                told || (job.artifacts?.length ? texts.t("files", { count: job.artifacts.length }) : ""),
            );
            setText(name, named(job));
            setText(owner, job.owner);
            const at_ms = job.settled_at_ms ?? job.created_at_ms;
            setText(took, job.started_at_ms && job.settled_at_ms ? texts.duration((job.settled_at_ms - job.started_at_ms) / 1000) : "");
            setAttribute(when, "datetime", new Date(at_ms).toISOString());
            setAttribute(when, "title", texts.moment(at_ms));
            lastStep = null;
            this.tick();
        },
        tick() {
            const seconds = (board.now() - (job.settled_at_ms ?? job.created_at_ms)) / 1000;
            // Of all but the youngest no seconds are shown, and putting a time into words is slow.
            const step = seconds < 60 ? Math.floor(seconds) : -Math.floor(seconds / 60);
            if (step === lastStep) return;
            lastStep = step;
            setText(when, texts.ago(-seconds));
        },
        destroy() {
            thumbnail.disconnect();
        },
    };
}

/** Calls `show` once, when the element first comes near the visible part. */
function lazily(element, show) {
    const observer = new IntersectionObserver(
        (entries) => {
            if (!entries.some((entry) => entry.isIntersecting)) return;
            observer.disconnect();
            show();
        },
        { rootMargin: "200px" },
    );
    observer.observe(element);
    return observer;
}

async function showPicture(place, job, api) {
    const artifact = job.artifacts?.find((one) => one.kind === "image");
    if (!artifact) {
        const other = job.artifacts?.[0]?.kind;
        if (other) place.dataset.kind = other;
        return;
    }
    try {
        const address = await api.picture(job, artifact.index, PREVIEW);
        const gone = () => {
            image.remove();
            place.dataset.kind = "gone";
        };
        const image = h("img", { alt: "", decoding: "async", onerror: gone });
        image.addEventListener("load", () => address.startsWith("blob:") && URL.revokeObjectURL(address), { once: true });
        image.src = address;
        place.replaceChildren(image);
    } catch {
        place.dataset.kind = "gone";
    }
}
