// Elements without markup: whatever is data (file names, owners, node titles) becomes text, never HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `on…` properties are listeners, `class`, `aria-…`, `data-…` and the like are attributes;
 * null and false leave an attribute out. Children: nodes and strings; null and false are left out.
 */
export function h(tag, attributes = {}, ...children) {
    return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
    return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else setAttribute(element, name, value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== false && child !== undefined));
    return element;
}

export function setAttribute(element, name, value) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

/** Writes only what has changed, so that a screen reader is not told the same thing again. */
export function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/** So many new rows are made at once: a frame has time for them. */
const NEW_ROWS = 40;

/**
 * A list whose rows stay the same elements while their data changes: focus, opened details and loaded pictures stay.
 * `make(item)` gives `{element, update(item)}`.
 */
export class Rows {
    constructor(parent, key, make) {
        this.parent = parent;
        this.key = key;
        this.make = make;
        this.rows = new Map();
    }

    /** True where more rows are to be made: call it again, in the next frame. */
    update(items) {
        let made = 0;
        const kept = new Set();
        let next = this.parent.firstElementChild;
        for (const item of items) {
            const key = this.key(item);
            kept.add(key);
            let row = this.rows.get(key);
            if (!row) {
                made += 1;
                if (made > NEW_ROWS) continue;
                this.rows.set(key, (row = this.make(item)));
            }
            row.update(item);
            if (row.element === next) next = next.nextElementSibling;
            else this.parent.insertBefore(row.element, next);
        }
        for (const [key, row] of this.rows) {
            if (kept.has(key)) continue;
            row.element.remove();
            this.rows.delete(key);
        }
        return made > NEW_ROWS;
    }
}

/** A style sheet, once per document. */
export function styled(address) {
    const known = [...document.querySelectorAll("link[rel=stylesheet]")].some((link) => link.href === String(address));
    if (!known) document.head.append(h("link", { rel: "stylesheet", href: address }));
}

/** A button that asks once more before it does something that cannot be taken back. */
export function confirmed(label, question, act, attributes = {}) {
    const QUESTION_STANDS_MS = 4000;
    let timer = null;
    const calm = () => {
        clearTimeout(timer);
        timer = null;
        setText(button, label);
        button.classList.remove("g-asks");
    };
    const button = h(
        "button",
        {
            type: "button",
            class: "g-button",
            ...attributes,
            onclick: async () => {
                if (timer === null) {
                    setText(button, question);
                    button.classList.add("g-asks");
                    timer = setTimeout(calm, QUESTION_STANDS_MS);
                    return;
                }
                calm();
                button.disabled = true;
                try {
                    await act();
                } finally {
                    button.disabled = false;
                }
            },
            onblur: () => timer !== null && calm(),
        },
        label,
    );
    return button;
}
