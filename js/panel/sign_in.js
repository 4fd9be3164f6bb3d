// What the pages share before they show anything: the language, and the key where one is needed.

import { h, setText } from "./dom.js";
import { LANGUAGES, chosen } from "./texts.js";

const KEY = "guarded.key";
const LANGUAGE = "guarded.language";

/** The key of this tab; empty where none was given. */
export const tellKey = () => sessionStorage.getItem(KEY) ?? "";

/** The language that was chosen here, or the first of the browser's that there are texts for. */
export const languageOf = () => chosen([localStorage.getItem(LANGUAGE), ...navigator.languages]);

/** Buttons for the language; `show(language)` draws the page anew. */
export function languages(language, texts, show) {
    return h(
        "span",
        { class: "g-segments g-languages", role: "group", "aria-label": texts.t("language") },
        ...LANGUAGES.map((other) =>
            h(
                "button",
                {
                    type: "button",
                    class: "g-segment",
                    lang: other,
                    "aria-pressed": String(other === language),
                    "aria-label": texts.t(`language_${other}`),
                    onclick: () => {
                        localStorage.setItem(LANGUAGE, other);
                        show(other);
                    },
                },
                other.toUpperCase(),
            ),
        ),
    );
}

export function forgetKey(texts) {
    const act = () => {
        sessionStorage.removeItem(KEY);
        location.reload();
    };
    return h("button", { type: "button", class: "g-button", onclick: act }, texts.t("key_forget"));
}

/** A form for the key, in place of the page. `wrong`: the one that was tried is not let in. */
export function keyForm(texts, then, wrong) {
    sessionStorage.removeItem(KEY);
    const field = h("input", {
        id: "g-key",
        type: "password",
        autocomplete: "current-password",
        required: true,
        spellcheck: "false",
        "aria-describedby": "g-key-help",
    });
    const refusal = h("p", { class: "g-refusal", role: "alert" });
    const form = h(
        "form",
        {
            class: "g-key",
            onsubmit: (event) => {
                event.preventDefault();
                sessionStorage.setItem(KEY, field.value.trim());
                then();
            },
        },
        h("h1", {}, texts.t("title")),
        h("label", { for: "g-key" }, texts.t("key")),
        field,
        h("button", { class: "g-button g-primary" }, texts.t("key_use")),
        h("p", { class: "g-quiet", id: "g-key-help" }, texts.t("key_help")),
        refusal,
    );
    // Once it is on the page: an alert is read out only when it changes, and what is not shown takes no focus.
    queueMicrotask(() => {
        if (wrong) setText(refusal, texts.t("key_wrong"));
        field.focus();
    });
    return form;
}
