# Over 400 lines: one table of all settings, whose rows are most of it.
"""The settings table: every name, default and help text there is.

Read from `guarded.toml` and from `GUARDED_<SECTION>__<NAME>` in the environment, which wins. `docs/settings.md` is
generated from this table (`python <folder> settings`).
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from ..own_files import FileError, parse_json, read_toml
from . import messages
from .bounds import Bounds, read_complaint
from .job import ROOTS
from .urls import UrlError, is_public, read_url

Seconds = Annotated[float, Field(gt=0, le=7 * 86400, allow_inf_nan=False)]
SecondsOrOff = Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]
#: An age may be longer than any deadline: up to ten years.
Age = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]


class SettingsError(Exception):
    """A setting that cannot be used; the message names its key. The package stays off.

    `told` is the same without the value, which may be a secret, for those who only ask over HTTP.
    """

    def __init__(self, message: str, told: str | None = None) -> None:
        super().__init__(message)
        self.told = message if told is None else told


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse `true` for a number, which pydantic takes for 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float):
            raise ValueError("a number is needed")
        if (
            kind is int
            and isinstance(value, (str, int))
            and len(f"{value:x}" if isinstance(value, int) else value) > 20
        ):
            raise ValueError("the number is too large")
        return value


class QueueSettings(_Section):
    max_jobs: int = Field(
        1,
        ge=0,
        le=64,
        description="How many guarded jobs may be in front of the GPU at once. 0: this server of a fleet takes jobs "
        "and runs none.",
    )
    max_queued: int = Field(1000, ge=1, description="How many jobs may wait; one more gets `queue_full`.")
    timeout_s: Seconds = Field(1800, description="A job that has not started after this settles as `queue_timeout`.")
    idempotency_max_age_s: Age = Field(
        86400, description="How long the server remembers an `Idempotency-Key`; never longer than its job."
    )
    max_wait_s: Seconds = Field(600, description="The longest that `?wait=` holds an answer.")

    @field_validator("max_jobs")
    @classmethod
    def _check_max_jobs(cls, value: int, info: ValidationInfo) -> int:
        if not value and not (info.context or {}).get("is_fleet", True):
            raise ValueError("0 is for a server of a fleet (fleet.enabled), where another one runs the jobs")
        return value


class WatchdogSettings(_Section):
    job_timeout_s: Seconds = Field(600, description="How long a job may run. A job's own `timeout_s` may be smaller.")
    stall_timeout_s: SecondsOrOff = Field(0, description="How long a job may run without progress; 0 is off.")
    native_timeout_s: SecondsOrOff = Field(
        0, description="How long a prompt may run that did not come through the guard; 0 is off."
    )
    interrupt_grace_s: Seconds = Field(10, description="How long a stopped job may go on before `on_stuck` applies.")
    inject: bool = Field(True, description="Raise an exception in a stopped job that does not check for interrupts.")
    on_stuck: Literal["replace", "restart", "exit", "report"] = Field(
        "replace",
        description="How to end a worker that does not let go: start another, restart the process, exit (75), or log.",
    )
    max_disowned: int = Field(
        1, ge=0, le=8, description="How many hung workers `replace` leaves behind before it restarts."
    )
    max_attempts: int = Field(
        2,
        ge=1,
        le=10,
        description="How often a job may begin if the process dies while it is validated for dispatch or runs.",
    )
    gil_hang_s: float = Field(
        120,
        ge=5,
        le=86400,
        description="With `on_stuck = exit`: exit (1) after C code has held Python's lock for this long.",
    )
    free_memory: bool = Field(True, description="Unload models after a job that timed out or ran out of memory.")
    on_gpu_fault: Literal["restart", "report"] = Field(
        "restart", description="What to do after a CUDA error that leaves the process without a usable GPU."
    )
    shutdown_grace_s: SecondsOrOff = Field(30, description="How long SIGTERM waits for the running job; 0 is off.")


class ResultsSettings(_Section):
    min_image_bytes: Bytes = Field(1024, description="A result image smaller than this is `result_too_small`.")
    min_video_bytes: Bytes = Field(10240, description="A result video smaller than this is `result_too_small`.")
    expected_video_bytes_per_s: Bytes = Field(
        51200, description="A video with fewer bytes a second gets the warning `low_bitrate`, as calm clips do."
    )
    strict_bitrate: bool = Field(False, description="Refuse such a video as `result_too_small` instead.")
    refuse_blank: bool = Field(
        True, description="Refuse one flat colour, all black, white or transparent as `result_blank`; false: only warn."
    )
    refuse_frozen: bool = Field(
        True, description="Refuse a video that shows one still as `result_corrupt`; false: only warn."
    )
    refuse_silent: bool = Field(True, description="Refuse a silent sound file as `result_blank`; false: only warn.")
    flat_levels: float = Field(
        5,
        ge=0,
        le=64,
        description="Colours that differ by at most this (of 255) count as one: codecs move a flat colour by up to 4.",
    )
    black_level: float = Field(
        8,
        ge=0,
        le=64,
        description="A picture without anything above this level (0.2 % of white's light) is black.",
    )
    max_blank_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of a video's frames that may be blank, as in a fade; half a clip is no fade.",
    )
    frozen_levels: float = Field(
        1.5, ge=0, le=64, description="A video that changes by at most this (of 255, without encoder noise) is frozen."
    )
    silent_dbfs: float = Field(
        -66, ge=-120, le=0, description="A sound whose loudest sample is below this is silent; dither is at -90."
    )
    duration_tolerance: float = Field(
        0.1, ge=0, le=1, description="A video shorter by this share than the graph asked for is `result_incomplete`."
    )
    max_image_pixels: int = Field(
        300_000_000, ge=1, description="Pixels that a result image may decode to (a 16k picture has 268 million)."
    )
    max_decoded_pixels: int = Field(
        8_000_000_000, ge=1, description="Pixels to decode per job (2 minutes of 1080p at 30 fps); then only samples."
    )
    check_timeout_s: Seconds = Field(
        30, description="How long the checks of one job's files may take; after half of it they look at samples."
    )
    checks_at_once: int = Field(
        2,
        ge=0,
        le=64,
        description="Jobs of an owner whose files are checked while the worker goes on; of all owners twice as many "
        "and one more. 0: the worker waits for each check.",
    )
    strip_metadata: bool = Field(
        False,
        description="Take prompt, workflow, tags and versions out of the results of keys' jobs once they have passed, "
        "without encoding them anew. They then cannot be dragged into ComfyUI's editor.",
    )
    convert_timeout_s: Seconds = Field(
        60,
        description="How long the converted copies of one job may take (`guard.results.format`); those that are not "
        "there by then are left out.",
    )
    convert_max_pixels: int = Field(
        8192 * 8192, ge=1, description="Pixels of a picture, with all its frames, that a copy is made of."
    )
    convert_max_bytes: int = Field(256 * 2**20, ge=1, description="How large a converted copy may become.")
    inline_max_bytes: Bytes = Field(
        4 * 2**20,
        description="What the files may have together that an answer or a webhook brings in Base64 "
        "(`guard.results.inline`); those beyond it come as their addresses. 0: none comes.",
    )
    put_timeout_s: Seconds = Field(
        300, description="How long one attempt to put a result to an address may take (`guard.results.put`)."
    )
    put_max_age_s: Age = Field(
        86400, description="Give up a put that has not succeeded after this, even if its address is still valid."
    )
    max_outputs_bytes: Bytes = Field(
        4 * 2**20,
        description="What the nodes of one job may report besides the bytes of its files, as JSON; a job whose nodes "
        "report more ends as `generation_failed`. 0: no limit.",
    )
    quarantine_max_bytes: Bytes = Field(
        2 * 2**30, description="Size of the refused files kept for the operator; the oldest go first; 0 keeps none."
    )


class FacesSettings(_Section):
    detector: str = Field(
        "auto", description="`auto`, `centerface`, `insightface` or `insightface/<pack>`. Packs are non-commercial."
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="`cuda` works only if onnxruntime, or torch where there is none, really has it."
    )
    try_rotations: bool = Field(True, description="Also turn a picture before saying that it shows no face.")
    at_once: int = Field(
        2,
        ge=1,
        le=16,
        description="How many pictures are looked at at once before there is a job; of one owner one less, but at "
        "least one. Of films and sounds it is four, of one owner two.",
    )
    required_by: dict[str, list[str]] | None = Field(
        None,
        description="Node classes that need a face, with the inputs that bring it (JSON); null: the built-in list.",
    )


#: Limits for a kind of card, so that admitted jobs fit it; each may be overridden.
PROFILES: dict[str, dict[str, float]] = {
    name: dict(
        zip(
            (
                "vram_budget_gb",
                "max_pixels",
                "max_steps",
                "max_frames",
                "max_seconds",
                "max_film_pixels",
                "max_pixel_steps",
            ),
            limits,
            strict=True,
        )
    )
    for name, limits in {
        "rtx3060": (10, 2048 * 2048, 60, 375, 180, 3 * 10**8, 2 * 10**9),
        "rtx4090": (21, 4096 * 4096, 100, 1000, 240, 10**9, 8 * 10**9),
        "a4000": (14, 3072 * 3072, 80, 481, 180, 5 * 10**8, 3 * 10**9),
        "a5000": (20, 4096 * 4096, 100, 1000, 240, 10**9, 5 * 10**9),
        "a6000": (44, 6144 * 6144, 150, 2000, 480, 3 * 10**9, 15 * 10**9),
        "a100": (76, 8192 * 8192, 200, 4000, 600, 6 * 10**9, 40 * 10**9),
    }.items()
}


def _check_profile(value: object) -> object:
    if isinstance(value, str) and value and value not in PROFILES:
        raise ValueError(f"there is no such profile; there are {', '.join(sorted(PROFILES))}")
    return value


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        try:
            address = read_url(f"https://{host.removeprefix('*.')}").address
        except UrlError:
            raise ValueError(f"{host!r} is no host name") from None
        if "/" in host or (address is not None and not is_public(address)):
            raise ValueError(f"{host!r} is no host outside the server's network")
    return tuple(host.lower().rstrip(".") for host in hosts)


class PolicySettings(_Section):
    profile: Annotated[str, BeforeValidator(_check_profile)] = Field(
        "",
        description=f"Limits for a card: {', '.join(f'`{name}`' for name in PROFILES)}. They replace the "
        "defaults from `vram_budget_gb` to `max_pixel_steps`; a limit of your own wins over the profile's.",
    )
    vram_budget_gb: float = Field(
        0,
        ge=0,
        description="VRAM that a job may need: what is estimated to take more at least is refused; 0: no limit.",
    )
    max_pixels: int = Field(0, ge=0, description="Width × height × batch that a node may ask for; 0: no limit.")
    max_steps: int = Field(0, ge=0, description="Steps that a node may ask for; 0: no limit.")
    max_frames: int = Field(0, ge=0, description="Frames of a film; 0: no limit.")
    max_seconds: float = Field(
        0, ge=0, description="Length of a film or sound, or of all sounds of a batch; 0: no limit."
    )
    max_film_pixels: int = Field(
        0, ge=0, description="Width × height × frames of a film at any node: what its memory goes by; 0: no limit."
    )
    max_pixel_steps: int = Field(
        0,
        ge=0,
        description="Width × height × batch × steps of all samplers together, with four frames of a film counted as "
        "one: what the time goes by; 0: no limit.",
    )
    allow_nodes: tuple[str, ...] = Field(
        (), description="Node classes that prompts may use, as patterns with `*` and `?`; empty: all."
    )
    deny_nodes: tuple[str, ...] = Field(
        (), description="Node classes that prompts may not use; wins over `allow_nodes`."
    )
    keyed_deny_nodes: tuple[str, ...] = Field(
        (),
        description="Changes the shipped list of node classes that prompts of keys may not use "
        "(`guard/submit/keyed_deny.py`): a pattern adds to it, `!` and a pattern takes out what the pattern fits.",
    )
    fetch_hosts: Annotated[tuple[str, ...], AfterValidator(_check_hosts)] = Field(
        (),
        description="Hosts that prompts of keys may name in addresses, and from which their files are fetched: "
        "`files.example.com`, or `*.example.com` for all below it. Addresses inside the server's network stay refused.",
    )
    open_files: bool = Field(
        True,
        description="Open every picture, film and sound that a loader will read, before there is a job: what is "
        "damaged is refused, and its size counts for the limits.",
    )
    strict: bool = Field(
        False, description="Refuse a limited input if a node computes its value, which cannot be known beforehand."
    )
    max_nodes: int = Field(1000, ge=1, description="Nodes in a prompt: 3,000 stall ComfyUI's validation for seconds.")
    keyed_max_nodes: int = Field(400, ge=1, description="The same for keys that are no operator's.")
    keyed_max_chain: int = Field(
        200,
        ge=1,
        description="Nodes of a prompt that may follow each other, each fed by the one before, for keys that are no "
        "operator's: ComfyUI validates such a chain in one recursion, and fails at some hundreds.",
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Size of a request's body.")
    max_depth: int = Field(
        50, ge=4, le=400, description="Nesting of a request's JSON: 900 levels kill ComfyUI's worker."
    )
    max_values: int = Field(
        200_000,
        ge=1000,
        le=10_000_000,
        description="Values in a request's JSON, objects and lists among them. They are counted before anything is "
        "parsed: millions stall ComfyUI for seconds.",
    )
    max_text_chars: int = Field(
        2**20,
        ge=1024,
        description="Characters of one text in a request's JSON; for keys that are no operator's, also of the texts "
        "that a node makes of others.",
    )
    max_picture_chars: int = Field(
        12 * 2**20, ge=1024, description="The same for a picture, film or sound as a base64 `data:` URL."
    )

    def bounds(self) -> Bounds:
        """What the JSON of a request may hold."""
        return Bounds(self.max_values, self.max_depth, self.max_text_chars, self.max_picture_chars)

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, values: object) -> object:
        chosen = values.get("profile") if isinstance(values, dict) else None
        return {**PROFILES[chosen], **values} if isinstance(values, dict) and chosen in PROFILES else values


class LimitsSettings(_Section):
    """0 is no limit."""

    jobs_per_minute: float = Field(
        0,
        ge=0,
        le=1e6,
        description="Jobs that each client may submit, also all at once; a key may have its own limit.",
    )
    total_jobs_per_minute: float = Field(0, ge=0, le=1e6, description="The same for all clients together.")
    max_queued: int = Field(
        0,
        ge=0,
        description="How many jobs of each client may wait; one more gets `queue_full`. A key may have its own limit.",
    )
    user_jobs_per_minute: float = Field(
        0, ge=0, le=1e6, description="Jobs that each user of a client (`guard.user`) may submit, also all at once."
    )
    user_max_queued: int = Field(
        0, ge=0, description="How many jobs of each user of a client may wait; one more gets `queue_full`."
    )
    max_streams: int = Field(
        50,
        ge=0,
        description="Event streams and websockets that each key may have open; one more gets `quota_exceeded`. A key "
        "may have its own limit.",
    )
    max_requests: int = Field(
        20,
        ge=0,
        description="Requests of each key that are worked on at once, until their answers have been sent, a fifth of "
        "them large; further ones wait for their turn, a minute at most. What only waits for a job, or sends a file, "
        "does not count. A key may have its own limit.",
    )
    max_open_bytes: Bytes = Field(
        2**28,
        description="Bytes of the requests of each key's jobs that have not ended, together; one more gets "
        "`quota_exceeded`. A key may have its own limit.",
    )
    max_file_bytes: Bytes = Field(
        0,
        description="Bytes of each key's files in input, output and temp, and as many in the depot (`files.url`). From "
        "nine tenths of it on the janitor deletes the oldest whatever their age, those that were fetched first; over "
        "it, jobs and uploads get `quota_exceeded`. A key may have its own limit.",
    )
    max_incoming_bytes: Bytes = Field(
        2**28,
        description="Bytes of files that each key is sending, or that are fetched for it, together, until their "
        "requests are answered; one more gets `quota_exceeded`.",
    )
    upload_bytes_per_hour: Bytes = Field(0, description="Bytes that each client may upload.")
    total_upload_bytes_per_hour: Bytes = Field(0, description="The same for all clients together.")
    max_connections: int = Field(
        8192,
        ge=16,
        description="Connections at once; a quarter of `ulimit -n` always stays free. One more closes the idlest, and "
        "where all are busy only operators get an answer other than `server_unavailable`.",
    )
    body_timeout_s: Seconds = Field(
        30,
        description="Give up a request whose body arrives at less than 1 KiB a second over this time, and an answer "
        "that its client takes as slowly.",
    )


class UploadsSettings(_Section):
    max_file_bytes: int = Field(64 * 2**20, ge=1024, description="Size of one uploaded file.")
    max_files: int = Field(16, ge=1, le=1000, description="Files sent with one prompt.")
    max_request_bytes: int = Field(128 * 2**20, ge=1024, description="Size of all files sent with one prompt.")


def _normalize_networks(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(ipaddress.ip_network(network)) for network in given)


class FetchSettings(_Section):
    timeout_s: Seconds = Field(
        30, description="How long a file that a request names by address may take, its one repetition included."
    )
    at_once: int = Field(16, ge=1, le=64, description="How many such files may come in at once; of one owner four.")
    allow_http: bool = Field(False, description="Also fetch from addresses without TLS.")
    allowed_networks: Annotated[tuple[str, ...], AfterValidator(_normalize_networks)] = Field(
        (),
        description="Non-public networks from which files may be fetched, also by keys: `10.0.0.0/8`. The hosts that "
        "keys may name are `policy.fetch_hosts`.",
    )


class StoreSettings(_Section):
    url: str = Field(
        "",
        description="The job database: `sqlite:///<absolute path>`, or `postgresql://user:password@host/database` "
        "([postgres.md](postgres.md)); empty: SQLite, in `__guarded/`.",
    )
    survives: Literal["power_cut", "kill"] = Field(
        "power_cut",
        description="What acknowledged jobs, verdicts and result files survive. For `power_cut` each commit with one "
        "of them waits for the disk (fsync), as do the files; with `kill` a power cut may lose the last ones.",
    )
    stalled_after_s: Seconds = Field(
        15,
        description="While the job database has written nothing for so long, no job is let in or begins; running jobs "
        "go on, and nobody hears how they end before that is on disk.",
    )
    bodies_max_age_s: Age = Field(
        259200, description="Delete the prompt of a settled job after this; the job's record stays."
    )
    max_bytes: Bytes = Field(
        2 * 2**30,
        description="How large the job database may become. Near it, prompts of settled jobs go whatever their age, "
        "the first settled first; where none is left, new jobs are answered with `disk_full`. 0: no limit.",
    )


class FilesSettings(_Section):
    url: str = Field(
        "",
        description="Where inputs and results are kept besides, for all boxes: `file:///<folder>`, or "
        "`s3://<bucket>/<prefix>?endpoint=<address>&region=<name>` ([depot.md](depot.md)); empty: on this box alone.",
    )
    redirect: bool = Field(
        False,
        description="Answer who fetches a result with an address of the S3 storage that is good for a minute, instead "
        "of the file.",
    )


#: Characters of `fleet.secret`.
SHORTEST_SECRET = 32


def _read_trust(value: object) -> object:
    """As any other boolean in the environment; or `auto`."""
    if isinstance(value, str) and value != "auto":
        return TypeAdapter(bool).validate_python(value)
    return value


class AccessSettings(_Section):
    trust_loopback: Annotated[Literal["auto", True, False], BeforeValidator(_read_trust)] = Field(
        "auto",
        description="Ask no key of a direct loopback connection: one whose Host header names this machine and that no "
        "header says a proxy passed on. `auto`: once there are keys, only of the user that the server runs as.",
    )
    trusted_proxies: Annotated[tuple[str, ...], AfterValidator(_normalize_networks)] = Field(
        (), description="Addresses or networks of proxies whose `X-Forwarded-For` to believe: `10.0.0.0/8`."
    )
    allowed_origins: tuple[str, ...] = Field(
        (), description="Other sites whose pages may use this server from a browser: `https://bot.example`."
    )
    max_token_s: Seconds = Field(86400, description="The longest life of a signed token (`POST /guarded/tokens`).")


def _check_secret(secret: str) -> str:
    if secret:
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not 24 <= len(key) <= 64:
            raise ValueError("whsec_ and 24 to 64 bytes in base64 are needed")
    return secret


class WebhooksSettings(_Section):
    max_age_s: Age = Field(259200, description="Give up a delivery that has not succeeded after this.")
    timeout_s: Seconds = Field(10, description="How long a receiver may take to answer.")
    first_retry_s: Seconds = Field(5, description="The pause after a failure; it doubles each time, up to an hour.")
    allow_http: bool = Field(False, description="Also accept addresses without TLS.")
    allowed_networks: Annotated[tuple[str, ...], AfterValidator(_normalize_networks)] = Field(
        (),
        description="Non-public networks that webhooks may reach, such as `127.0.0.0/8` for a bot on this machine.",
    )
    secret: Annotated[str, AfterValidator(_check_secret)] = Field(
        "", description="Signs webhooks of `local` (`whsec_…`); empty: made once, in `__guarded/webhook.secret`."
    )


class NativeSettings(_Section):
    mode: Literal["open", "guarded", "closed"] = Field(
        "open",
        description="ComfyUI's own routes. `open`: unchanged. `guarded`: its POST /prompt goes through the guard, "
        "and off loopback every path wants a key. `closed`: off loopback nothing outside /guarded answers.",
    )


def _clean_folders(folders: dict[str, float | str]) -> dict[str, float | str]:
    """Write each key as `root/folder/…`, without a slash at the end."""
    cleaned = {}
    for folder, age in folders.items():
        parts = [part for part in folder.replace("\\", "/").split("/") if part]
        if not parts or parts[0] not in ROOTS or {".", ".."} & set(parts):
            raise ValueError(f"name a folder as output/…, temp/… or input/…, not {folder!r}")
        cleaned["/".join(parts)] = age
    return cleaned


class JanitorSettings(_Section):
    enabled: bool = Field(True, description="Sweep regularly; false: only watch the free space and sweep on demand.")
    interval_s: Seconds = Field(3600, description="The time between two sweeps.")
    output_max_age_s: Age = Field(86400, description="Delete output files last modified longer ago than this.")
    temp_max_age_s: Age = Field(3600, description="The same for temp files.")
    input_max_age_s: Age = Field(604800, description="The same for input files.")
    folders: Annotated[dict[str, Age | Literal["off"]], AfterValidator(_clean_folders)] = Field(
        {}, description='Other ages for folders and everything below: `{"output/video": 3600, "input": "off"}`.'
    )
    keep: tuple[str, ...] = Field(
        (),
        description="Files and folders to keep, beside `example.png` and dotfiles: patterns (`*`, `?`, `[…]`) for a "
        "name, or with a slash for a path that begins with its root (`output/best/*`).",
    )
    adopt_existing: bool = Field(
        False,
        description="Treat files from before the first start like all others; false: leave them alone.",
    )
    sweep_native: bool | Literal["ask"] = Field(
        "ask",
        description="Also delete what no job of this package has made, such as pictures made in the editor. `ask`: not "
        "before an operator has said so on the page; a server that did so before it could ask goes on.",
    )
    settle_s: Annotated[float, Field(ge=0, le=7 * 86400, allow_inf_nan=False)] = Field(
        300,
        description="Leave files alone that were modified within this time, however full the disk: they may be in use.",
    )
    unread_max_age_s: Age = Field(
        259200, description="How long to keep a job's results for an owner who has not fetched them."
    )
    history_max_age_s: Age = Field(2592000, description="Delete the records of settled jobs after this.")
    quarantine_max_age_s: Age = Field(604800, description="Delete refused results from quarantine after this.")
    min_free_bytes: Bytes = Field(
        2 * 2**30, description="Below this much free space, delete the oldest files whatever their age; 0: never."
    )
    target_free_bytes: Bytes = Field(4 * 2**30, description="Then delete until this much is free.")
    floor_free_bytes: Bytes = Field(
        2**29, description="Below this much free space, answer new jobs with `disk_full`; 0: never."
    )

    @model_validator(mode="after")
    def _check_order(self) -> JanitorSettings:
        if self.min_free_bytes and self.floor_free_bytes > self.min_free_bytes:
            raise ValueError("floor_free_bytes must not be above min_free_bytes")
        if self.target_free_bytes < self.min_free_bytes:
            raise ValueError("target_free_bytes must not be below min_free_bytes")
        return self


class WarmupRun(_Section):
    """One of `warmup.runs`: a template with its parameters, or a file with a prompt."""

    template: str = Field("", max_length=200)
    parameters: dict[str, Any] = {}
    prompt: str = Field("", max_length=1000)

    @model_validator(mode="after")
    def _check_kind(self) -> WarmupRun:
        if bool(self.template) == bool(self.prompt):
            raise ValueError("name a template or the file of a prompt")
        if self.prompt and self.parameters:
            raise ValueError("parameters are a template's")
        return self


def _read_warmup_run(given: object) -> object:
    if isinstance(given, str):
        given = {"prompt" if given.endswith(".json") else "template": given}
    if isinstance(given, dict):
        WarmupRun.model_validate(given)
    return given


class WarmupSettings(_Section):
    runs: tuple[Annotated[dict[str, Any], BeforeValidator(_read_warmup_run)], ...] = Field(
        (),
        max_length=16,
        description="What runs before the first job, so that it finds its models loaded: a template's name, "
        '`{"template": …, "parameters": {…}}`, or `{"prompt": "warm.json"}`, a file in `__guarded/`. See '
        "[deploy.md](deploy.md#warm-up).",
    )
    timeout_s: Seconds = Field(600, description="How long one warm-up may run.")
    ready_after_s: Seconds = Field(
        1200, description="After this time `/guarded/ready` no longer waits for warm-ups that have not succeeded."
    )


def _check_language(value: object, info: ValidationInfo) -> object:
    known = messages.languages((info.context or {}).get("own_texts"))
    if isinstance(value, str) and value not in known:
        raise ValueError(f"no texts for {value!r}; there are {', '.join(sorted(known))}")
    return value


class MessagesSettings(_Section):
    locale: Annotated[str, BeforeValidator(_check_language)] = Field(
        "ru",
        description="Language of user texts if neither `guard.locale` nor `Accept-Language` names one. Texts of your "
        "own, also in further languages, lie in `__guarded/messages/<language>.json`.",
    )
    money: bool = Field(
        True,
        description="Whether the text of a job that ended badly says that the user's credits were returned; in your "
        "own words with a text `refunded`.",
    )


class FleetSettings(_Section):
    enabled: bool = Field(
        False,
        description="This server is one of several that share the job database, which must be PostgreSQL "
        "([fleet.md](fleet.md)).",
    )
    lease_s: float = Field(
        30,
        ge=3,
        le=600,
        allow_inf_nan=False,
        description="A server of the fleet that says nothing for so long has lost its jobs to the others; after two "
        "thirds of that it stops them itself. The same for all.",
    )
    secret: str = Field(
        "",
        validate_default=True,
        repr=False,
        description="Signs tokens, sign-ins and webhooks of `local`, and names owners' folders, on every server of the "
        "fleet alike: 32 characters at least, of `openssl rand -hex 32` say. The same for all.",
    )

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("enabled") and len(value.strip()) < SHORTEST_SECRET:
            raise ValueError(
                f"the servers of a fleet need one secret of {SHORTEST_SECRET} characters at least, the same for all; "
                "`openssl rand -hex 32` makes one"
            )
        return value.strip()

    url: str = Field(
        "",
        description="Where the other servers of the fleet reach this one, `http://10.0.0.5:8188` say: their callers "
        "hear of progress, previews and ComfyUI's messages of what runs here. Empty: of states only.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if value:
            try:
                read_url(value)
            except UrlError as error:
                raise ValueError(f"it {error}") from None
            if "?" in value:
                raise ValueError("it must have no query")
        return value.rstrip("/")

    affinity_wait_s: float = Field(
        20,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="For so long may other jobs of its owner, whose models a server has loaded, go before the one that "
        "stands first in the line; 0: none do.",
    )


class LogSettings(_Section):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least severe level that the guard logs."
    )
    format: Literal["text", "json"] = Field(
        "text", description="`text`: lines among ComfyUI's own; `json`: one object per line, on stderr."
    )


class Settings(_Section):
    """All settings in force. Build it with :func:`load`."""

    queue: QueueSettings = QueueSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    results: ResultsSettings = ResultsSettings()
    faces: FacesSettings = FacesSettings()
    policy: PolicySettings = PolicySettings()
    limits: LimitsSettings = LimitsSettings()
    uploads: UploadsSettings = UploadsSettings()
    fetch: FetchSettings = FetchSettings()
    janitor: JanitorSettings = JanitorSettings()
    warmup: WarmupSettings = WarmupSettings()
    store: StoreSettings = StoreSettings()
    files: FilesSettings = FilesSettings()
    access: AccessSettings = AccessSettings()
    webhooks: WebhooksSettings = WebhooksSettings()
    native: NativeSettings = NativeSettings()
    messages: MessagesSettings = MessagesSettings()
    fleet: FleetSettings = FleetSettings()
    log: LogSettings = LogSettings()


ENV_PREFIX = "GUARDED_"
#: Characters of a refused value that a message quotes.
_QUOTED = 200
_ENV_ALIASES = {"MAX_GPU_JOBS": ("queue", "max_jobs")}


def load(toml_file: Path | None, environment: Mapping[str, str]) -> Settings:
    """Load the settings from `toml_file`, if it exists, and from `environment`, which wins.

    Raises:
        SettingsError: an unknown key or a bad value, which it names; or the file is not TOML; or texts beside it cannot
            be used.
    """
    values = _read_file(toml_file)
    own_texts = read_own_texts(toml_file.parent) if toml_file is not None else {}
    named: dict[tuple[str, ...], str] = {}
    for variable, path, raw in _read_environment(environment):
        section = values.setdefault(path[0], {})
        if not isinstance(section, dict):
            raise SettingsError(f"{path[0]}: expected a section")
        section[path[1]] = _parse(raw, path)
        named[path] = variable
    try:
        return Settings.model_validate(values, context={"own_texts": own_texts, "is_fleet": _is_fleet(values)})
    except ValidationError as error:
        items = error.errors()
        told = "; ".join(_complain(item, named) for item in items)
        raise SettingsError("; ".join(_complain(item, named) + _quote(item) for item in items), told) from None


def _is_fleet(values: Mapping[str, Any]) -> bool:
    """Whether `fleet.enabled` is set; a bad value is named by whoever reads it."""
    section = values.get("fleet")
    try:
        return bool(isinstance(section, dict) and TypeAdapter(bool).validate_python(section.get("enabled", False)))
    except ValidationError:
        return True


def read_own_texts(own: Path) -> messages.Texts:
    """The operator's own texts, in our folder. Raises SettingsError."""
    try:
        return messages.read_own(own / "messages")
    except messages.TextsError as error:
        raise SettingsError(str(error)) from None


def origins(toml_file: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Where each setting that is not left at its default comes from: the name of the file or of a variable.

    Raises:
        SettingsError: the file is not TOML.
    """
    from_file = {
        f"{section}.{name}": toml_file.name
        for section, values in _read_file(toml_file).items()
        if isinstance(values, dict)
        for name in values
    }
    return from_file | {".".join(path): variable for variable, path, _raw in _read_environment(environment)}


def _read_file(toml_file: Path | None) -> dict[str, Any]:
    if toml_file is None:
        return {}
    try:
        return read_toml(toml_file)[0]
    except FileNotFoundError:
        return {}
    except FileError as error:
        raise SettingsError(str(error)) from None


def _read_environment(environment: Mapping[str, str]) -> list[tuple[str, tuple[str, str], str]]:
    values = []
    for variable, raw in sorted(environment.items()):
        if variable in _ENV_ALIASES:
            values.append((variable, _ENV_ALIASES[variable], raw))
        elif variable.startswith(ENV_PREFIX) and "__" in variable:
            section, _, name = variable[len(ENV_PREFIX) :].lower().partition("__")
            values.append((variable, (section, name), raw))
        elif variable.startswith(ENV_PREFIX):
            # GUARDED_URL and the like belong to other programs; a setting that is spelled nearly right is meant for us.
            section, _, name = variable[len(ENV_PREFIX) :].partition("_")
            if section.lower() in Settings.model_fields and name:
                raise SettingsError(f"{variable}: two underscores are needed, {ENV_PREFIX}{section}__{name}")
    # The aliases come first, so that the full name wins where both are set.
    return sorted(values, key=lambda item: item[0].startswith(ENV_PREFIX))


def _parse(raw: str, path: tuple[str, str]) -> Any:
    """Parse a list (comma-separated or JSON) or a map (JSON); pydantic reads all else from the string itself."""
    section = Settings.model_fields.get(path[0])
    field = section.annotation.model_fields.get(path[1]) if section and section.annotation else None
    # `dict[…] | None` is a map too.
    kinds = {get_origin(part) for part in (field.annotation, *get_args(field.annotation))} if field else set()
    if not kinds & {list, tuple, dict}:
        return raw
    if raw.lstrip().startswith(("[", "{")) or dict in kinds:
        try:
            return parse_json(Path("environment"), raw)
        except FileError:
            return raw
    return [part.strip() for part in raw.split(",") if part.strip()]


def _complain(item: ErrorDetails, named: Mapping[tuple[str, ...], str]) -> str:
    key, complaint = read_complaint(item, "setting")
    variable = named.get(tuple(key.split(".")[:2]))
    source = f" (from {variable})" if variable else ""
    return f"{key}{source}: {complaint}"


def _quote(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden" or item["loc"] == ("fleet", "secret"):
        return ""
    quoted = repr(item["input"])
    return f", got {quoted if len(quoted) <= _QUOTED else f'{quoted[:_QUOTED]}…'}"


def hide_password(url: str) -> str:
    """The address as people may see it. Hides too much rather than too little."""
    hidden = re.sub(r"(:/*[^:/?@]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(?i)((?:password|secret\w*|token)=)[^&\s]*", r"\1***", hidden)


def rows(settings: Settings | None = None) -> list[tuple[str, Any, str]]:
    """List every setting as (dotted name, default or value in force, help). Nobody's secret is in it."""
    current = settings or Settings()
    values = {
        (section, name): getattr(getattr(current, section), name)
        for section in Settings.model_fields
        for name in type(getattr(current, section)).model_fields
    }
    for section, url in (("store", current.store.url), ("files", current.files.url)):
        values[section, "url"] = hide_password(url)
    for section, secret in (("webhooks", current.webhooks.secret), ("fleet", current.fleet.secret)):
        values[section, "secret"] = secret and "***"
    return [
        (f"{section}.{name}", values[section, name], field.description or "")
        for section in Settings.model_fields
        for name, field in type(getattr(current, section)).model_fields.items()
    ]


def markdown() -> str:
    """Write all of `docs/settings.md`."""
    lines = [
        "# Settings",
        "",
        "Generated from `guard/settings.py` by `python <folder> settings`; do not edit.",
        "",
        "At start the guard reads `guarded.toml` in `<ComfyUI's user directory>/__guarded/` (sections and names as",
        "below) and the environment, which wins: `GUARDED_QUEUE__MAX_JOBS=2` is `queue.max_jobs`, and so is",
        "`MAX_GPU_JOBS=2`. An unknown key or a bad value keeps the package off, with a line in the log that names the",
        "key; a server that was to be shut [answers 503](access.md#if-the-package-cannot-start) until it is corrected.",
        "Run `doctor` to check `guarded.toml` before a restart. For instance:",
        "",
        "```toml",
        "[queue]",
        "max_jobs = 2",
        "```",
        "",
        "| setting | default | what it does |",
        "| --- | --- | --- |",
    ]
    lines += [f"| `{name}` | `{json.dumps(value)}` | {text} |" for name, value, text in rows()]
    return "\n".join(lines) + "\n"
