"""Follow what a prompt asks for through its graph, before it runs: numbers, sizes, frames, steps.

`ranges` has numbers between two bounds, and reads formulas; `names` knows what inputs and classes are by what they are
called; `values` is what goes along a link; `sizes` tells what a node makes of the pictures that it gets, and `walk`
goes through the graph. A class is known by what it declares and by its names: no class has code of its own here.
"""
