"""A PTX interpreter in NumPy: runs what NVRTC really made of a kernel, without a GPU. For tests alone.

``engine.PtxEngine`` is the way in, ``machine`` runs a grid, and the other files say what an instruction means.
Memory is sequentially consistent, and approximate instructions (``ex2.approx``) are computed nearly exactly: what
depends on the weak memory model, on the last bits of those, or on what ptxas makes of the PTX, is not seen here.
"""
