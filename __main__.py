"""The command line: `python custom_nodes/<folder> settings`."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    from alias import register  # `python <folder>` puts this folder on sys.path; register() takes it off again

    register()
    from comfyui_guarded.guard import settings

    parser = argparse.ArgumentParser(prog="guarded", description="ComfyUI-Guarded, without a server.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("settings", help="print every setting with its default, as docs/settings.md has it")
    parser.parse_args()
    print(settings.markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
