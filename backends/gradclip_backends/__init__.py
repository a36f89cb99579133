"""The backends, each in a room of its own. The core reaches them by string address alone."""
