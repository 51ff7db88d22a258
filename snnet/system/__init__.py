"""The process and its machine: CPUs, signals, the terminal, and how a command reports errors."""
