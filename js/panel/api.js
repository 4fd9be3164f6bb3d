// The guard's routes as the panel asks them: JSON, the event stream, pictures.

/** An answer that is no success, with its JSON where it has one, or no answer at all (status 0). */
export class ApiError extends Error {
    constructor(status, message, body = null) {
        super(message);
        this.status = status;
        this.body = body;
    }
}

const RETRY_MS = 1000;
const RETRY_AT_MOST_MS = 15000;

export class Api {
    /**
     * `base` is where `/guarded` lies, without a slash at the end. `language` is that of the users' texts.
     * `key` is empty where none is needed; it is sent in a header and never in an address.
     */
    constructor(base, { language = "en", key = "" } = {}) {
        this.base = base;
        this.language = language;
        this.key = key;
    }

    get(path) {
        return this.ask("GET", path);
    }

    async ask(method, path, init = {}) {
        const answer = await this.fetched(method, path, init);
        return answer.json();
    }

    async fetched(method, path, init = {}) {
        const headers = { "Accept-Language": this.language, ...init.headers };
        if (this.key) headers.Authorization = `Bearer ${this.key}`;
        let answer;
        try {
            answer = await fetch(this.base + path, { cache: "no-store", ...init, method, headers });
        } catch (error) {
            if (error.name === "AbortError") throw error;
            throw new ApiError(0, error.message);
        }
        if (answer.ok) return answer;
        let body = null;
        try {
            body = await answer.json();
        } catch {
            // A proxy's page, say.
        }
        throw new ApiError(answer.status, body?.error?.message || `${answer.status} ${answer.statusText}`, body);
    }

    /** The address of an artifact, or of a small picture of it. */
    artifact(job, index, query = "") {
        return `${this.base}/jobs/${encodeURIComponent(job.job_id)}/artifacts/${index}${query}`;
    }

    /** The same with a token, where a key is needed: for a tab of its own, which can send no header. */
    async openable(job, index) {
        const address = this.artifact(job, index);
        if (!this.key) return address;
        const path = `/guarded${address.slice(this.base.length)}`;
        const { token } = await this.ask("POST", "/tokens", { body: JSON.stringify({ path }) });
        return `${address}?token=${encodeURIComponent(token)}`;
    }

    /**
     * A picture for an `<img>`: its address, or where a key is needed (an address cannot carry it) its bytes.
     * The one who gets a `blob:` address gives it back by URL.revokeObjectURL.
     */
    async picture(job, index, query) {
        const address = this.artifact(job, index, query);
        if (!this.key) return address;
        const answer = await this.fetched("GET", address.slice(this.base.length), { cache: "default" });
        return URL.createObjectURL(await answer.blob());
    }

    /**
     * The event stream, opened again whenever it breaks, from where it broke. EventSource cannot send a key.
     *
     * `on.event(name, data)`, `on.open()`, `on.broken(error)`; the stream ends for good with `signal`, or with an
     * answer that trying again does not change (401, 403, 404), which goes to `on.refused(error)`.
     */
    async events(path, on, signal) {
        let last = "";
        let wait_ms = RETRY_MS;
        while (!signal.aborted) {
            try {
                const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
                const answer = await this.fetched("GET", path, { headers, signal });
                wait_ms = RETRY_MS;
                on.open();
                for await (const message of messages(answer.body)) {
                    if (message.id) last = message.id;
                    if (message.data) on.event(message.event || "message", JSON.parse(message.data));
                }
                throw new ApiError(0, "the stream has ended");
            } catch (error) {
                if (signal.aborted) return;
                if ([401, 403, 404, 405].includes(error.status)) return on.refused(error);
                on.broken(error);
            }
            await new Promise((resolve) => {
                const timer = setTimeout(resolve, wait_ms);
                signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
            });
            wait_ms = Math.min(2 * wait_ms, RETRY_AT_MOST_MS);
        }
    }
}

/** Server-sent events out of a body: `{event, id, data}`, comments left out. */
async function* messages(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let message = {};
    for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
        rest = lines.pop();
        for (const line of lines) {
            if (!line) {
                if ("data" in message || "id" in message) yield message;
                message = {};
                continue;
            }
            const [, field, text] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
            if (field === "data" && "data" in message) message.data += `\n${text ?? ""}`;
            else if (field) message[field] = text ?? "";
        }
    }
}
