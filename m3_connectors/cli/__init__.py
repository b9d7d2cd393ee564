"""The command line ``m3``: one module for each command."""
