"""The operators' commands, a module for each noun. Imports inside the commands keep --help and mistakes fast."""
