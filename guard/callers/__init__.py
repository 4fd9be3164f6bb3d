"""Answer callers about their jobs, in our own shapes and in ComfyUI's.

`jobs` looks up and cancels, `polls` holds impatient polls back, `places`, `positions` and `estimate` say how long a job
waits, `as_comfyui` has ComfyUI's shapes, `sockets` serves websockets, `elsewhere` lets callers hear of jobs on other
boxes of a fleet and `taps` those boxes of jobs here, `backlog` shows our jobs in ComfyUI's own queue; `interleave` lets
other threads run while something long is written.
"""
