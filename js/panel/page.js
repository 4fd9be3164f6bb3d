// The page at /guarded/: asks for a key where one is needed, and chooses the language.

import { Api } from "./api.js";
import { Board } from "./board.js";
import { h } from "./dom.js";
import { mount } from "./panel.js";
import { forgetKey, keyForm, languageOf, languages, tellKey } from "./sign_in.js";
import { load } from "./texts.js";

/** Fill the page. `base` is where `/guarded` lies, as this page's address has it. */
export async function start(root, base) {
    let end = () => {};
    await show(languageOf());

    async function show(language) {
        end();
        const texts = await load(language);
        document.documentElement.lang = language;
        document.title = texts.t("title");
        const api = new Api(base, { language, key: tellKey() });
        const board = new Board(api);
        const contract = h("a", { class: "g-link", href: `${base}/docs` }, texts.t("contract"));
        const tools = [contract, languages(language, texts, show), ...(api.key ? [forgetKey(texts)] : [])];
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

    /** Instead of the panel: a form for the key. `wrong`: the one that was tried is not let in. */
    function ask(texts, language, wrong) {
        end();
        end = () => {};
        root.replaceChildren(h("div", { class: "g-panel" }, keyForm(texts, () => show(language), wrong)));
    }
}
