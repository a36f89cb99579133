"""What the GPU backends share: tables, workspaces, the sequence of launches. A kernel's launch is its driver's."""
