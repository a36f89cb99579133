"""The loading dock: foreign arrays in, flat memory out.

``dock.py`` is the entrance; each ``*_door.py`` knows one kind of array; ``layout.py`` knows
strides, packing and overlap. Nothing behind this room sees a framework again.
"""
