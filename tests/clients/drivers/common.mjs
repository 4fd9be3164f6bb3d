// What every driver is told and does; see common.py. The packages are those of the working directory.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

export const load = createRequire(process.cwd() + "/");

export async function main(run) {
  const [url, ...graphs] = process.argv.slice(2);
  for (const graph of graphs) {
    try {
      const picture = await run(new URL(url), JSON.parse(readFileSync(graph, "utf8")));
      writeFileSync(`${graph}.picture`, Buffer.from(picture ?? ""));
    } catch (error) {
      writeFileSync(`${graph}.error`, String(error));
    }
  }
  process.exit(0);
}
