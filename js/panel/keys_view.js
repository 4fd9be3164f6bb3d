// Keys, for operators: made with a secret that is shown once, limited, revoked.

import { confirmed, h } from "./dom.js";

const DAY_S = 86400;
const AGES = { never: null, day: DAY_S, month: 30 * DAY_S, year: 365 * DAY_S };

export function keysView(board, texts, section, run) {
    const list = h("ul", { class: "g-plain g-keys", "aria-label": texts.t("keys") });
    const made = h("div", { class: "g-made", role: "status" });
    /** What each limit takes, as the server says; the form for a new key is made of it. */
    let kinds = {};
    let form = h("form", { hidden: true });
    const details = h("details", { class: "g-more", ontoggle: () => details.open && run(look) }, h("summary", {}, texts.t("keys_show")), made, form, list);
    const view = section("keys", texts.t("keys"), details);

    async function look() {
        const { keys, limits } = await board.api.get("/keys");
        if (JSON.stringify(limits) !== JSON.stringify(kinds)) {
            kinds = limits;
            const next = newKey();
            form.replaceWith(next);
            form = next;
        }
        list.replaceChildren(...keys.map(keyRow), ...(keys.length ? [] : [h("li", { class: "g-quiet" }, texts.t("keys_none"))]));
    }

    function newKey() {
        const name = h("input", { class: "g-select", required: true, maxlength: 64, autocomplete: "off", spellcheck: "false", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]*" });
        const scope = select({ submit: texts.t("scope_submit"), operate: texts.t("scope_operate") });
        const age = select(Object.fromEntries(Object.keys(AGES).map((one) => [one, texts.t(`expires_${one}`)])));
        const again = h("input", { type: "checkbox" });
        const limits = limitFields({});
        const make = async () => {
            const asked = { name: name.value.trim(), scope: scope.value, same_owner: again.checked, limits: limits.read() };
            if (AGES[age.value]) asked.expires_in_s = AGES[age.value];
            const key = await board.api.ask("POST", "/keys", { body: JSON.stringify(asked) });
            showMade(key);
            form.reset();
            await look();
        };
        return h(
            "form",
            {
                class: "g-form",
                "aria-label": texts.t("key_new"),
                onsubmit: (event) => {
                    event.preventDefault();
                    run(make);
                },
            },
            labelled("key_name", name),
            labelled("key_scope", scope),
            labelled("key_expires", age),
            labelled("key_same_owner", again),
            h("details", { class: "g-more" }, h("summary", {}, texts.t("limits")), limits.element),
            h("button", { class: "g-button" }, texts.t("key_make")),
        );
    }

    /** The secrets, until they are put away: nothing has them again. */
    function showMade(key) {
        const secret = (name, value) => {
            const copied = h("span", { role: "status", class: "g-quiet" });
            const copy = async () => {
                await navigator.clipboard.writeText(value);
                copied.textContent = texts.t("copied");
            };
            // A page that did not come over TLS has no clipboard.
            const button = navigator.clipboard ? h("button", { type: "button", class: "g-button g-small", onclick: () => run(copy) }, texts.t("copy")) : null;
            return [h("dt", {}, texts.t(name)), h("dd", {}, h("code", {}, value), " ", button, " ", copied)];
        };
        const away = h("button", { type: "button", class: "g-button", onclick: () => made.replaceChildren() }, texts.t("key_put_away"));
        made.replaceChildren(
            h("p", { class: "g-warning" }, texts.t("key_once", { name: key.name })),
            h("dl", {}, ...secret("key", key.secret), ...secret("key_webhook_secret", key.webhook_secret)),
            away,
        );
        away.focus();
    }

    function keyRow(key) {
        const place = h("div", {});
        const limits = described(key.limits);
        const state = key.revoked_at_ms
            ? texts.t("key_revoked", { when: texts.moment(key.revoked_at_ms) })
            : key.expires_at_ms
              ? texts.t(key.active ? "key_until" : "key_expired", { when: texts.moment(key.expires_at_ms) })
              : texts.t("key_active");
        const edit = h("button", { type: "button", class: "g-button g-small", "aria-expanded": "false", onclick: toggle }, texts.t("limits"));
        const revoke = confirmed(texts.t("key_revoke"), texts.t("key_revoke_really"), () =>
            run(async () => {
                await board.api.ask("DELETE", `/keys/${encodeURIComponent(key.key_id)}`);
                await look();
            }), { class: "g-button g-small" });

        function toggle() {
            const opens = !place.firstChild;
            edit.setAttribute("aria-expanded", String(opens));
            place.replaceChildren(...(opens ? [limitForm(key)] : []));
        }

        return h(
            "li",
            { "data-key": key.key_id },
            h("div", { class: "g-line" }, h("b", {}, key.name), h("code", {}, key.key_id), h("span", { class: "g-acts" }, ...(key.revoked_at_ms ? [] : [edit, revoke]))),
            h("p", { class: key.active ? "g-quiet" : "g-bad" }, [texts.t(`scope_${key.scope}`), state, ...limits].join(" · ")),
            place,
        );
    }

    function limitForm(key) {
        const limits = limitFields(key.limits);
        const save = async () => {
            await board.api.ask("POST", `/keys/${encodeURIComponent(key.key_id)}/limits`, { body: JSON.stringify(limits.read()) });
            await look();
        };
        return h(
            "form",
            {
                class: "g-form",
                "aria-label": `${texts.t("limits")} ${key.name}`,
                onsubmit: (event) => {
                    event.preventDefault();
                    run(save);
                },
            },
            limits.element,
            h("button", { class: "g-button" }, texts.t("save")),
        );
    }

    /** Fields for all limits; an empty one is as the settings say. */
    function limitFields(given) {
        const fields = Object.entries(kinds).map(([name, kind]) => [name, kind, limitField(kind, given[name])]);
        return {
            element: h("div", { class: "g-fields" }, ...fields.map(([name, , field]) => labelled(`limit_${name}`, field))),
            read() {
                const limits = {};
                for (const [name, kind, field] of fields) {
                    if (kind === "flag") limits[name] = field.checked;
                    else if (kind === "patterns") limits[name] = field.value.split(",").map((one) => one.trim()).filter(Boolean);
                    else if (kind === "profile" || kind === "format") limits[name] = field.value.trim();
                    else if (field.value) limits[name] = Number(field.value);
                }
                return limits;
            },
        };
    }

    function limitField(kind, value) {
        if (kind === "flag") return h("input", { type: "checkbox", checked: Boolean(value) });
        if (kind === "patterns") return h("input", { class: "g-select", placeholder: "A, B*", value: (value ?? []).join(", ") });
        const whole = { type: "number", step: 1, min: 1 };
        const only = { number: { type: "number", step: "any", min: "0.001" }, count: whole, quality: { ...whole, max: 100 }, side: { ...whole, min: 16 } };
        return h("input", { class: "g-select", placeholder: "–", value, ...only[kind] });
    }

    function described(limits) {
        const said = (name, kind) => {
            const value = limits[name];
            if (value === null || value === "" || value === false || value.length === 0) return [];
            const label = texts.t(`limit_${name}`);
            return kind === "flag" ? [label] : [`${label}: ${kind === "patterns" ? value.join(", ") : typeof value === "string" ? value : texts.number(value)}`];
        };
        return Object.entries(kinds).flatMap(([name, kind]) => said(name, kind));
    }

    function labelled(key, field) {
        const said = [texts.t(key), " ", field];
        return h("label", { class: "g-labelled" }, ...(field.type === "checkbox" ? said.reverse() : said));
    }

    function select(options) {
        return h("select", { class: "g-select" }, ...Object.entries(options).map(([value, said]) => h("option", { value }, said)));
    }

    return {
        element: view.element,
        update() {
            view.element.hidden = !board.stats?.worker;
        },
    };
}
