// What the panel says, in the reader's language: texts, numbers, times.

export const LANGUAGES = ["en", "ru"];

/** The first of the wanted languages that there are texts for; English where there is none. */
export function chosen(wanted) {
    for (const tag of wanted) {
        const language = String(tag ?? "").toLowerCase().split("-")[0];
        if (LANGUAGES.includes(language)) return language;
    }
    return "en";
}

export async function load(language) {
    const answer = await fetch(new URL(`./${language}.json`, import.meta.url));
    if (!answer.ok) throw new Error(`no texts: ${answer.status}`);
    return new Texts(language, await answer.json());
}

const UNITS_S = [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
    ["second", 1],
];

/** What manifests say of licences besides their names. */
const REMARKS = {
    "commercial use allowed": "licence_commercial",
    "below 10 million dollars of yearly revenue": "licence_revenue",
    "some uses forbidden": "licence_forbidden",
    "non-commercial": "licence_non_commercial",
    "research only": "licence_research",
    "without a licence from InsightFace": "licence_insightface",
    "download model.safetensors and rename it": "licence_rename",
    "the 9B": "licence_nine",
};

export class Texts {
    constructor(language, table) {
        this.language = language;
        this.table = table;
        this.plurals = new Intl.PluralRules(language);
        this.numbers = new Intl.NumberFormat(language, { maximumFractionDigits: 1 });
        this.percents = new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 });
        this.relative = new Intl.RelativeTimeFormat(language, { style: "short" });
        this.clocks = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit" });
        this.moments = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" });
    }

    /** The text of a key; `{name}` is filled in from `facts`, `count` chooses between plural forms. */
    t(key, facts = {}) {
        let text = this.table[key] ?? key;
        if (typeof text === "object") text = text[this.plurals.select(facts.count)] ?? text.other;
        return text.replace(/\{(\w+)\}/g, (_whole, name) =>
            typeof facts[name] === "number" ? this.number(facts[name]) : String(facts[name] ?? ""),
        );
    }

    /** The text of a key that may be missing: a state or code that this version does not know. */
    known(key, otherwise) {
        return key in this.table ? this.t(key) : otherwise;
    }

    number(value) {
        return this.numbers.format(value);
    }

    percent(share) {
        return this.percents.format(share);
    }

    /** A licence, with what its manifest says of it in the reader's language. */
    licence(text) {
        return Object.entries(REMARKS).reduce((said, [remark, key]) => said.replaceAll(remark, this.t(key)), text);
    }

    /** 1024 to the next unit, as nvidia-smi and most file managers count. */
    bytes(count) {
        const units = ["unit_b", "unit_kb", "unit_mb", "unit_gb", "unit_tb"];
        let unit = 0;
        while (count >= 1024 && unit < units.length - 1) {
            count /= 1024;
            unit += 1;
        }
        return `${this.number(count >= 100 ? Math.round(count) : count)} ${this.t(units[unit])}`;
    }

    /** A length of time in words: 0.4 s, 41 s, 3 min 20 s, 2 h 5 min. */
    duration(seconds) {
        if (seconds < 0.1) return `< ${this.t("seconds", { n: 0.1 })}`;
        if (seconds < 59.5) return this.t("seconds", { n: seconds < 10 ? seconds : Math.round(seconds) });
        const whole = Math.round(seconds);
        if (whole < 3600) return this.t("minutes_seconds", { m: Math.floor(whole / 60), s: whole % 60 });
        return this.t("hours_minutes", { h: Math.floor(whole / 3600), m: Math.floor((whole % 3600) / 60) });
    }

    /** A running clock: 0:41, 12:05, 1:02:03. */
    timer(seconds) {
        const whole = Math.max(Math.floor(seconds), 0);
        const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
        const two = (value) => String(value).padStart(2, "0");
        return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
    }

    /** Seconds from now (negative: ago): "2 min ago", "in 3 hr". */
    ago(seconds) {
        for (const [unit, length] of UNITS_S) {
            if (Math.abs(seconds) >= length) return this.relative.format(Math.trunc(seconds / length), unit);
        }
        return this.t("now");
    }

    clock(ms) {
        return this.clocks.format(ms);
    }

    moment(ms) {
        return this.moments.format(ms);
    }
}
