// The page at /guarded/: asks for a key where one is needed, and chooses the language.

import { Api } from "./api.js";
import { Board } from "./board.js";
import { h, setText } from "./dom.js";
import { mount } from "./panel.js";
import { LANGUAGES, chosen, load } from "./texts.js";

const KEY = "guarded.key";
const LANGUAGE = "guarded.language";

/** Fill the page. `base` is where `/guarded` lies, as this page's address has it. */
export async function start(root, base) {
    let end = () => {};
    await show(chosen([localStorage.getItem(LANGUAGE), ...navigator.languages]));

    async function show(language) {
        end();
        const texts = await load(language);
        document.documentElement.lang = language;
        document.title = texts.t("title");
        const api = new Api(base, { language, key: sessionStorage.getItem(KEY) ?? "" });
        const board = new Board(api);
        const tools = [languages(language, texts), ...(api.key ? [forget(texts)] : [])];
        const unmount = mount(root, board, texts, { heading: texts.t("title"), tools });
        const unsubscribe = board.subscribe(() => {
            document.title = (board.unseen ? `(${board.unseen}) ` : "") + texts.t("title");
            if (board.link === "locked") ask(texts, language, api.key !== "");
        });
        board.start();
        end = () => {
            board.stop();
            unsubscribe();
            unmount();
        };
    }

    function languages(language, texts) {
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

    function forget(texts) {
        const act = () => {
            sessionStorage.removeItem(KEY);
            location.reload();
        };
        return h("button", { type: "button", class: "g-button", onclick: act }, texts.t("key_forget"));
    }

    /** Instead of the panel: a form for the key. `wrong`: the one that was tried is not let in. */
    function ask(texts, language, wrong) {
        end();
        end = () => {};
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
                    show(language);
                },
            },
            h("h1", {}, texts.t("title")),
            h("label", { for: "g-key" }, texts.t("key")),
            field,
            h("button", { class: "g-button g-primary" }, texts.t("key_use")),
            h("p", { class: "g-quiet", id: "g-key-help" }, texts.t("key_help")),
            refusal,
        );
        root.replaceChildren(h("div", { class: "g-panel" }, form));
        // An alert is read out only when it changes.
        if (wrong) setText(refusal, texts.t("key_wrong"));
        field.focus();
    }
}
