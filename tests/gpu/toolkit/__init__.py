"""What NVIDIA's wheels bring: compilers and disassemblers that need no GPU."""
