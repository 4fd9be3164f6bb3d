"""Turn a workflow in the editor's own format into a prompt, as the editor itself would on *Run*.

`read` makes a graph of the file, or says what is wrong with it. `widgets` knows which widgets the editor gives a node
of a class, by the host's description of that class, and `configure` puts the file's values into them. `promoted` does
the same for the widgets of subgraphs; `resolve` follows the links and writes the prompt; `texts` are the texts that
the editor changes as it sends them. `command` is `python custom_nodes/<folder> convert`. docs/editor.md says where the
result differs from the editor's, and why.
"""
