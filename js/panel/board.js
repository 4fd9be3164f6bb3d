// What the panel knows: open jobs, recent ones, figures, alarms; kept up to date by the event stream, or by asking.

const OPEN = ["queued", "dispatched", "running", "validating"];
const SETTLED = ["succeeded", "failed", "cancelled"];
const RUNNING = ["running", "validating"];

const OPEN_AT_MOST = 500;
export const RECENT_PAGE = 25;
/** One page of the server looks at a thousand jobs: a search that finds little asks for so many, then waits to be asked. */
const SEARCHED_PAGES = 20;
const NO_FILTER = { state: "", code: "", owner: "", template: "", text: "", created_after_ms: "", created_before_ms: "" };
const RECENT_AT_MOST = 1000;
const STATS_EVERY_MS = 5000;
const POLL_EVERY_MS = 2000;
/** Twenty events a second are one picture. */
const SHOWN_EVERY_MS = 100;
const ALARMS_PAGE = 50;
const HOUR_MS = 3600e3;
const DOCTOR_EVERY_MS = 300e3;
/** An alarm is told before it is on disk. */
const ALARM_WRITTEN_MS = 300;

export const settled = (job) => SETTLED.includes(job.state);

/** Whether the package is off: it is not there, or could not start, of which every answer then speaks. */
const isOff = (error) => error.status === 404 || error.body?.error?.extra_info?.off === true;

export class Board {
    constructor(api) {
        this.api = api;
        /** `starting`, `live` (the stream is open), `polling` (there is none), `offline`, `locked` (a key is needed), `off` (ComfyUI has the files, but the guard did not start). */
        this.link = "starting";
        this.open = new Map();
        this.recent = new Map();
        /** What the recent jobs are like that are shown; an empty text: anything. */
        this.filter = { ...NO_FILTER };
        this.searching = false;
        /** The time span of the figures. */
        this.window = "24h";
        this.older = null;
        this.stats = null;
        this.janitor = null;
        /** What the doctor says; asked now and then, since it takes a while. */
        this.doctor = null;
        this.doctor_due_ms = 0;
        /** How busy the machine was. */
        this.machine = null;
        this.ready = null;
        /** Timeouts, replaced workers, full disks: the newest first, and how many of all nobody has seen. */
        this.alarms = [];
        this.unseen = 0;
        this.clock_ms = 0;
        this.listeners = new Set();
        this.alarmed = new Set();
        this.stopping = null;
        this.meanwhile = null;
        this.rendering = false;
    }

    /** The server's clock, in milliseconds since the epoch. */
    now() {
        return Date.now() + this.clock_ms;
    }

    get running() {
        return [...this.open.values()]
            .filter((job) => RUNNING.includes(job.state))
            .sort((a, b) => a.started_at_ms - b.started_at_ms);
    }

    get waiting() {
        const place = (job) => (job.state === "dispatched" ? 0 : job.position ?? Infinity);
        return [...this.open.values()]
            .filter((job) => !RUNNING.includes(job.state))
            .sort((a, b) => place(a) - place(b) || a.created_at_ms - b.created_at_ms);
    }

    get ended() {
        const at = (job) => job.settled_at_ms ?? Infinity;
        return [...this.recent.values()].sort((a, b) => (at(a) === at(b) ? 0 : at(b) - at(a)));
    }

    /** Hears of changes, a few times a second; the answer ends it. */
    subscribe(listener) {
        this.listeners.add(listener);
        return () => this.listeners.delete(listener);
    }

    /** Hears of each alarm that comes while it listens. */
    onAlarm(listener) {
        this.alarmed.add(listener);
        return () => this.alarmed.delete(listener);
    }

    start() {
        if (this.stopping) return;
        this.stopping = new AbortController();
        // A browser has six connections to a server; a window that nobody looks at must not hold one.
        document.addEventListener("visibilitychange", this.looked, { signal: this.stopping.signal });
        if (!document.hidden) this.connect();
    }

    stop() {
        this.stopping?.abort();
        this.stopping = null;
        this.disconnect();
    }

    looked = () => (document.hidden ? this.disconnect() : this.connect());

    connect() {
        if (this.connection) return;
        const connection = (this.connection = new AbortController());
        const { signal } = connection;
        this.every(STATS_EVERY_MS, () => this.figures(), signal);
        this.api.events(
            "/events",
            {
                open: () => {
                    this.link = "live";
                    // What happened before the stream was open.
                    this.reload();
                },
                event: (name, data) => this.heard(name, data),
                broken: (error) => this.lost(isOff(error) ? "off" : "offline"),
                refused: (error) => {
                    if (error.status === 401) return this.lost("locked");
                    this.link = "polling";
                    this.every(POLL_EVERY_MS, () => this.reload(), signal);
                },
            },
            signal,
        );
    }

    disconnect() {
        this.connection?.abort();
        this.connection = null;
    }

    lost(link) {
        this.link = link;
        if (link === "locked" || link === "off") this.disconnect();
        this.changed();
    }

    async every(ms, act, signal) {
        while (!signal.aborted) {
            await act();
            await new Promise((resolve) => setTimeout(resolve, ms));
        }
    }

    /** Ask for all that is shown. What the stream tells meanwhile is newer than the answer. */
    async reload() {
        const meanwhile = (this.meanwhile = []);
        const filter = this.filter;
        try {
            const [open, recent] = await Promise.all([
                this.api.get(`/jobs?state=${OPEN.join()}&limit=${OPEN_AT_MOST}`),
                this.recentPage(),
            ]);
            this.open = new Map(open.jobs.map((job) => [job.job_id, job]));
            // Whoever has changed the filter meanwhile asks by itself.
            if (filter === this.filter) {
                if (this.recent.size <= RECENT_PAGE && !this.filtered) {
                    this.recent = new Map();
                    this.older = recent.next;
                }
                for (const job of recent.jobs) this.recent.set(job.job_id, job);
            }
            for (const [name, data] of meanwhile) this.take(name, data);
            if (this.link === "offline" || this.link === "starting") this.link = "polling";
        } catch (error) {
            this.failed(error);
        }
        if (this.meanwhile === meanwhile) this.meanwhile = null;
        this.changed();
    }

    async moreRecent() {
        const filter = this.filter;
        this.searching = true;
        this.changed();
        try {
            let found = 0;
            for (let asked = 0; asked < SEARCHED_PAGES && found < RECENT_PAGE && (asked === 0 || this.older); asked += 1) {
                const page = await this.recentPage(this.older);
                if (filter !== this.filter) return;
                for (const job of page.jobs) this.recent.set(job.job_id, job);
                found += page.jobs.length;
                this.older = page.next;
                this.changed();
            }
        } finally {
            if (filter === this.filter) this.searching = false;
            this.changed();
        }
    }

    recentPage(before = null) {
        const { state, ...others } = this.filter;
        const query = new URLSearchParams({ limit: RECENT_PAGE });
        // A search finds what waits and runs, too.
        if (state || !others.text) query.set("state", state || SETTLED.join());
        for (const [name, value] of Object.entries(others)) if (value) query.set(name, value);
        if (before !== null) query.set("before", before);
        return this.api.get(`/jobs?${query}`);
    }

    get filtered() {
        return Object.values(this.filter).some(Boolean);
    }

    fits(job) {
        const { state, code, owner, template, text, created_after_ms, created_before_ms } = this.filter;
        const texts = () => Object.values(job.metadata ?? {}).map((one) => (typeof one === "string" ? one : JSON.stringify(one)));
        return (
            (!state || state === job.state) &&
            (!code || code === job.error?.code) &&
            (!owner || owner === job.owner) &&
            (!template || template === job.template) &&
            (!created_after_ms || job.created_at_ms >= created_after_ms) &&
            (!created_before_ms || job.created_at_ms < created_before_ms) &&
            (!text || [job.job_id, job.idempotency_key, ...texts()].includes(text))
        );
    }

    /** Show only jobs that are like this; what is not said may be anything. */
    async only(filter) {
        this.filter = { ...NO_FILTER, ...filter };
        this.recent = new Map();
        this.older = null;
        await this.moreRecent();
    }

    async figures() {
        const [stats, janitor, ready] = await Promise.all([
            this.optional("/stats"),
            this.optional("/janitor"),
            this.readiness(),
        ]);
        this.stats = stats;
        this.janitor = janitor;
        this.ready = ready;
        if (stats?.worker) await this.loadMachine();
        if (stats?.worker && Date.now() > this.doctor_due_ms) this.loadDoctor();
        if (stats?.now_ms) this.clock_ms = stats.now_ms - Date.now();
        if ((stats?.unseen_alarms ?? this.unseen) !== this.unseen) await this.loadAlarms();
        this.changed();
    }

    /** What this caller may not see, or this server does not have, is null. */
    async optional(path) {
        try {
            return await this.api.get(path);
        } catch (error) {
            if (error.status === 401 || error.status === 0) this.failed(error);
            return null;
        }
    }

    async readiness() {
        try {
            await this.api.get("/ready");
            return { ready: true, problems: [] };
        } catch (error) {
            return error.status === 503 ? { ready: false, problems: error.body?.problems ?? [] } : null;
        }
    }

    failed(error) {
        if (error.status === 401) this.lost("locked");
        else if (isOff(error)) this.lost("off");
        else if (error.status === 0 && this.link !== "live") this.link = "offline";
    }

    heard(name, data) {
        this.meanwhile?.push([name, data]);
        this.take(name, data);
        if (name === "alarm") this.alarm(data);
        if (name === "state" && data.error) this.translate(data);
        this.changed();
    }

    take(name, data) {
        if (name === "state") this.apply(data);
        else if (name === "position") this.merge(data.job_id, { position: data.position, eta_s: data.eta_s });
        else if (name === "progress") this.merge(data.job_id, { progress: data });
    }

    /** The stream speaks the language of the job; an answer that of whoever asks. */
    async translate(job) {
        try {
            this.apply(await this.api.get(`/jobs/${encodeURIComponent(job.job_id)}`));
        } catch {
            return; // the job's own language will do
        }
        this.changed();
    }

    apply(job) {
        if (!settled(job)) {
            this.open.set(job.job_id, { ...this.open.get(job.job_id), ...job });
            if (this.recent.has(job.job_id)) this.recent.set(job.job_id, job);
            return;
        }
        this.open.delete(job.job_id);
        if (!this.fits(job)) return;
        this.recent.set(job.job_id, job);
        if (this.recent.size > RECENT_AT_MOST) {
            // A window that has stood open for days begins anew.
            this.recent = new Map();
            this.reload();
        }
    }

    merge(job_id, facts) {
        const job = this.open.get(job_id);
        if (job) this.open.set(job_id, { ...job, ...facts });
    }

    alarm(data) {
        for (const listener of this.alarmed) listener(data);
        setTimeout(() => this.loadAlarms().then(() => this.changed()), ALARM_WRITTEN_MS);
    }

    /** The samples since the last one, for the last hour. */
    async loadMachine() {
        const earlier = this.machine?.samples ?? [];
        const machine = await this.optional(`/machine?after_ms=${earlier.at(-1)?.at_ms ?? 0}`);
        if (!machine) return;
        const samples = [...earlier, ...machine.samples];
        const since_ms = (samples.at(-1)?.at_ms ?? 0) - HOUR_MS;
        this.machine = { ...machine, samples: samples.filter((sample) => sample.at_ms > since_ms) };
    }

    async loadDoctor() {
        this.doctor_due_ms = Date.now() + DOCTOR_EVERY_MS;
        this.doctor = (await this.optional("/doctor"))?.lines ?? this.doctor;
        this.changed();
    }

    async loadAlarms() {
        const page = await this.optional(`/alarms?limit=${ALARMS_PAGE}`);
        if (page) [this.alarms, this.unseen] = [page.alarms, page.unseen];
    }

    /** Mark alarms as seen: `{ids}`, or all up to one, `{up_to}`. */
    async see(which) {
        await this.api.ask("POST", "/alarms/seen", { body: JSON.stringify(which) });
        await this.loadAlarms();
        this.changed();
    }

    /** Stop or cancel; the answer is the job as it is then. */
    async cancel(job) {
        this.apply(await this.api.ask("DELETE", `/jobs/${encodeURIComponent(job.job_id)}`));
        this.changed();
    }

    /** Cancel many: `{job_ids}`, or all of one, `{owner}`; the answer is how many it were. */
    async cancelMany(which) {
        const { cancelled } = await this.api.ask("POST", "/jobs/cancel", { body: JSON.stringify(which) });
        await this.reload();
        return cancelled;
    }

    changed() {
        if (this.rendering) return;
        this.rendering = true;
        setTimeout(() => requestAnimationFrame(() => {
            this.rendering = false;
            for (const listener of this.listeners) listener(this);
        }), SHOWN_EVERY_MS);
    }
}
