"""Tell who asks: by a key, a signed token, a browser's cookie, or a direct loopback connection.

`access` decides, `keys` stores keys as hashes, `shared_keys` those of a fleet in its database, `tokens` signs what a
browser may carry in a URL, `addresses` knows this machine's own, `peers` asks the kernel whose a connection is,
`sign_in` lets a browser in by a link, `client_ids` keeps owners' client ids apart, `command` is the command line,
`manage` does the same while the server runs, `limit_fields` has what a limit takes for both.
"""
