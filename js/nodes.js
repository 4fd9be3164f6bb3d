// What our nodes show of themselves: after a run the checked pictures with a box around each face, and the verdict; when
// a prompt is refused, which node refused it and why.

import { h, svg } from "./panel/dom.js";

const EVENT = "guarded.node";
const WIDGET = "guarded_verdict";

export function showOnNodes(app, api, texts) {
    api.addEventListener(EVENT, ({ detail }) => {
        const node = found(app, String(detail.node_id));
        if (node) show(node, verdict(detail, texts));
    });
}

/**
 * Where a prompt is refused, no node goes on showing what a photo before that one was told. We listen at `fetchApi`: a
 * wrapper of `queuePrompt` would stand in the stack of each error that ComfyUI shows.
 */
export function showRefusals(app, api, texts) {
    const native = api.fetchApi;
    api.fetchApi = async function (route, options, ...others) {
        const answer = await native.call(this, route, options, ...others);
        if (route === "/prompt" && options?.method === "POST" && !answer.ok) {
            answer.clone().json().then((body) => showRefused(app, refused(body), texts), () => {});
        }
        return answer;
    };
}

function showRefused(app, refusals, texts) {
    if (!refusals.size) return;
    for (const node of shown(app.rootGraph ?? app.graph)) show(node, []);
    for (const [id, { code, message }] of refusals) {
        const node = found(app, id);
        if (node) show(node, verdict({ code, lines: [texts.known(`refused_${code}`, message)], pictures: [] }, texts));
    }
}

/** The nodes of a refused prompt at which we found fault, by id: {code, message}. */
function refused(answer) {
    const refusals = new Map();
    for (const [id, { errors }] of Object.entries(answer?.node_errors ?? {})) {
        for (const { type, details } of errors ?? []) {
            // What our loader answers to ComfyUI's validation: "image - no_face: No face found in cat.png."
            const [, code, message] = (type === "custom_validation_failed" && String(details).match(/^image - ([a-z_]+): (.*)$/s)) || [];
            if (code) refusals.set(id, { code, message });
        }
    }
    const id = answer?.error?.extra_info?.needed_by;
    if (id != null) refusals.set(String(id), { code: answer.error.type, message: answer.error.message });
    return refusals;
}

/** All nodes that show something of ours, also inside subgraphs. */
function* shown(graph) {
    for (const node of graph?._nodes ?? []) {
        if (node.widgets?.some((one) => one.name === WIDGET)) yield node;
        if (node.subgraph) yield* shown(node.subgraph);
    }
}

/** By its id; nodes of subgraphs have the ids of those around them before their own, with colons. */
function found(app, id) {
    let graph = app.rootGraph ?? app.graph;
    let node = null;
    for (const part of id.split(":")) {
        node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
        graph = node?.subgraph;
    }
    return node;
}

function show(node, content) {
    let widget = node.widgets?.find((one) => one.name === WIDGET);
    if (!widget) {
        const element = h("div", { class: "g-node" });
        widget = node.addDOMWidget(WIDGET, WIDGET, element, {
            serialize: false,
            hideOnZoom: false,
            getMinHeight: () => height(element, node.size[0]),
        });
        // Neither in the workflow's file nor in the prompt.
        widget.serialize = false;
    }
    widget.element.replaceChildren(...content);
    widget.element.dataset.pictures = String(widget.element.querySelectorAll("figure").length);
    const needed = node.computeSize();
    node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
    node.setDirtyCanvas?.(true, true);
}

const LINE_PX = 20;
const PICTURE_AT_MOST_PX = 320;

/** What the widget needs in a node of that width: the element itself is scaled with the canvas. */
function height(element, width) {
    const lines = element.querySelectorAll("p, li").length;
    const pictures = [...element.querySelectorAll("figure")].map((figure) =>
        Math.min((width * Number(figure.dataset.height)) / Number(figure.dataset.width), PICTURE_AT_MOST_PX),
    );
    return lines * LINE_PX + pictures.reduce((sum, one) => sum + one + 4, 8);
}

function verdict({ code, lines, pictures }, texts) {
    const kind = code ? "refused" : lines.length ? "warned" : "good";
    const count = pictures.reduce((sum, picture) => sum + picture.faces.length, 0);
    const said = [
        texts.t(`verdict_${kind}`),
        code,
        pictures.length > 0 && texts.t("faces_found", { count }),
    ];
    return [
        h("p", { "data-verdict": kind }, said.filter(Boolean).join(" · ")),
        ...(lines.length ? [h("ul", {}, ...lines.map((line) => h("li", {}, line)))] : []),
        ...pictures.map((picture) => boxed(picture, texts)),
    ];
}

function boxed({ image, width, height: high, faces, small_faces }, texts) {
    const box = ([left, top, right, bottom], attributes) =>
        svg("rect", { x: left, y: top, width: right - left, height: bottom - top, ...attributes });
    const size = Math.max(width, high) / 26;
    return h(
        "figure",
        { "data-width": width, "data-height": high },
        h("img", { src: image, alt: texts.t("faces_picture") }),
        svg(
            "svg",
            { viewBox: `0 0 ${width} ${high}`, "aria-hidden": "true" },
            ...small_faces.map((face) => box(face.box, { class: "g-small-face" })),
            ...faces.flatMap((face) => [
                box(face.box, {}),
                svg(
                    "text",
                    { x: face.box[0], y: Math.max(face.box[1] - size * 0.35, size), "font-size": size },
                    texts.percent(Math.round(face.confidence * 100) / 100),
                ),
            ]),
        ),
    );
}
