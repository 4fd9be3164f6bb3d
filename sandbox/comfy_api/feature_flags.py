"""What server and client tell each other that they can do."""

from typing import Any

from comfy.cli_args import args

SERVER_FEATURE_FLAGS: dict[str, Any] = {
    "supports_preview_metadata": True,
    "supports_model_type_tags": True,
    "max_upload_size": round(args.max_upload_size * 1024 * 1024),
    "extension": {"manager": {"supports_v4": True}},
    "node_replacements": True,
    "assets": False,
}


def get_server_features() -> dict[str, Any]:
    return SERVER_FEATURE_FLAGS.copy()


def supports_feature(sockets_metadata: dict[str, dict[str, Any]], sid: Any, feature_name: str) -> bool:
    """Whether the client of that socket has said that it can do it."""
    return sid in sockets_metadata and sockets_metadata[sid].get("feature_flags", {}).get(feature_name) is True
