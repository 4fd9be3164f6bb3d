// The page at /guarded/docs: the server's own contract (openapi.json), to read and search. It sends nothing but the
// request for it.

import { Api } from "./api.js";
import { h, setText } from "./dom.js";
import { contents, showType } from "./schema_view.js";
import { keyForm, languageOf, languages, tellKey } from "./sign_in.js";
import { load } from "./texts.js";

/** Fill the page. `base` is where `/guarded` lies, as this page's address has it. */
export async function start(root, base) {
    await show(languageOf());

    async function show(language) {
        const texts = await load(language);
        document.documentElement.lang = language;
        document.title = `${texts.t("title")}: ${texts.t("contract")}`;
        const api = new Api(base, { language, key: tellKey() });
        const header = h(
            "header",
            { class: "g-header" },
            h("h1", {}, document.title),
            h("a", { class: "g-link d-back", href: `${base}/` }, texts.t("contract_page")),
            languages(language, texts, show),
        );
        const place = h("p", { class: "g-quiet", role: "status" }, texts.t("loading"));
        root.replaceChildren(h("div", { class: "g-panel" }, header, place));
        try {
            place.replaceWith(...contract(await api.get("/openapi.json"), base, texts));
        } catch (error) {
            if (error.status === 401 || error.status === 403) root.replaceChildren(h("div", { class: "g-panel" }, keyForm(texts, () => show(language), api.key !== "")));
            else place.replaceWith(h("p", { class: "g-refusal", role: "alert" }, texts.t("refused", { message: error.message })));
        }
        open();
    }

    window.addEventListener("hashchange", open);

    /** What the address names after its #, opened and in sight. */
    function open() {
        const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
        if (!named) return;
        if (named.tagName === "DETAILS") named.open = true;
        named.scrollIntoView();
    }
}

function contract(spec, base, texts) {
    const groups = spec.tags.map((tag) => [tag.name, tag.description, operationsOf(spec, tag.name, base).map((one) => operation(one, spec, texts))]);
    const schemas = Object.entries(spec.components.schemas).map(([name, schema]) => shape(name, schema, spec, texts));
    groups.push(["schemas", texts.t("contract_schemas"), schemas]);
    const sections = groups.map(([name, meaning, parts]) =>
        h("section", { class: "d-group", id: `group-${name}`, "aria-labelledby": `title-${name}` }, h("h2", { id: `title-${name}` }, name), h("p", { class: "g-quiet", lang: "en" }, meaning), ...parts.map((one) => one.element)),
    );
    const links = groups.map(([name]) => h("a", { href: `#group-${name}` }, name));
    const found = h("span", { class: "g-quiet", role: "status" });
    const search = h("input", { class: "g-select d-search", type: "search", autocomplete: "off", spellcheck: "false", placeholder: texts.t("contract_search"), "aria-label": texts.t("contract_search"), oninput: filter });

    function filter() {
        const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
        let count = 0;
        groups.forEach(([, , parts], index) => {
            let some = false;
            for (const part of parts) {
                const fits = words.every((word) => part.text.includes(word));
                part.element.hidden = !fits;
                some ||= fits;
                if (fits && part.isOperation) count += 1;
            }
            sections[index].hidden = links[index].hidden = !some;
        });
        setText(found, words.length ? texts.t("contract_found", { count }) : "");
    }

    const download = async () => {
        const address = URL.createObjectURL(new Blob([JSON.stringify(spec, null, 1)], { type: "application/json" }));
        h("a", { href: address, download: "openapi.json" }).click();
        URL.revokeObjectURL(address);
    };
    return [
        h(
            "div",
            { class: "d-lead" },
            h("p", {}, texts.t("contract_lead", { version: spec.info.version })),
            h("p", { class: "g-quiet", lang: "en" }, spec.info.description),
            h("p", { class: "g-line g-more" }, search, h("button", { type: "button", class: "g-button", onclick: download }, "openapi.json"), found),
        ),
        h("div", { class: "d-columns" }, h("nav", { class: "d-groups", "aria-label": texts.t("contract_groups") }, ...links), h("div", {}, ...sections)),
    ];
}

function operationsOf(spec, tag, base) {
    const origin = location.origin + base.replace(/\/guarded$/, "");
    return Object.entries(spec.paths).flatMap(([path, item]) =>
        Object.entries(item)
            .filter(([, one]) => one.tags.includes(tag))
            .map(([method, one]) => ({ path, method, address: origin + path, ...one })),
    );
}

/** One route, filled when it is first opened. */
function operation(one, spec, texts) {
    const inside = h("div", { class: "d-inside" });
    const element = h(
        "details",
        { class: "d-operation", id: one.operationId, ontoggle: () => element.open && !inside.firstChild && inside.append(...described(one, spec, texts)) },
        h(
            "summary",
            {},
            h("span", { class: "d-method", "data-method": one.method }, one.method.toUpperCase()),
            h("code", { class: "d-path" }, one.path),
            h("span", { class: "d-type", lang: "en" }, ...coded(one.summary)),
        ),
        inside,
    );
    const text = JSON.stringify([one.method, one.path, one.operationId, one.summary, one.description, Object.values(one.responses).map((answer) => answer.description)]).toLowerCase();
    return { element, text, isOperation: true };
}

function described(one, spec, texts) {
    const parts = [];
    if (one.description) parts.push(h("p", { lang: "en" }, ...coded(one.description)));
    parts.push(h("p", { class: "g-quiet" }, texts.t(one.security.some((way) => Object.keys(way).length) ? "contract_key" : "contract_open")));
    if (one.parameters) {
        parts.push(h("h3", {}, texts.t("contract_parameters")));
        parts.push(h("ul", { class: "g-plain d-fields" }, ...one.parameters.map((given) => parameter(given, spec, texts))));
    }
    for (const [media, body] of Object.entries(one.requestBody?.content ?? {})) {
        parts.push(h("h3", {}, texts.t("contract_body"), " ", h("code", {}, media)), contents(body.schema, spec, texts));
    }
    parts.push(h("h3", {}, texts.t("contract_answers")), h("ul", { class: "g-plain d-answers" }, ...Object.entries(one.responses).map(([status, answer]) => answered(status, answer, spec, texts))));
    parts.push(h("h3", {}, "curl"), h("pre", { tabindex: "0", "aria-label": "curl" }, curl(one)));
    return parts;
}

function parameter(given, spec, texts) {
    const must = given.required ? [" ", h("span", { class: "d-must" }, texts.t("contract_must"))] : [];
    return h(
        "li",
        {},
        h("code", { class: "d-name" }, given.name),
        " ",
        h("span", { class: "d-type" }, `${texts.t(`contract_in_${given.in}`)} · ${showType(given.schema, spec, texts)}`),
        ...must,
        given.description ? h("div", { lang: "en" }, ...coded(given.description)) : null,
    );
}

function answered(status, answer, spec, texts) {
    const bodies = Object.entries(answer.content ?? {}).map(([media, body]) =>
        h("div", {}, h("code", {}, media), " ", body.schema ? contents(body.schema, spec, texts) : null),
    );
    return h("li", {}, h("span", { class: Number(status) < 400 ? "d-status g-good" : "d-status g-bad" }, status), " ", h("span", { lang: "en" }, ...coded(answer.description)), ...bodies);
}

function shape(name, schema, spec, texts) {
    const inside = h("div", { class: "d-inside" });
    const element = h(
        "details",
        { class: "d-operation", id: `schema-${name}`, ontoggle: () => element.open && !inside.firstChild && inside.append(contents(schema, spec, texts, { open: true })) },
        h("summary", {}, h("code", { class: "d-path" }, name), h("span", { class: "d-type", lang: "en" }, ...coded(schema.description ?? ""))),
        inside,
    );
    return { element, text: `${name} ${schema.description ?? ""}`.toLowerCase(), isOperation: false };
}

/** As one would type it; a body is for the reader to write. */
function curl(one) {
    const method = one.method === "get" || (one.method === "post" && one.requestBody) ? "" : ` -X ${one.method.toUpperCase()}`;
    const body = one.requestBody?.content["application/json"] ? " -H 'Content-Type: application/json' -d @body.json" : one.requestBody ? " --data-binary @file" : "";
    return `curl${method} -H "Authorization: Bearer $KEY"${body} '${one.address}'`;
}

/** A text of the contract; what stands in `backticks` as code. */
export function coded(text) {
    return text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}
