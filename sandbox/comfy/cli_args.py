"""The command line. Flags of ComfyUI that mean nothing here are accepted and ignored."""

import argparse
import os
import sys

import comfy.options


def is_valid_directory(path: str) -> str:
    """As ComfyUI has it: a user directory that is not there ends the start."""
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"The path '{path}' does not exist.")
    return path


parser = argparse.ArgumentParser(description="ComfyUI-Guarded sandbox host", allow_abbrev=False)
parser.add_argument("--listen", default="127.0.0.1", nargs="?", const="0.0.0.0,::", metavar="IP")
parser.add_argument("--port", type=int, default=8188)
parser.add_argument("--base-directory", default=None, metavar="DIR", help="holds input/, output/, …")
parser.add_argument("--input-directory", default=None, metavar="DIR")
parser.add_argument("--output-directory", default=None, metavar="DIR")
parser.add_argument("--temp-directory", default=None, metavar="DIR", help="temp/ is made below it")
parser.add_argument("--user-directory", type=is_valid_directory, default=None, metavar="DIR")
parser.add_argument("--max-upload-size", type=float, default=100, metavar="MB")
parser.add_argument("--disable-metadata", action="store_true", help="write no prompt into PNG files")
parser.add_argument("--disable-all-custom-nodes", action="store_true")
parser.add_argument("--whitelist-custom-nodes", nargs="+", default=[], metavar="FOLDER")
parser.add_argument("--cache-none", action="store_true", help="run every node of every prompt")
parser.add_argument("--cache-classic", action="store_true", help="remember the last prompt's nodes only")
parser.add_argument("--cache-lru", type=int, default=0, metavar="N", help="remember at most N nodes")
parser.add_argument(
    "--extra-custom-node",
    nargs="+",
    action="extend",
    default=[],
    metavar="PATH",
    help="sandbox only: load this folder or .py file as if it lay in custom_nodes/",
)

# A plugin may look at these; here they are always off.
parser.set_defaults(enable_assets=False, enable_manager=False, multi_user=False, disable_smart_memory=False)

args, ignored_args = parser.parse_known_args(None if comfy.options.args_parsing else [])
argv = sys.argv
