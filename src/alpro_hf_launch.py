"""The console script `alpro`.

It stands beside the package because importing anything below `alpro_hf` runs `alpro_hf/__init__.py` first, and that
registers the model classes, which takes torch. When this module is loaded, `alpro_hf` leaves registration to the
command line, which needs it only once a command runs. So `alpro --help` answers without torch.

The alternatives were weighed. Registration on first use of an Auto class would need an import hook that runs in the
middle of transformers' own imports, which are circular. An environment variable or a look at `sys.argv` would also
change programs that merely import `alpro_hf`. Help without the package would write every option twice.
"""


def main() -> int:
    """Run the command line of `alpro_hf` and return its exit code."""
    from alpro_hf.cli.main import main as run

    return run()
