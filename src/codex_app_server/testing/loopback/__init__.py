"""A scripted model on loopback: real codex processes complete real turns against it, offline.

The embedded model of the demo, the tests and the benchmarks. It knows nothing of the rest of the project.
"""

from .directives import DirectiveError
from .home import loopback_config_toml, write_loopback_home
from .records import RequestRecord
from .request import ModelRequest
from .script import (
    Answer,
    Attempts,
    Drop,
    Failed,
    Hang,
    HttpError,
    Json,
    Messages,
    Rule,
    Script,
    ScriptError,
    Text,
    ToolCall,
)
from .serve import load_script, serve_forever
from .server import LoopbackModel

__all__ = [
    "Answer",
    "Attempts",
    "DirectiveError",
    "Drop",
    "Failed",
    "Hang",
    "HttpError",
    "Json",
    "LoopbackModel",
    "Messages",
    "ModelRequest",
    "RequestRecord",
    "Rule",
    "Script",
    "ScriptError",
    "Text",
    "ToolCall",
    "load_script",
    "loopback_config_toml",
    "serve_forever",
    "write_loopback_home",
]
