// What an operator should look at: what stands now, what has happened and nobody has seen, and what there was.

import { showJob } from "./job_view.js";
import { Rows, h, setText } from "./dom.js";

const SHOWN = 5;

export function alarmView(board, texts, run) {
    const list = h("ul", { class: "g-plain" });
    const rows = new Rows(
        list,
        (alarm) => alarm.key,
        (alarm) => alarmRow(alarm, board, texts, run),
    );
    const more = h("p", { class: "g-quiet" });
    const all = h(
        "button",
        { type: "button", class: "g-button g-small", onclick: () => run(() => board.see({ up_to: board.alarms[0].id })) },
        texts.t("alarms_seen"),
    );
    const element = h("section", { class: "g-alarms", role: "status", "aria-label": texts.t("alarms") }, list, h("div", { class: "g-line" }, more, all));
    const update = () => {
        const standing = (board.stats?.alarms ?? []).map((one) => ({ ...one, key: `now-${one.code}` }));
        const unseen = board.unseen ? board.alarms.filter((one) => one.seen_at_ms === null).slice(0, SHOWN) : [];
        rows.update([...standing, ...unseen.map((one) => ({ ...one, key: `${one.id}` }))]);
        element.hidden = !standing.length && !unseen.length;
        more.hidden = board.unseen <= unseen.length;
        setText(more, texts.t("and_more", { count: board.unseen - unseen.length }));
        all.hidden = board.unseen < 2 || !unseen.length;
        all.parentNode.hidden = more.hidden && all.hidden;
    };
    return { element, update, tick: update };
}

function alarmRow(alarm, board, texts, run) {
    const said = h("span", {}, alarmText(alarm, texts), boxOf(alarm, texts));
    const when = h("span", { class: "g-when" });
    const seen =
        alarm.seen_at_ms === null
            ? h(
                  "button",
                  {
                      type: "button",
                      class: "g-button g-small",
                      "aria-label": `${texts.t("alarm_seen")}: ${alarmText(alarm, texts)}`,
                      onclick: () => run(() => board.see({ ids: [alarm.id] })),
                  },
                  texts.t("alarm_seen"),
              )
            : null;
    return {
        element: h("li", { "data-alarm": alarm.code }, said, jobLink(alarm, board, run), when, seen),
        update() {
            setText(when, alarm.at_ms ? texts.ago((alarm.at_ms - board.now()) / 1000) : "");
        },
    };
}

function jobLink(alarm, board, run) {
    if (!alarm.job_id) return null;
    return h("button", { type: "button", class: "g-link", onclick: () => run(() => showJob(board, alarm.job_id)) }, h("code", {}, alarm.job_id.slice(0, 8)));
}

/** The last alarms, those that were seen as well; asked for when it is opened. */
export function alarmHistory(board, texts, run) {
    const list = h("ul", { class: "g-plain g-history", tabindex: "0", "aria-label": texts.t("alarms_all") });
    const look = async () => {
        const { alarms } = await board.api.get("/alarms?limit=200");
        list.replaceChildren(
            ...alarms.map((one) =>
                h(
                    "li",
                    {},
                    h("time", { class: "g-when", datetime: new Date(one.at_ms).toISOString() }, texts.moment(one.at_ms)),
                    h("span", { class: one.seen_at_ms === null ? "" : "g-quiet" }, alarmText(one, texts), boxOf(one, texts), " ", jobLink(one, board, run), " ", ownWords(one, texts)),
                ),
            ),
            ...(alarms.length ? [] : [h("li", { class: "g-quiet" }, texts.t("nothing_counted"))]),
        );
    };
    const details = h("details", { class: "g-more", ontoggle: () => details.open && run(look) }, h("summary", {}, texts.t("alarms_all")), list);
    return details;
}

/** Where it happened, of a fleet. */
function boxOf(alarm, texts) {
    return alarm.box ? h("span", { class: "g-quiet" }, " ", texts.t("alarm_of_box", { box: alarm.box })) : null;
}

/** The server's own words, which are English: behind a text in another language. */
function ownWords(alarm, texts) {
    const said = h("span", { class: "g-quiet", lang: "en" }, alarm.message);
    if (texts.language === "en" || alarmText(alarm, texts) === alarm.message) return said;
    return h("details", {}, h("summary", { class: "g-quiet" }, texts.t("fact_details")), said);
}

/** In the reader's language where the code is known; the server's own words otherwise. */
export function alarmText(alarm, texts) {
    return texts.known(`alarm_${alarm.code}`, "") || alarm.message || alarm.code;
}
