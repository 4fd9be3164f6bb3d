// Run one job with examples/guarded.ts: a process that a test may kill. Prints what it hears, then how it ended.
import { readFileSync, writeFileSync } from "node:fs";
import { Guarded, GuardedError } from "./guarded.js";

const [url, key, order, graph, photo, to] = process.argv.slice(2);
const guarded = new Guarded(url, key, { noticeS: 0.5 });
let ended: object;
try {
  const job = await guarded.run(
    JSON.parse(readFileSync(graph, "utf8")),
    { photo: new Uint8Array(readFileSync(photo)) },
    {
      key: order,
      user: "7",
      metadata: { order },
      onUpdate: (update) =>
        console.log(JSON.stringify({ kind: update.kind, state: update.kind === "state" ? update.job.state : null })),
    },
  );
  writeFileSync(to, await guarded.fetch(job.artifacts[0]));
  ended = { job_id: job.job_id, state: job.state, refund: job.refund };
} catch (error) {
  if (!(error instanceof GuardedError)) throw error;
  ended = { code: error.code, refund: error.refund, job_id: error.jobId };
}
const found: string[] = [];
for await (const job of guarded.jobs({ user: "7", "metadata.order": order })) found.push(job.job_id);
console.log(JSON.stringify({ ...ended, found }));
