"""The operators' commands, a module for each noun. Imports are inside the commands, so that --help answers fast."""
