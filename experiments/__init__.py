"""The command lines of the project, one module each."""
