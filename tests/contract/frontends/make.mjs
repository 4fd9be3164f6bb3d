// Writes down what a frontend takes of /history, /queue, /api/jobs and the websocket, from its own package:
//
//     mkdir -p build/frontends && cd build/frontends
//     npm install zod@3 zod-to-json-schema@3 zod-validation-error@3 esbuild
//     node ../../tests/contract/frontends/make.mjs ~/comfy/frontends/1.58.1 …
//
// Each folder has an unpacked comfyui-frontend-package. Its source maps hold the frontend's zod schemas; esbuild bundles
// them, and they are written as JSON Schema into <version>.json beside this file.

import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, posix } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const { build } = createRequire(join(process.cwd(), "x"))("esbuild");

/** By the name of the constant that the frontend gives it, what it is of. Not every version has all of them. `progress_state` is left
 * out: ComfyUI itself sends null in it where the schema has none, and no frontend holds it against that. */
const WANTED = {
    zTaskItem: "task",
    zJobsListResponse: "jobs",
    zJobDetail: "job",
    zStatusWsMessage: "status",
    zProgressWsMessage: "progress",
    zExecutedWsMessage: "executed",
    zExecutionStartWsMessage: "execution_start",
    zExecutionSuccessWsMessage: "execution_success",
    zExecutionCachedWsMessage: "execution_cached",
    zExecutionInterruptedWsMessage: "execution_interrupted",
    zExecutionErrorWsMessage: "execution_error",
};
/** Stands for modules that have no schemas by their names, or are not in the maps: whatever is asked of it is itself. */
const NOTHING = `const nothing = new Proxy(function () {}, {
    get: (_, key) => (key === Symbol.toPrimitive ? () => "" : nothing), getPrototypeOf: () => nothing });
    module.exports = nothing;`;

for (const folder of process.argv.slice(2)) await write(folder);

async function write(folder) {
    const info = readdirSync(folder).find((name) => /^comfyui_frontend_package-.*dist-info$/.test(name));
    const version = info.match(/-([\d.]+)\.dist-info/)[1];
    const root = join(process.cwd(), version);
    rmSync(root, { recursive: true, force: true });
    const sources = unpack(join(folder, "comfyui_frontend_package", "static"), root);
    const names = Object.keys(WANTED).filter((name) => {
        const path = [...sources.keys()].find((one) => new RegExp(`^(export )?const ${name} =`, "m").test(sources.get(one)));
        if (path && !sources.get(path).includes(`export const ${name} `)) sources.set(path, `${sources.get(path)}\nexport { ${name} };\n`);
        return path;
    });
    const homeOf = (name) => [...sources.keys()].find((path) => new RegExp(`export (const|{) ${name} `).test(sources.get(path)));
    for (const [path, text] of sources) {
        mkdirSync(dirname(join(root, path)), { recursive: true });
        writeFileSync(join(root, path), text);
    }
    const entry = join(root, "entry.ts");
    writeFileSync(
        entry,
        `import { zodToJsonSchema } from "zod-to-json-schema";
        import { toJSONSchema } from "zod/v4";
        ${names.map((name) => `import { ${name} } from "@/${homeOf(name).slice(4, -3)}";`).join("\n")}
        const write = (schema) => "_zod" in schema ? toJSONSchema(schema, { io: "input", unrepresentable: "any" })
            : zodToJsonSchema(schema, { $refStrategy: "none", effectStrategy: "input" });
        export const made = { ${names.map((name) => `${WANTED[name]}: write(${name})`).join(", ")} };`,
    );
    const zod = [...sources.values()].some((text) => text.includes("z.iso.")) ? "zod/v4" : "zod";
    const outfile = join(root, "entry.mjs");
    await build({ entryPoints: [entry], outfile, bundle: true, format: "esm", platform: "node", logLevel: "error", plugins: [follow(root, zod)] });
    const { made } = await import(outfile);
    const text = JSON.stringify(made, (_name, value) => simplified(value), 1);
    writeFileSync(join(here, `${version}.json`), `${text}\n`);
}

/** zod drops further fields, and the workflow comes back as the editor sent it. */
function simplified(value) {
    if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
    const kept = Object.entries(value).filter(([name, one]) => !(name === "additionalProperties" && one === false));
    return Object.fromEntries(kept.map(([name, one]) => [name, name === "workflow" ? {} : one]));
}

/** The frontend's TypeScript by its paths. */
function unpack(folder) {
    const sources = new Map();
    for (const name of readdirSync(folder, { recursive: true }).filter((one) => one.endsWith(".map"))) {
        const map = JSON.parse(readFileSync(join(folder, name), "utf-8"));
        map.sources?.forEach((source, index) => {
            const path = posix.normalize(source).replace(/^(\.\.\/)+/, "");
            const text = map.sourcesContent?.[index];
            if (text && /^(src|packages)\/.*\.ts$/.test(path)) sources.set(path, text);
        });
    }
    return sources;
}

function follow(root, zod) {
    const found = (path) => /schema|types/i.test(path) && [path, `${path}.ts`, `${path}/index.ts`].find((one) => one.endsWith(".ts") && existsSync(one));
    const isOurs = (folder) => !folder.includes("node_modules");
    const take = (file, path) => (file ? { path: file } : { path, namespace: "nothing" });
    return {
        name: "sources",
        setup(on) {
            on.onResolve({ filter: /^@\// }, ({ path }) => take(found(`${root}/src/${path.slice(2)}`), path));
            on.onResolve({ filter: /^@comfyorg\// }, ({ path }) => take(found(`${root}/packages/${path.slice(10).replace("/", "/src/")}.gen`), path));
            on.onResolve({ filter: /^\.{1,2}\// }, ({ path, resolveDir }) => (isOurs(resolveDir) ? take(found(join(resolveDir, path)), path) : undefined));
            on.onResolve({ filter: /^zod$/ }, ({ resolveDir }) =>
                isOurs(resolveDir) && resolveDir !== root ? on.resolve(zod, { resolveDir: root, kind: "import-statement" }) : undefined,
            );
            on.onResolve({ filter: /^[a-z]/ }, ({ path, resolveDir }) => (/^(zod|node:)/.test(path) || !isOurs(resolveDir) ? undefined : take(null, path)));
            on.onLoad({ filter: /.*/, namespace: "nothing" }, () => ({ contents: NOTHING }));
        },
    };
}
