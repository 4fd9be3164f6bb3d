"""Decide whether a job comes to exist: everything between a request and its first commit.

`admission` is the list of steps, `request` reads the body strictly, `conversion` takes workflows in the editor's own
format, `policy` says what a prompt may ask for, by what `guard/cost` finds in it (`key_policies`: that of a key which
is tighter; `costs` asks both), `confinement` where the prompts of keys may lead (`keyed_deny` lists the nodes that lead
elsewhere), `limits` how often a client may ask, `shared_limits` tells the boxes of a fleet of it; `retry` makes a
request of a job; `patterns` are the settings' wild cards.
"""
