# Over 400 lines: one list, of which nothing that was released may move.
"""The tables, as a list of migrations. A released migration is never edited."""

from __future__ import annotations

#: `PRAGMA user_version` says how many of these a database has had.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,  -- the `number` of the answer; also the order of arrival
        job_id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        state TEXT NOT NULL,
        priority INTEGER NOT NULL,
        place REAL NOT NULL,                       -- within owner and priority, smaller goes first
        attempts INTEGER NOT NULL DEFAULT 0,
        created_at_ms INTEGER NOT NULL,
        started_at_ms INTEGER,
        settled_at_ms INTEGER,
        timeout_s REAL NOT NULL,
        locale TEXT NOT NULL,
        client_id TEXT,
        shape TEXT NOT NULL,
        outputs_to_execute TEXT NOT NULL,          -- JSON list of node ids
        metadata TEXT NOT NULL,                    -- JSON object
        has_secrets INTEGER NOT NULL,
        verdict TEXT,                              -- JSON, once settled
        result TEXT                                -- JSON, once settled
    );
    CREATE INDEX jobs_queued ON jobs (owner, priority DESC, place) WHERE state = 'queued';
    CREATE INDEX jobs_open ON jobs (state, created_at_ms)
        WHERE state IN ('queued', 'dispatched', 'running', 'validating');
    CREATE INDEX jobs_of_owner ON jobs (owner, number);
    CREATE INDEX jobs_succeeded ON jobs (number) WHERE state = 'succeeded';

    -- Apart from the jobs, so that listing them does not read through every graph.
    CREATE TABLE bodies (
        number INTEGER PRIMARY KEY,
        body BLOB NOT NULL
    );

    CREATE TABLE transitions (
        job_id TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        state TEXT NOT NULL
    );
    CREATE INDEX transitions_of_job ON transitions (job_id);

    CREATE TABLE leases (
        job_id TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        deadline_ms INTEGER NOT NULL
    );

    CREATE TABLE idempotency (
        owner TEXT NOT NULL,
        key TEXT NOT NULL,
        body_digest TEXT NOT NULL,
        job_id TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (owner, key)
    );
    """,
    """
    -- Result files whose owner has not fetched them: a row goes when the file has been served to its owner.
    CREATE TABLE unread (
        type TEXT NOT NULL,                        -- ComfyUI's: output or temp
        path BLOB NOT NULL,                        -- below that root, with slashes; file names need not be UTF-8
        job_id TEXT NOT NULL,
        artifact INTEGER NOT NULL,
        since_ms INTEGER NOT NULL,
        PRIMARY KEY (type, path)
    ) WITHOUT ROWID;
    CREATE INDEX unread_of_job ON unread (job_id);

    -- What the janitor needs to forget jobs without looking at all of them.
    CREATE INDEX jobs_settled ON jobs (settled_at_ms) WHERE settled_at_ms IS NOT NULL;
    CREATE INDEX idempotency_of_job ON idempotency (job_id);
    """,
    """
    -- The template that rendered the prompt; '' for a graph of the caller's own.
    ALTER TABLE jobs ADD COLUMN template TEXT NOT NULL DEFAULT '';
    """,
    """
    -- What the statistics read, from the index alone: hour by hour, without opening a job's row.
    ALTER TABLE jobs ADD COLUMN code TEXT;         -- of the verdict; NULL until it settles, and where it succeeded
    UPDATE jobs SET code = json_extract(verdict, '$.code') WHERE verdict IS NOT NULL;
    DROP INDEX jobs_settled;
    CREATE INDEX jobs_settled ON jobs (settled_at_ms, owner, code, started_at_ms) WHERE settled_at_ms IS NOT NULL;
    """,
    """
    -- The template's parameters in force, JSON object; what a repeated request is told again.
    ALTER TABLE jobs ADD COLUMN parameters TEXT NOT NULL DEFAULT '{}';
    """,
    """
    -- Verdicts that no websocket of the job's client id has been sent yet.
    CREATE TABLE unheard (
        job_id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        client_id TEXT NOT NULL,
        settled_at_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX unheard_of_client ON unheard (owner, client_id, settled_at_ms);
    """,
    """
    -- Numbered for good: readers of the event stream resume behind the last number that they have seen.
    CREATE TABLE numbered (
        event_id INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        state TEXT NOT NULL
    );
    INSERT INTO numbered (job_id, at_ms, state) SELECT job_id, at_ms, state FROM transitions ORDER BY rowid;
    DROP TABLE transitions;
    ALTER TABLE numbered RENAME TO transitions;
    CREATE INDEX transitions_of_job ON transitions (job_id);
    ALTER TABLE jobs ADD COLUMN event_id INTEGER NOT NULL DEFAULT 0;  -- of its last transition
    UPDATE jobs SET event_id = coalesce((SELECT max(event_id) FROM transitions WHERE job_id = jobs.job_id), 0);
    """,
    """
    -- The whole order of the queue, and what is in it, without opening a job's row.
    DROP INDEX jobs_queued;
    CREATE INDEX jobs_queued ON jobs (owner, priority DESC, place, number, template, shape) WHERE state = 'queued';
    """,
    """
    ALTER TABLE jobs ADD COLUMN webhook TEXT;      -- JSON: where its owner wants to be told of it

    -- The outbox: what has to be told, written with the change of state that it tells of.
    CREATE TABLE webhooks (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        webhook_id TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        job_id TEXT NOT NULL,
        owner TEXT NOT NULL,
        url TEXT NOT NULL,
        target TEXT NOT NULL,                      -- scheme, host and port of it
        payload TEXT NOT NULL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        since_ms INTEGER NOT NULL,
        next_at_ms INTEGER NOT NULL,
        ended_at_ms INTEGER,
        last_status INTEGER,
        last_error TEXT
    );
    CREATE INDEX webhooks_pending ON webhooks (next_at_ms, number) WHERE state = 'pending';
    CREATE INDEX webhooks_of_job ON webhooks (job_id, state, number);
    CREATE INDEX webhooks_of_owner ON webhooks (owner, number);
    CREATE INDEX webhooks_dead ON webhooks (number) WHERE state = 'dead';
    """,
    """
    -- Whose a result file is: of several jobs that made a file of one name, the last one's.
    CREATE TABLE made (
        type TEXT NOT NULL,                        -- ComfyUI's: output or temp
        path BLOB NOT NULL,                        -- as in unread
        job_id TEXT NOT NULL,
        artifact INTEGER NOT NULL,
        PRIMARY KEY (type, path)
    ) WITHOUT ROWID;
    CREATE INDEX made_by_job ON made (job_id);

    -- Taken out of ComfyUI's history by its owner; the job itself stays.
    ALTER TABLE jobs ADD COLUMN hidden INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX jobs_history ON jobs (owner, settled_at_ms, number) WHERE settled_at_ms IS NOT NULL AND hidden = 0;
    """,
    """
    -- Which process may write. Another one that opens the file puts its own name here; the earlier one then stops.
    CREATE TABLE epoch (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        writer TEXT NOT NULL
    );
    INSERT INTO epoch VALUES (1, '');

    -- Whether the host has taken the job. Until then its validation may be what kills the process.
    ALTER TABLE leases ADD COLUMN handed_over INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- Whose turn it is: in which round each owner was served last. One row an owner, with '' as its user, until the
    -- users of an owner take turns, too.
    CREATE TABLE turns (
        owner TEXT NOT NULL,
        user_id TEXT NOT NULL,
        served INTEGER NOT NULL,
        PRIMARY KEY (owner, user_id)
    ) WITHOUT ROWID;

    -- The workflow of the editor's page that a job was made of.
    CREATE TABLE workflows (
        number INTEGER PRIMARY KEY,                -- the job's
        job_id TEXT NOT NULL,
        workflow_id TEXT NOT NULL
    );
    -- Which bodies of earlier versions have not been looked at for their workflow's id: those of lesser numbers.
    CREATE TABLE unlisted (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        below INTEGER NOT NULL
    );
    INSERT INTO unlisted SELECT 1, coalesce(max(number), 0) + 1 FROM jobs;

    -- What an owner has cleared from its history: all that had ended before the change of that number, and with it.
    CREATE TABLE cleared (
        owner TEXT PRIMARY KEY,
        up_to INTEGER NOT NULL
    ) WITHOUT ROWID;

    -- Every list of jobs goes along an index, however many jobs there are of other states or other owners.
    DROP INDEX jobs_succeeded;
    CREATE INDEX jobs_by_state ON jobs (state, number);
    CREATE INDEX jobs_of_owner_by_state ON jobs (owner, state, number);
    -- The history in the order of the verdicts, with what listings sort and filter by.
    DROP INDEX jobs_history;
    CREATE INDEX jobs_history ON jobs (owner, event_id, state, started_at_ms, settled_at_ms)
        WHERE settled_at_ms IS NOT NULL AND hidden = 0;
    CREATE INDEX jobs_shown ON jobs (event_id, owner, state, started_at_ms, settled_at_ms)
        WHERE settled_at_ms IS NOT NULL AND hidden = 0;
    CREATE INDEX jobs_secret ON jobs (number) WHERE state = 'queued' AND has_secrets <> 0;
    DROP INDEX webhooks_of_owner;
    DROP INDEX webhooks_dead;
    CREATE INDEX webhooks_of_owner_by_state ON webhooks (owner, state, number);
    CREATE INDEX webhooks_by_state ON webhooks (state, number);
    CREATE INDEX unread_since ON unread (since_ms);
    """,
    """
    -- Whether the prompt was made of a workflow in the editor's own format.
    ALTER TABLE jobs ADD COLUMN converted INTEGER NOT NULL DEFAULT 0;
    """,
    """
    -- The bot's user whose job it is, '' for none, and the round of turns among its owner's users that the job has:
    -- within a priority the lower round goes first, and `place` decides within a round.
    ALTER TABLE jobs ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN round INTEGER NOT NULL DEFAULT 0;
    DROP INDEX jobs_queued;
    CREATE INDEX jobs_queued ON jobs (owner, priority DESC, round, place, number, template, shape)
        WHERE state = 'queued';
    CREATE INDEX jobs_of_user_by_state ON jobs (owner, user_id, state, number) WHERE user_id <> '';
    -- Those that wait for their turn or have had it.
    CREATE INDEX jobs_with_turns ON jobs (owner, user_id, priority, round)
        WHERE user_id <> '' AND (state IN ('queued', 'dispatched') OR started_at_ms IS NOT NULL);
    -- The last round of each line that has been served.
    CREATE TABLE rounds (
        owner TEXT NOT NULL,
        priority INTEGER NOT NULL,
        round INTEGER NOT NULL,
        PRIMARY KEY (owner, priority)
    ) WITHOUT ROWID;

    -- The key that the job's request came with. `idempotency` says what each stands for now.
    ALTER TABLE jobs ADD COLUMN idempotency_key TEXT;
    UPDATE jobs SET idempotency_key = (SELECT key FROM idempotency WHERE idempotency.job_id = jobs.job_id)
        WHERE job_id IN (SELECT job_id FROM idempotency);
    CREATE INDEX jobs_of_key ON jobs (owner, idempotency_key, number) WHERE idempotency_key IS NOT NULL;
    -- Jobs in the order in which they ended.
    CREATE INDEX jobs_ended ON jobs (event_id) WHERE settled_at_ms IS NOT NULL;
    CREATE INDEX jobs_of_owner_ended ON jobs (owner, event_id) WHERE settled_at_ms IS NOT NULL;
    """,
    """
    CREATE INDEX jobs_by_code ON jobs (code, number) WHERE code IS NOT NULL;
    """,
    """
    -- What operators should look at, the newest.
    CREATE TABLE alarms (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        code TEXT NOT NULL,
        message TEXT NOT NULL,
        job_id TEXT,
        seen_at_ms INTEGER
    );
    CREATE INDEX alarms_unseen ON alarms (number) WHERE seen_at_ms IS NULL;
    """,
    """
    -- How large the body is: those of an owner's open jobs are counted without reading them.
    ALTER TABLE jobs ADD COLUMN body_bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE jobs SET body_bytes = coalesce((SELECT length(body) FROM bodies WHERE bodies.number = jobs.number), 0)
        WHERE state IN ('queued', 'dispatched', 'running', 'validating');
    DROP INDEX jobs_queued;
    CREATE INDEX jobs_queued ON jobs (owner, priority DESC, round, place, number, template, shape, body_bytes)
        WHERE state = 'queued';
    """,
    """
    -- The job that this one repeats; a job is repeated once. And since when a job's body is no longer kept.
    ALTER TABLE jobs ADD COLUMN retry_of TEXT;
    ALTER TABLE jobs ADD COLUMN body_gone_at_ms INTEGER;
    CREATE UNIQUE INDEX jobs_retrying ON jobs (retry_of) WHERE retry_of IS NOT NULL;
    """,
    """
    -- What the worker's time was spent on, by day (UTC), owner, user and template ('' for none).
    CREATE TABLE spending (
        day TEXT NOT NULL,
        owner TEXT NOT NULL,
        user_id TEXT NOT NULL,
        template TEXT NOT NULL,
        runs INTEGER NOT NULL,
        gpu_ms INTEGER NOT NULL,
        load_ms INTEGER NOT NULL,
        PRIMARY KEY (day, owner, user_id, template)
    ) WITHOUT ROWID;
    """,
    """
    -- In what form a job's results were asked for (JSON object), and how far those have come that are to be put to
    -- addresses (JSON list); NULL where nothing was asked for.
    ALTER TABLE jobs ADD COLUMN results TEXT;
    ALTER TABLE jobs ADD COLUMN puts TEXT;
    -- What is still to be put, and where. A row goes once its file is there, or will never be.
    CREATE TABLE puts (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL,
        place INTEGER NOT NULL,                    -- in the job's list
        artifact INTEGER NOT NULL,
        target TEXT NOT NULL,                      -- the owner, who may have so many under way
        url TEXT NOT NULL,                         -- a secret
        headers TEXT NOT NULL,                     -- JSON object
        expires_at_ms INTEGER,
        attempts INTEGER NOT NULL,
        since_ms INTEGER NOT NULL,
        next_at_ms INTEGER                         -- NULL until the job has succeeded
    );
    CREATE INDEX puts_due ON puts (next_at_ms, number) WHERE next_at_ms IS NOT NULL;
    CREATE INDEX puts_of_job ON puts (job_id);
    """,
    """
    -- Boxes that share the database: each is believed to live until then, by the engine's clock.
    CREATE TABLE boxes (
        box TEXT PRIMARY KEY,
        epoch TEXT NOT NULL,                       -- since it joined
        max_jobs INTEGER NOT NULL,
        until_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- The number of the last commit of each process of theirs.
    CREATE TABLE writers (
        name TEXT PRIMARY KEY,
        box TEXT NOT NULL,
        commits INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- The box that took the job last, and what its run must say with what it writes; NULL once it waits again.
    -- And the one that alone may take it, since the job's secrets are in its memory.
    ALTER TABLE jobs ADD COLUMN box TEXT;
    ALTER TABLE jobs ADD COLUMN token TEXT;
    ALTER TABLE jobs ADD COLUMN only_box TEXT;
    CREATE INDEX jobs_of_box ON jobs (box)
        WHERE box IS NOT NULL AND state IN ('dispatched', 'running', 'validating');
    """,
    """
    -- What the depot has of an owner's uploads, by what the owner calls each below input.
    CREATE TABLE uploads (
        owner TEXT NOT NULL,
        path TEXT NOT NULL,
        depot_key TEXT NOT NULL,                   -- SHA-256 and suffix
        bytes INTEGER NOT NULL,
        used_at_ms INTEGER NOT NULL,               -- by the last job that named it
        PRIMARY KEY (owner, path)
    ) WITHOUT ROWID;
    CREATE INDEX uploads_of_key ON uploads (depot_key);
    -- Results that have passed and that the depot does not have yet. A row goes once it has the file, or never will.
    CREATE TABLE unstored (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL,
        artifact INTEGER NOT NULL,
        is_copy INTEGER NOT NULL,                  -- it is the converted copy
        box TEXT NOT NULL,                         -- where the file is
        attempts INTEGER NOT NULL,
        since_ms INTEGER NOT NULL,
        next_at_ms INTEGER NOT NULL
    );
    CREATE INDEX unstored_due ON unstored (box, next_at_ms, number);
    CREATE INDEX unstored_of_job ON unstored (job_id);
    """,
    """
    -- Where a box is reached, and what it tells the others about itself (JSON object); the number grows with each
    -- change of either.
    ALTER TABLE boxes ADD COLUMN url TEXT;
    ALTER TABLE boxes ADD COLUMN status TEXT;
    ALTER TABLE boxes ADD COLUMN revision INTEGER;
    """,
    """
    -- The keys of a fleet: JSON objects, and the number of the change that each has come with.
    CREATE TABLE keys (
        key_id TEXT PRIMARY KEY,
        body TEXT NOT NULL,
        change INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX keys_by_change ON keys (change);
    -- Links that sign a browser in on any box, by their digests, and until when each is good, by the engine's clock.
    CREATE TABLE sign_ins (
        digest TEXT PRIMARY KEY,
        until_ms INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- What is left of limits that the boxes of a fleet share: so many units at that time, by the engine's clock; owner
    -- and user are '' where it is everybody's, or the owner's. The bucket is as good as none once it is full again.
    CREATE TABLE buckets (
        what TEXT NOT NULL,
        owner TEXT NOT NULL,
        user_id TEXT NOT NULL,
        units REAL NOT NULL,
        at_ms INTEGER NOT NULL,
        full_at_ms INTEGER NOT NULL,
        PRIMARY KEY (what, owner, user_id)
    ) WITHOUT ROWID;
    CREATE INDEX buckets_full ON buckets (full_at_ms);
    """,
    """
    -- Where an alarm was raised, of a fleet's boxes.
    ALTER TABLE alarms ADD COLUMN box TEXT;
    """,
    """
    -- Which box may run a job: all that decides it as a digest ('' where nobody has noted it), its models (JSON list),
    -- the memory that the card must have, and since when later ones of its owner go before it.
    ALTER TABLE jobs ADD COLUMN needs TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN models TEXT;
    ALTER TABLE jobs ADD COLUMN min_vram_mb INTEGER;
    ALTER TABLE jobs ADD COLUMN passed_at_ms INTEGER;
    CREATE INDEX jobs_by_needs ON jobs (owner, needs, priority DESC, round, place, number)
        WHERE state = 'queued' AND needs <> '';
    ALTER TABLE boxes ADD COLUMN vram_mb INTEGER;      -- its card's memory
    -- Which box could not run jobs of these needs, and the error's code. It tries again some minutes later.
    CREATE TABLE refusals (
        needs TEXT NOT NULL,
        box TEXT NOT NULL,
        code TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (needs, box)
    ) WITHOUT ROWID;
    """,
    """
    -- Which folder the boxes of a fleet mean by a depot's address: the mark that lies in it.
    CREATE TABLE depots (
        place TEXT PRIMARY KEY,
        mark TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    -- Whose the files in the depot are, when each was put in last, and the job that has made it.
    CREATE TABLE kept (
        owner TEXT NOT NULL,
        depot_key TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        job_id TEXT,
        PRIMARY KEY (owner, depot_key)
    ) WITHOUT ROWID;
    CREATE INDEX kept_of_key ON kept (depot_key, owner);
    CREATE INDEX kept_since ON kept (at_ms);
    """,
)

#: In a fleet a server whose code knows this many of them runs on tables that have had more, beside those that know all:
#: whatever comes later only adds tables, indexes and columns, and the older one may leave those alone. A migration that
#: does more, or that all servers must heed, raises this to its own number.
WORKS_SINCE = 25
