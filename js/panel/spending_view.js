// What this month's jobs took of the GPU, by owner, user and template; asked for when it is opened.

import { h, setText } from "./dom.js";

const SHOWN = 20;
/** A browser reads what it saves a moment later. */
const SAVED_MS = 10_000;

export function spendingView(board, texts, section, run) {
    const column = (key, attributes) => h("th", { scope: "col", ...attributes }, texts.t(key));
    const body = h("tbody");
    const head = ["spending_owner", "spending_user", "spending_template"].map((key) => column(key));
    const numbers = ["spending_runs", "spending_gpu"].map((key) => column(key, { class: "g-number" }));
    const table = h(
        "table",
        { class: "g-table" },
        h("caption", { class: "g-hidden" }, texts.t("spending")),
        h("thead", {}, h("tr", {}, ...head, ...numbers)),
        body,
    );
    const all = h("p", { class: "g-quiet" });
    const chosen = h("input", { type: "month", class: "g-input", "aria-label": texts.t("spending_month"), onchange: () => run(look) });
    const query = () => (chosen.value ? `&month=${chosen.value}` : "");
    const save = async () => {
        const answer = await board.api.fetched("GET", `/spending?format=csv${query()}`);
        const address = URL.createObjectURL(await answer.blob());
        h("a", { href: address, download: `spending-${chosen.value}.csv` }).click();
        setTimeout(() => URL.revokeObjectURL(address), SAVED_MS);
    };
    const csv = h("button", { type: "button", class: "g-button g-small", onclick: () => run(save) }, texts.t("spending_csv"));
    const look = async () => {
        const month = await board.api.get(`/spending?format=json${query()}`);
        chosen.value = month.month;
        body.replaceChildren(
            ...month.rows.slice(0, SHOWN).map((row) =>
                h(
                    "tr",
                    {},
                    h("td", {}, row.owner),
                    h("td", {}, row.user || "–"),
                    h("td", {}, row.template || "–"),
                    h("td", { class: "g-number" }, texts.number(row.runs)),
                    h("td", { class: "g-number" }, texts.number(Math.round(row.gpu_s))),
                ),
            ),
        );
        table.hidden = !month.rows.length;
        setText(all, texts.t("spending_all", { month: month.month, runs: texts.number(month.runs), seconds: texts.number(Math.round(month.gpu_s)) }));
    };
    const details = h("details", { class: "g-more", ontoggle: () => details.open && run(look) }, h("summary", {}, texts.t("spending_show")), h("p", { class: "g-more" }, chosen, " ", csv), table, all);
    const view = section("spending", texts.t("spending"), details);
    return { element: view.element, update() {} };
}
