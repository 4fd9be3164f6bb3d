// The janitor asks before it deletes what no job has made: a person's own pictures.

import { confirmed, h, setText } from "./dom.js";

/** The question, as long as nobody has answered it and there is something to delete. */
export function nativeView(board, texts, run) {
    const said = h("p");
    const really = texts.t("native_really");
    const element = h(
        "section",
        { class: "g-native", role: "status", "aria-label": texts.t("native") },
        said,
        h(
            "div",
            { class: "g-line" },
            h("button", { type: "button", class: "g-button g-small", onclick: () => run(() => decide(board, false)) }, texts.t("native_keep")),
            confirmed(texts.t("native_sweep"), really, () => run(() => decide(board, true)), { class: "g-button g-small g-danger" }),
        ),
    );
    const update = () => {
        const native = board.janitor?.native;
        element.hidden = !asks(native);
        if (asks(native)) setText(said, question(native, texts));
    };
    update();
    return { element, update };
}

/** The answer in force, and the way to another one; nothing where a setting has it. */
export function nativeLine(board, texts, run) {
    const said = h("span");
    const change = h("span");
    let shown = null;
    const element = h("p", { class: "g-quiet" }, said, " ", change);
    return {
        element,
        update() {
            const native = board.janitor?.native;
            element.hidden = !native || native.sweep === "ask";
            const now = JSON.stringify([native?.sweep, native?.by_setting]);
            if (element.hidden || now === shown) return;
            shown = now;
            setText(said, texts.t(native.sweep ? "native_swept" : "native_kept"));
            change.replaceChildren(
                ...(native.by_setting
                    ? []
                    : [
                          native.sweep
                              ? h("button", { type: "button", class: "g-button g-small", onclick: () => run(() => decide(board, false)) }, texts.t("native_keep"))
                              : confirmed(texts.t("native_sweep"), texts.t("native_really"), () => run(() => decide(board, true)), { class: "g-button g-small" }),
                      ]),
            );
        },
    };
}

export function asks(native) {
    return native?.sweep === "ask" && native.files > 0;
}

export function question(native, texts) {
    return texts.t("native_question", { count: native.files, size: texts.bytes(native.bytes) });
}

async function decide(board, sweep) {
    await board.api.ask("POST", "/janitor/native", { body: JSON.stringify({ sweep }) });
    await board.figures();
}
