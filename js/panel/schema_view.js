// A schema of the contract as a list of fields; what it refers to opens in place, however deep.

import { h } from "./dom.js";

const LIMITS = [
    ["minimum", "≥"],
    ["exclusiveMinimum", ">"],
    ["maximum", "≤"],
    ["exclusiveMaximum", "<"],
];

/** A type in a few words: `integer ≥ 1`, `array of Job`, `string or null`. */
export function showType(schema, spec, texts) {
    if (!schema || schema === true || !Object.keys(schema).length) return texts.t("contract_any");
    if (schema.$ref) return nameOf(schema);
    const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
    if (choices) return [...new Set(choices.map((one) => showType(one, spec, texts)))].join(` ${texts.t("contract_or")} `);
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
    if (schema.type === "array") return texts.t("contract_list", { of: showType(schema.items, spec, texts) });
    if (schema.type === "object" && !schema.properties && schema.additionalProperties) return texts.t("contract_map", { of: showType(schema.additionalProperties, spec, texts) });
    const limits = LIMITS.filter(([name]) => schema[name] !== undefined).map(([name, sign]) => `${sign} ${schema[name]}`);
    if (schema.maxLength !== undefined) limits.push(texts.t("contract_length", { n: schema.maxLength }));
    if (schema.maxItems !== undefined) limits.push(texts.t("contract_items", { n: schema.maxItems }));
    const type = Array.isArray(schema.type) ? schema.type.join(" | ") : (schema.type ?? texts.t("contract_any"));
    return [schema.format ? `${type} (${schema.format})` : type, limits.join(" ")].filter(Boolean).join(" ");
}

/** What is in a value of the schema: its fields, or the types that it refers to, closed unless `open`. */
export function contents(schema, spec, texts, { open = false } = {}) {
    const inner = innerOf(schema);
    if (inner.length !== 1 || inner[0] !== schema) {
        const said = h("span", { class: "d-type" }, showType(schema, spec, texts));
        return h("div", {}, said, ...inner.map((one) => unfolding(one, spec, texts)));
    }
    return open || !schema.$ref ? fields(resolve(schema, spec), spec, texts) : unfolding(schema, spec, texts);
}

/** The parts of a schema that have something to show: types with names, and objects with fields. */
function innerOf(schema) {
    if (!schema || schema === true) return [];
    if (schema.$ref || schema.properties) return [schema];
    const parts = [...(schema.anyOf ?? schema.oneOf ?? schema.allOf ?? []), schema.items, schema.additionalProperties];
    return parts.filter((one) => one && one !== true).flatMap(innerOf);
}

/** Filled when it is opened: a type may refer to itself. */
function unfolding(schema, spec, texts) {
    const name = schema.$ref ? nameOf(schema) : texts.t("contract_fields");
    const element = h(
        "details",
        { ontoggle: () => element.open && element.childElementCount === 1 && element.append(fields(resolve(schema, spec), spec, texts)) },
        h("summary", {}, schema.$ref ? h("code", {}, name) : name),
    );
    return element;
}

function fields(schema, spec, texts) {
    if (!schema.properties) return h("div", {}, h("span", { class: "d-type" }, showType(schema, spec, texts)), ...innerOf(schema).map((inner) => unfolding(inner, spec, texts)));
    const must = new Set(schema.required ?? []);
    return h(
        "ul",
        { class: "g-plain d-fields" },
        ...Object.entries(schema.properties).map(([name, one]) =>
            h(
                "li",
                {},
                h("code", { class: "d-name" }, name),
                " ",
                h("span", { class: "d-type" }, showType(one, spec, texts)),
                ...(must.has(name) ? [" ", h("span", { class: "d-must" }, texts.t("contract_must"))] : []),
                ...(one.default !== undefined && one.default !== null ? [" ", h("span", { class: "d-type" }, `= ${JSON.stringify(one.default)}`)] : []),
                one.description ? h("div", { lang: "en" }, one.description) : null,
                ...innerOf(one).map((inner) => unfolding(inner, spec, texts)),
            ),
        ),
    );
}

function resolve(schema, spec) {
    return schema.$ref ? spec.components.schemas[nameOf(schema)] : schema;
}

const nameOf = (schema) => schema.$ref.split("/").at(-1);
