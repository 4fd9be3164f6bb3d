// What went wrong, counted: how jobs failed, whose, and what was refused at the door.

import { Rows, h, setText } from "./dom.js";

export function failuresView(board, texts, section, run) {
    const show = (filter) =>
        run(async () => {
            await board.only({ state: "failed", ...filter });
            document.getElementById("g-recent")?.scrollIntoView({ block: "start" });
        });
    const codes = counted("failed_by_code", (item) =>
        h("button", { type: "button", class: "g-link", title: texts.t("show_them"), onclick: () => show({ code: item.name }) }, h("code", {}, item.name)),
    );
    const owners = counted("failed_by_owner", (item) =>
        h("button", { type: "button", class: "g-link", title: texts.t("show_them"), onclick: () => show({ owner: item.name }) }, item.name),
    );
    const refused = counted("refused_at_the_door", (item) => h("code", {}, item.name));
    const since = h("p", { class: "g-quiet" });
    refused.element.append(since);
    const { element } = section(
        "failures",
        texts.t("went_wrong"),
        h("div", { class: "g-counts" }, codes.element, owners.element, refused.element),
    );

    /** A list of names, each with how often it is meant; the most frequent first. */
    function counted(key, name) {
        const list = h("ul", { class: "g-plain", "aria-label": texts.t(key) });
        const nothing = h("p", { class: "g-quiet" }, texts.t("nothing_counted"));
        const rows = new Rows(
            list,
            (item) => item.name,
            (first) => {
                const count = h("b", { class: "g-number" });
                const meant = h("span", { class: "g-quiet" });
                return {
                    element: h("li", {}, count, h("span", {}, name(first), " ", meant)),
                    update(item) {
                        setText(count, texts.number(item.count));
                        setText(meant, item.meant);
                    },
                };
            },
        );
        return {
            element: h("div", {}, h("h3", {}, texts.t(key)), nothing, list),
            update(items) {
                rows.update(items);
                nothing.hidden = items.length > 0;
            },
        };
    }

    const withCodes = (counts) =>
        Object.entries(counts ?? {})
            .filter(([name]) => name !== "cancelled")
            .map(([name, count]) => ({ name, count, meant: texts.known(`code_${name}`, "") }));

    return {
        element,
        update() {
            const stats = board.stats;
            const seen = stats?.windows[board.window];
            const failing = stats?.failing?.[board.window];
            const [failed, turnedAway] = [withCodes(seen?.by_code), withCodes(seen?.refused)];
            element.hidden = !failed.length && !turnedAway.length;
            if (element.hidden) return;
            codes.update(failed);
            refused.update(turnedAway);
            owners.element.hidden = !failing;
            owners.update(
                (failing ?? []).map((one) => ({ name: one.owner, count: one.failed, meant: texts.t("of_ended", { count: one.jobs }) })),
            );
            const length_ms = { "1h": 3600e3, "24h": 24 * 3600e3, "7d": 7 * 24 * 3600e3 }[board.window];
            since.hidden = stats.refused_since_ms <= stats.now_ms - length_ms;
            setText(since, texts.t("counted_since", { when: texts.moment(stats.refused_since_ms) }));
        },
    };
}
