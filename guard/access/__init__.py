"""Tell who asks: by a key, a signed token, or a direct loopback connection.

`access` decides, `keys` stores keys as hashes, `tokens` signs what a browser may carry in a URL, `addresses` knows this
machine's own, `client_ids` keeps owners' client ids apart, `command` is the command line.
"""
