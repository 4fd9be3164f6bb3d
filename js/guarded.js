// What ComfyUI's editor loads. For now: one badge in Settings > About that leads to the guard's own health page.
import { app } from "../../scripts/app.js";

app.registerExtension({
    name: "guarded",
    aboutPageBadges: [{ label: "ComfyUI-Guarded", url: "/guarded/health", icon: "pi pi-shield" }],
});
