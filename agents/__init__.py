"""Lets an agent use the server as a bot does, by MCP: over stdio, and over HTTP under `/guarded/mcp`.

Every tool is a client of the HTTP routes and has the rights of the key that it is called with, and no others. Only
`server.py`, `stdio.py` and `bridge.py` import the `mcp` package, which is optional, and only once they are asked for.

* `api.py`: the HTTP routes, and the one way in which they refuse
* `words.py`: refusals and jobs in words that an agent can act on
* `tools.py`: what a tool takes: one for each template, and those for jobs
* `calls.py`: what a tool does
* `pictures.py`: pictures in arguments, and in results
* `messages.py`: what is a message of the protocol, and the answer to what is none
* `server.py`: the MCP server of those tools
* `bridge.py`: serves it under ComfyUI's own server
* `stdio.py`, `command.py`: serve it over stdio
"""
