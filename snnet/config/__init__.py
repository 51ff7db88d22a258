"""The options of a command: what each means and may be, the command lines that set them, and the presets."""
