"""Labelled sets in their own formats: a module for each; ``formats`` has their names and recognises them."""
