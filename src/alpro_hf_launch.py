"""The console script `alpro`, in a module next to the package.

Importing any module of `alpro_hf` runs `alpro_hf/__init__.py` first, which registers the model classes with
transformers and so imports torch. While `main` of this module runs, `alpro_hf` skips that, and the command line
registers the classes when a command starts to work. So `alpro --help` answers without torch.

The alternatives are worse:

- Registration when an Auto class is first used: it takes the classes themselves, not their names, so a hook would have
  to import them in the middle of transformers' own imports, which are circular.
- An environment variable, or a look for the name `alpro` in `sys.argv` in `alpro_hf/__init__.py`: it would also
  change programs that only import `alpro_hf`, or reach processes started by the command.
- A package of its own for the command line: two names to import from, and help would still need the help texts of the
  package, or a copy of every option.

`python -m alpro_hf` imports the package before any code of ours runs. Python then tells in `sys.argv` that it looks
for the module of `-m`, and `alpro_hf/__init__.py` leaves registration to the command in that case, too.
"""

# Read by alpro_hf/__init__.py. Processes that a command starts, such as those that load data, may import this module
# but do not call `main`; in them, importing `alpro_hf` registers its classes as everywhere else.
registers_later = False


def main() -> int:
    """Run the command line of `alpro_hf` and return its exit code."""
    global registers_later
    registers_later = True
    from alpro_hf.cli.main import main as run

    return run()
