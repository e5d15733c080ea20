"""Show what the app-server says of itself, and the models it offers."""

from codex_app_server import Codex, __version__

with Codex() as codex:
    print("SDK made for:", __version__)
    print("app-server:", codex.metadata.user_agent)
    print("home:", codex.metadata.codex_home)
    for model in codex.models().data:
        efforts = ", ".join(option.reasoning_effort for option in model.supported_reasoning_efforts)
        print("*" if model.is_default else "-", model.model, f"({efforts})")
