"""Recording of tensor operations and their replay without Python modules, autograd and autocast.

`recorder` records the operations of a computation, `program` turns them into a function, and `graph` captures such a
function as a CUDA graph.
"""
