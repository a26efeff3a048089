"""The version of the package, in a module that imports nothing: all others can import it."""

__version__ = "0.2.0"
