"""Follow what a prompt asks for through its graph, before it runs: numbers, sizes, frames, steps.

`ranges` has numbers between two bounds, and reads formulas; `texts` makes the texts that ComfyUI's text nodes make;
`names` knows what inputs and classes are by what they are called; `values` is what goes along a link; `plain` tells
what a node makes of numbers and texts, `sizes` (with `shapes` and `picks`) what it makes of the pictures that it gets,
`measures` what it says of them, `lists` how often it runs; and `walk` goes through the graph. A class is known by what
it declares and by its names: only `texts` has rules for classes. `labour` finds what no process would survive, or could
interrupt: texts that double, patterns (`patterns`) that try too many ways, whole numbers (`bits`) without end.
"""
