"""The command line: `python custom_nodes/<folder> keys | open | convert | doctor | fleet | janitor | models | …`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path


def main() -> int:
    from alias import ALIAS, register  # `python <folder>` puts this folder on sys.path; register() removes it

    register()
    try:
        return _run()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == ALIAS:
            raise
        print(
            f"This Python ({sys.executable}) lacks {error.name}. Run the command with ComfyUI's own Python; if that "
            f"one lacks it too: -m pip install -r {Path(__file__).absolute().parent / 'requirements.txt'}",
            file=sys.stderr,
        )
        return 2


def _run() -> int:
    if sys.argv[1:2] == ["mcp"]:
        return _serve_agent(sys.argv[2:])
    from comfyui_guarded.guard import settings
    from comfyui_guarded.guard.access import command as keys
    from comfyui_guarded.guard.access import sign_in
    from comfyui_guarded.guard.doctor import command as doctor
    from comfyui_guarded.guard.editor import command as convert
    from comfyui_guarded.guard.fleet import command as fleet
    from comfyui_guarded.guard.janitor import command as janitor
    from comfyui_guarded.guard.models import command as models
    from comfyui_guarded.guard.operators import metrics_page
    from comfyui_guarded.guard.store import command as vacuum
    from comfyui_guarded.guard.templates import command as templates

    parser = argparse.ArgumentParser(prog="guarded", description="ComfyUI-Guarded, without a server.")
    commands = parser.add_subparsers(dest="command", required=True)
    keys.add_arguments(commands.add_parser("keys", help="who may use the server: make, list and revoke keys"))
    sign_in.add_arguments(
        commands.add_parser("open", help="print a link that signs your browser in, once, as the operator")
    )
    convert.add_arguments(
        commands.add_parser("convert", help="make a prompt of a workflow as the editor saves it, as a server would")
    )
    fleet.add_arguments(commands.add_parser("fleet", help="the boxes of a fleet, and one that never comes back"))
    commands.add_parser("settings", help="print every setting with its default, as docs/settings.md has it")
    janitor.add_arguments(
        commands.add_parser(
            "janitor", help="sweep once on a machine where no server runs, by the same rules as the server"
        )
    )
    models.add_arguments(
        commands.add_parser("models", help="the models that a template needs: what they are, and the download of them")
    )
    doctor.add_arguments(
        commands.add_parser(
            "doctor", help="what is set, missing or unsafe, and how to fix it; exit status 1: a warning, 2: an error"
        )
    )
    vacuum.add_arguments(
        commands.add_parser("vacuum", help="make the job database's file as small as it can be, while no server runs")
    )
    templates.add_arguments(
        commands.add_parser("templates", help="check FILE: every fault of a template, or a first manifest for a graph")
    )
    commands.add_parser("mcp", help="the tools of a server for an agent on this machine, by MCP over stdio")
    commands.add_parser("metrics", help="print every metric, as docs/metrics.md has it")
    arguments = parser.parse_args()
    package = Path(__file__).absolute().parent
    if arguments.command == "keys":
        return keys.run(arguments, package, print)
    if arguments.command == "open":
        return sign_in.run(arguments, package, doctor.find_address, print)
    if arguments.command == "convert":
        return convert.run(arguments, lambda: _find_server(package, doctor.find_address), print)
    if arguments.command == "templates":
        return templates.run(arguments, print)
    if arguments.command == "janitor":
        return janitor.run(arguments, os.environ, package, print)
    if arguments.command == "models":
        return models.run(arguments, os.environ, package, print)
    if arguments.command == "doctor":
        return doctor.run(arguments, os.environ, package, print)
    if arguments.command == "fleet":
        return fleet.run(arguments, os.environ, package, print)
    if arguments.command == "vacuum":
        return vacuum.run(arguments, os.environ, package, print)
    if arguments.command == "metrics":
        print(metrics_page.markdown(), end="")
        return 0
    print(settings.markdown(), end="")
    return 0


def _serve_agent(words: list[str]) -> int:
    """`mcp`, by itself: the agent's machine has neither ComfyUI nor most of what a server needs."""
    from comfyui_guarded.agents import command

    parser = argparse.ArgumentParser(prog="guarded mcp")
    command.add_arguments(parser)

    def find_url() -> str:
        from comfyui_guarded.guard.doctor.command import find_address

        return _find_server(Path(__file__).absolute().parent, find_address)

    return command.run(parser.parse_args(words), find_url)


def _find_server(package: Path, find_address: Callable[[Path], str]) -> str:
    """Where the server of the ComfyUI that this package lies in was reached at its last start."""
    from comfyui_guarded.guard.cli import guard_folder, user_folder

    user = user_folder(package)
    return find_address(guard_folder(user)) if user is not None else "http://127.0.0.1:8188"


if __name__ == "__main__":
    sys.exit(main())
