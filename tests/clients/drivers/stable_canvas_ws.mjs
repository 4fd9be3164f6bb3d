import { randomUUID } from "node:crypto";
import { load, main } from "./common.mjs";

const { Client } = load("@stable-canvas/comfyui-client");

await main(async (url, graph) => {
  const client = new Client({
    api_host: url.host,
    api_base: url.pathname.replace(/\/$/, ""),
    clientId: randomUUID(),
    WebSocket: load("ws"),
    fetch,
  });
  await client.connect();
  try {
    const { images } = await client.enqueue(graph);
    for (const image of images) {
      return image.type === "buff" ? image.data : await (await fetch(image.data)).arrayBuffer();
    }
  } finally {
    client.close();
  }
});
