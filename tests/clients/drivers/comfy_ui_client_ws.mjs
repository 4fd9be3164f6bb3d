import { randomUUID } from "node:crypto";
import { load, main } from "./common.mjs";

const { ComfyUIClient } = load("comfy-ui-client");

await main(async (url, graph) => {
  const client = new ComfyUIClient(url.host + url.pathname.replace(/\/$/, ""), randomUUID());
  await client.connect();
  const images = await client.getImages(graph);
  await client.disconnect();
  for (const found of Object.values(images)) {
    for (const { blob } of found) return await blob.arrayBuffer();
  }
});
