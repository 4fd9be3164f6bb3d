"""Name and find files: uploads, results, and what a prompt refers to, each within its owner's reach.

`names` knows how files are named, `content` refuses files that make their reader open others, `uploads` stores what
callers send, `files` finds what a caller may read, `references` replaces the names in a prompt, `view` converts
pictures as ComfyUI's `/view` does, `cleaning` takes the server's paths out of what an owner sees. `inputs` keeps what
prompts name in the depot, and brings it back; `storage` makes all that serves the depot.
"""
