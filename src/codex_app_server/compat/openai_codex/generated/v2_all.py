"""All wire types by name, as `openai_codex.generated.v2_all` has them."""

from .._models import lazy_models

__getattr__, __dir__ = lazy_models(__name__)
