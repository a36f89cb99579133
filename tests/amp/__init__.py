"""Mixed precision: the loss scale, the Clipper, and half precision."""
