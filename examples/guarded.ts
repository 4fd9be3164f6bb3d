/**
 * A client for ComfyUI-Guarded in one file. Copy it; it needs nothing but `fetch` (Node 18, Deno, Bun, browsers).
 *
 *     const guarded = new Guarded("https://gpu.example.org", key);
 *     try {
 *       const job = await guarded.run("sdxl_face", { photo, prompt: "an astronaut" }, { key: orderId, onUpdate: show });
 *       const picture = await guarded.fetch(job.artifacts[0]);
 *     } catch (error) {
 *       if (error instanceof GuardedError && error.refund) giveBack(orderId);
 *     }
 *
 * Everything is repeated until it is answered: over broken connections, restarts of the server and proxies' error pages,
 * and after `Retry-After` while the server says "later". A repeated submit carries the same `Idempotency-Key`, so it
 * makes one job. Record the key before the first submit, and a process that was killed simply calls `run` again.
 */

export type State = "queued" | "dispatched" | "running" | "validating" | "succeeded" | "failed" | "cancelled";

/** A result file. `url` is below the server's own address. */
export interface Artifact {
  index: number;
  node_id: string;
  kind: string;
  filename: string;
  bytes: number;
  sha256: string;
  width: number | null;
  height: number | null;
  url: string;
  /** The copy in another format; its `url` is null where there is none. */
  converted?: { url: string | null; mime: string } | null;
  /** The file itself, within an answer about its job that was asked to bring it. */
  inline?: { base64: string | null; mime: string };
}

/** What bots need of the contract's `Job`; it has more. */
export interface Job {
  job_id: string;
  state: State;
  position: number | null;
  eta_s: number | null;
  template: string | null;
  created_at_ms: number;
  settled_at_ms: number | null;
  artifacts: Artifact[];
  error: { code: string; message: string; user_message: string; retryable: boolean } | null;
  refund: boolean | null;
  metadata: Record<string, unknown>;
  user: string | null;
  idempotency_key: string | null;
  retry_of: string | null;
}

/** The contract's `Refusal`. */
export interface Refusal {
  error: { type: string; message: string; details: string; extra_info: Record<string, unknown> };
  guard: {
    code: string;
    user_message: string;
    refund?: boolean;
    retryable: boolean;
    retry_after_s: number | null;
    job_id: string | null;
  };
}

export interface Submitted {
  prompt_id: string;
  guard: { state: State; position: number | null; eta_s: number | null; user_message: string | null };
}

export type Update =
  | { kind: "state"; job: Job }
  | { kind: "position"; position: number; eta_s: number | null; user_message: string | null }
  | { kind: "progress"; percent: number }
  | { kind: "away" }
  | { kind: "back" };

/** There is no result. */
export class GuardedError extends Error {
  constructor(
    message: string,
    /** The server's code, such as `no_face`; null where it has not answered. */
    readonly code: string | null,
    readonly userMessage: string | null,
    /** Give back what was taken for the job. Null where only the server knows whether there is a job. */
    readonly refund: boolean | null,
    readonly jobId: string | null,
  ) {
    super(message);
  }
}

/** The server refuses for good, or ("busy") for longer than the caller waits. */
export class RefusedError extends GuardedError {
  constructor(
    readonly status: number,
    readonly refusal: Refusal,
  ) {
    const guard = refusal.guard;
    super(refusal.error.message, guard.code, guard.user_message, guard.refund ?? null, guard.job_id);
  }
}

/** The server has not answered for longer than the caller waits. */
export class AwayError extends GuardedError {
  constructor(reason: string, jobId: string | null = null) {
    super(`The server does not answer: ${reason}`, null, null, null, jobId);
  }
}

/** The job ended without a result: it failed, or somebody cancelled it. */
export class FailedError extends GuardedError {
  constructor(readonly job: Job) {
    super(job.error!.message, job.error!.code, job.error!.user_message, job.refund, job.job_id);
  }
}

export interface Patience {
  /** How long to repeat what the server answers with "later", in seconds. */
  busyS?: number;
  /** How long to repeat what it does not answer. */
  awayS?: number;
  /** After how long without the server to say so. */
  noticeS?: number;
}

export interface SubmitOptions {
  /** The `Idempotency-Key`: the same key and arguments return the first job. */
  key: string;
  /** Your own name for your user; users take turns. */
  user?: string;
  locale?: string;
  metadata?: Record<string, unknown>;
  /** Further fields of the request's `guard`. */
  guard?: Record<string, unknown>;
}

export type OnUpdate = (update: Update) => void | Promise<void>;
type Graph = Record<string, { class_type: string; inputs: Record<string, unknown> }>;
type Asked = { body?: () => RequestInit["body"]; headers?: Record<string, string>; busyS?: number; awayS?: number };

const sleep = (seconds: number) => new Promise<void>((done) => setTimeout(done, seconds * 1000));
const now = () => Date.now() / 1000;

export class Guarded {
  private readonly url: string;
  private readonly headers: Record<string, string>;
  private readonly busyS: number;
  private readonly awayS: number;
  private readonly noticeS: number;

  constructor(url: string, key = "", patience: Patience = {}) {
    this.url = url.replace(/\/+$/, "");
    this.headers = key ? { Authorization: `Bearer ${key}` } : {};
    this.busyS = patience.busyS ?? 120;
    this.awayS = patience.awayS ?? Infinity;
    this.noticeS = patience.noticeS ?? 15;
  }

  /**
   * Submit a job, follow it, and return it once it has succeeded.
   *
   * @throws RefusedError, AwayError, FailedError: there is no result; `refund` says what to give back.
   */
  async run(
    what: string | Graph,
    parameters: Record<string, unknown>,
    options: SubmitOptions & { onUpdate?: OnUpdate },
  ): Promise<Job> {
    const { onUpdate, ...rest } = options;
    const job = await this.follow((await this.submit(what, parameters, rest)).prompt_id, onUpdate);
    if (job.error) throw new FailedError(job);
    return job;
  }

  /**
   * Submit a template by its name, or a graph in API format.
   *
   * @param parameters The template's. What is a `Blob` or `Uint8Array` is sent as a file; a graph takes files only, and
   *   names each in a loader by the same name.
   */
  async submit(what: string | Graph, parameters: Record<string, unknown>, options: SubmitOptions): Promise<Submitted> {
    const isFile = (value: unknown) => value instanceof Blob || value instanceof Uint8Array;
    const entries = Object.entries(parameters);
    const plain = Object.fromEntries(entries.filter(([, value]) => !isFile(value)));
    const { key, user, locale, metadata, guard } = options;
    const fields: Record<string, unknown> = { guard: { user, locale, metadata, ...guard } };
    if (typeof what === "string") fields.parameters = plain;
    else if (Object.keys(plain).length) throw new TypeError(`a graph takes files only, not ${Object.keys(plain)}`);
    else fields.prompt = what;
    const body = () => {
      const form = new FormData();
      for (const [name, value] of Object.entries(fields)) form.append(name, JSON.stringify(value));
      for (const [name, value] of entries.filter(([, value]) => isFile(value)))
        form.append(name, value instanceof Blob ? value : new Blob([value as unknown as BlobPart]), name);
      return form;
    };
    const path = typeof what === "string" ? `/guarded/workflows/${encodeURIComponent(what)}` : "/guarded/prompt";
    const headers = { "Idempotency-Key": key, ...(locale ? { "Accept-Language": locale } : {}) };
    return this.json<Submitted>("POST", path, { body, headers });
  }

  /**
   * Follow a job until it has settled, and return it.
   *
   * @throws RefusedError (`not_found`), AwayError
   */
  async follow(jobId: string, onUpdate: OnUpdate = () => {}): Promise<Job> {
    const path = `/guarded/jobs/${encodeURIComponent(jobId)}`;
    let goneSince: number | null = null;
    let isAway = false;
    let failure: unknown;
    const heard = async (update: Update) => {
      goneSince = null;
      try {
        if (isAway) await onUpdate({ kind: "back" });
        isAway = false;
        await onUpdate(update);
      } catch (error) {
        throw (failure = error);
      }
    };
    for (;;) {
      try {
        // Each stream begins with the job as it is, so nothing is missed, even where the server has come back with an
        // older database.
        const response = await this.once("GET", `${path}/events`, {});
        for await (const event of readEvents(response.body!)) {
          const data = JSON.parse(event.data!);
          if (event.event === "state") {
            await heard({ kind: "state", job: data });
            if (data.settled_at_ms !== null) return data;
          } else if (event.event === "position" || event.event === "progress")
            await heard({ kind: event.event, ...data });
        }
      } catch (error) {
        if (failure !== undefined && error === failure) throw error;
        if (error instanceof RefusedError && !error.refusal.guard.retryable) throw error;
        if (error instanceof RefusedError) goneSince = null;
        else if (!isBroken(error)) throw error;
      }
      goneSince ??= now();
      if (now() - goneSince > this.awayS) throw new AwayError("it has been away for too long", jobId);
      if (!isAway && now() - goneSince > this.noticeS) {
        isAway = true;
        await onUpdate({ kind: "away" });
      }
      await sleep(1);
    }
  }

  get(jobId: string): Promise<Job> {
    return this.json<Job>("GET", `/guarded/jobs/${encodeURIComponent(jobId)}`, { busyS: Infinity });
  }

  /** Cancel the job, unless it has ended, and return it as it is then. */
  cancel(jobId: string): Promise<Job> {
    return this.json<Job>("DELETE", `/guarded/jobs/${encodeURIComponent(jobId)}`, { busyS: Infinity });
  }

  /** Go through all jobs that match, newest first: `{ user: "7", created_after_ms: 0, "metadata.order": 7 }`. */
  async *jobs(filters: Record<string, string | number | boolean> = {}): AsyncGenerator<Job> {
    const query = new URLSearchParams({ limit: "500" });
    for (const [name, value] of Object.entries(filters)) query.set(name, String(value));
    for (;;) {
      const page = await this.json<{ jobs: Job[]; next: number | null }>("GET", `/guarded/jobs?${query}`, {
        busyS: Infinity,
      });
      yield* page.jobs;
      if (page.next === null) return;
      query.set("before", String(page.next));
    }
  }

  /** The bytes of a job's artifact: of its copy, where it has one, and from the answer itself, where they came with it. */
  async fetch(artifact: Pick<Artifact, "url" | "converted" | "inline">): Promise<Uint8Array> {
    if (artifact.inline?.base64) return Uint8Array.from(atob(artifact.inline.base64), (c) => c.charCodeAt(0));
    return this.ask("GET", artifact.converted?.url ?? artifact.url, { busyS: Infinity }, async (r) => new Uint8Array(await within(600, r.arrayBuffer())));
  }

  /** Ask whether a photo shows a face. Throws RefusedError with the words for the user. */
  async checkFace(photo: Blob | Uint8Array, locale?: string): Promise<void> {
    const headers: Record<string, string> = { "Content-Type": "application/octet-stream" };
    if (locale) headers["Accept-Language"] = locale;
    await this.json("POST", "/guarded/face-check", { body: () => photo as unknown as BodyInit, headers });
  }

  private json<T>(method: string, path: string, asked: Asked): Promise<T> {
    return this.ask(method, path, asked, (response) => within(60, response.json() as Promise<T>));
  }

  /** Send a request until it is answered, and its answer is read to the end. */
  private async ask<T>(
    method: string,
    path: string,
    asked: Asked,
    read: (response: Response) => Promise<T>,
  ): Promise<T> {
    const busySince = now();
    let awaySince = now();
    let pauseS = 0.5;
    for (;;) {
      try {
        return await read(await this.once(method, path, asked));
      } catch (error) {
        if (error instanceof RefusedError) {
          const guard = error.refusal.guard;
          const afterS = guard.retry_after_s ?? 1;
          if (!guard.retryable || now() + afterS > busySince + (asked.busyS ?? this.busyS)) throw error;
          awaySince = now() + afterS;
          await sleep(afterS);
        } else if (!isBroken(error)) throw error;
        else if (now() > awaySince + (asked.awayS ?? this.awayS)) throw new AwayError(String(error));
        else {
          await sleep(pauseS);
          pauseS = Math.min(pauseS * 1.5, 5);
        }
      }
    }
  }

  /** One attempt. Throws RefusedError, or what `isBroken` knows. */
  private async once(method: string, path: string, asked: Asked): Promise<Response> {
    const headers = { ...this.headers, ...asked.headers };
    const coming = fetch(this.url + path, { method, headers, body: asked.body?.() });
    const response = await within(asked.body ? 600 : 60, coming);
    if (response.ok) return response;
    const refusal = (await response.json().catch(() => null)) as Refusal | null;
    if (!refusal?.guard) throw new BrokenError(`${response.status} ${response.statusText}`); // a proxy's page, say
    throw new RefusedError(response.status, refusal);
  }
}

class BrokenError extends Error {}

/** Whether no answer came, or half of one: `fetch` says all of that with a TypeError, a cut-off JSON a SyntaxError. */
function isBroken(error: unknown): boolean {
  return error instanceof BrokenError || error instanceof TypeError || error instanceof SyntaxError;
}

/**
 * What comes within so many seconds; else BrokenError. Where a connection breaks at a bad moment, Node's `fetch` never
 * answers and keeps nothing alive: without this timer Node would end, with its exit status 13.
 */
async function within<T>(seconds: number, coming: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new BrokenError(`nothing came within ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([coming, silence]).finally(() => clearTimeout(timer));
}

/** The events of a stream that have data. A stream that says nothing for 45 s, not even its heartbeat, is broken. */
async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<Record<string, string>> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await within(45, reader.read());
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop()!;
      for (const block of blocks) {
        const event = Object.fromEntries(
          block.split(/\r?\n/).map((line) => line.split(/: (.*)/s).slice(0, 2) as [string, string]),
        );
        if (event.data) yield event;
      }
    }
  } finally {
    void reader.cancel().catch(() => {});
  }
}
