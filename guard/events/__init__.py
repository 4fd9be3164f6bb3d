"""Report what happens to jobs to those who listen: streams of events, webhooks.

`event` is one thing that happened, `stream` passes it to many readers (`subscription`), `outbox` decides what to
deliver and when to try again (`attempts`; `carrier` does it), `webhook_rules` says which addresses are allowed.
"""
