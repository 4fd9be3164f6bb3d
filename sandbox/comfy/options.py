"""Whether this process may read its command line: main.py says yes, a test that imports a module does not."""

args_parsing = False


def enable_args_parsing(enable: bool = True) -> None:
    global args_parsing
    args_parsing = enable
