// The models that templates lack here, with size and licence, and their download; asked for when it is opened.

import { Rows, confirmed, h, setAttribute, setText } from "./dom.js";

const EVERY_MS = 1000;
const MB = 1e6;
const UNDER_WAY = ["waiting", "running", "stopping"];

export function modelsView(board, texts, section, run) {
    const list = h("ul", { class: "g-plain g-models" });
    const rows = new Rows(list, (one) => `${one.folder}/${one.file}`, (one) => modelRow(one, texts, (path, model) => run(() => tell(path, model))));
    const said = h("p", { class: "g-quiet" });
    let timer = null;
    let gone = false;

    function show(body) {
        rows.update([...body.models].sort((a, b) => b.usual - a.usual));
        const free = body.free_bytes === null ? "" : texts.t("models_free", { free: texts.bytes(body.free_bytes) });
        setText(said, body.models.length ? free : texts.t("models_none"));
        clearTimeout(timer);
        if (details.open && !gone && body.models.some((one) => UNDER_WAY.includes(one.state))) timer = setTimeout(() => run(look), EVERY_MS);
    }

    const look = async () => show(await board.api.get("/models"));
    const tell = async (path, { folder, file }) => show(await board.api.ask("POST", path, { body: JSON.stringify({ folder, file }) }));
    const details = h("details", { class: "g-more", ontoggle: () => details.open && run(look) }, h("summary", {}, texts.t("models_show")), list, said);
    const view = section("models", texts.t("models"), details);
    return {
        element: view.element,
        update() {
            view.element.hidden = !board.stats?.worker;
        },
        destroy() {
            gone = true;
            clearTimeout(timer);
        },
    };
}

function modelRow(first, texts, tell) {
    let model = first;
    const facts = { file: first.file, size: texts.bytes(first.size_mb * MB), licence: texts.licence(first.licence) };
    const about = h("span", {}, h("b", {}, first.file), ` ${facts.size} · ${first.licence} · `, h("a", { href: first.source, target: "_blank", rel: "noreferrer" }, texts.t("model_source")));
    const state = h("span", { class: "g-quiet", role: "status" });
    const bar = h("progress", { max: first.size_mb * MB, "aria-label": texts.t("model_progress", facts) });
    const begin = confirmed(texts.t("model_fetch"), texts.t("model_really", facts), () => tell("/models/fetch", model), { class: "g-button g-small" });
    const again = h("button", { type: "button", class: "g-button g-small", onclick: () => tell("/models/fetch", model) }, texts.t("model_resume"));
    const stop = h("button", { type: "button", class: "g-button g-small", onclick: () => tell("/models/stop", model) }, texts.t("model_stop"));
    return {
        element: h("li", {}, about, " ", state, " ", bar, " ", begin, again, stop),
        update(item) {
            model = item;
            const busy = UNDER_WAY.includes(item.state);
            bar.hidden = !busy;
            bar.value = item.have_bytes;
            begin.hidden = busy || !item.fetchable || item.have_bytes > 0;
            again.hidden = busy || !item.fetchable || !item.have_bytes;
            stop.hidden = item.state !== "waiting" && item.state !== "running";
            const far = item.have_bytes ? texts.t("model_have", { have: texts.bytes(item.have_bytes), size: facts.size }) : "";
            const why = item.error ?? (item.fetchable ? "" : texts.t("model_by_hand"));
            const where = busy ? texts.known(`model_${item.state}`, item.state) : item.templates.join(", ");
            setText(state, [where, far, why].filter(Boolean).join(" · "));
            setAttribute(state, "class", item.error ? "g-warning" : "g-quiet");
        },
    };
}
