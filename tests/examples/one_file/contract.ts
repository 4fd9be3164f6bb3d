// Compiles only while what examples/guarded.ts takes for the contract's types is what the contract says.
import type { Artifact, Job, Refusal, State, Submitted } from "./guarded.js";
import type { components } from "./contract-types.js";

type Schemas = components["schemas"];
declare const job: Schemas["Job"], refusal: Schemas["Refusal"], submitted: Schemas["Submitted"];
declare const artifact: Schemas["Artifact"], state: State;
const _job: Job = job;
const _refusal: Refusal = refusal;
const _submitted: Submitted = submitted;
const _artifact: Artifact = artifact;
const _state: Schemas["JobState"] = state;
export { _job, _refusal, _submitted, _artifact, _state };
