"""Bring the models that a template needs, as an operator asks for it: never by a bot's key, never by a prompt.

`sources` says where a model's file is to be had, `fetch` brings it; `command` is the command line, `downloads` does it
while the server runs.
"""
