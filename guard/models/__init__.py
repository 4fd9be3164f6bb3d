"""Bring the models that a template needs, on the command line: never by a key, never by a prompt.

`sources` says where a model's file is to be had, `fetch` brings it, `command` is the command line.
"""
