"""Choose a model among those on offer, and the least effort it can be run with."""

from codex_app_server import Codex
from codex_app_server.generated.models import Model

ORDER = ["none", "minimal", "low", "medium", "high", "xhigh"]


def least_effort(model: Model) -> str:
    offered = [option.reasoning_effort for option in model.supported_reasoning_efforts]
    return next((effort for effort in ORDER if effort in offered), model.default_reasoning_effort)


with Codex() as codex:
    offered = codex.models().data
    model = next((model for model in offered if model.is_default), offered[0])
    effort = least_effort(model)
    print("model:", model.model, "effort:", effort)

    # A thread keeps its model; the model and effort of a turn hold for that turn and those after it.
    thread = codex.thread_start(model=model.model)
    result = thread.run("Which number comes after 41?", model=model.model, effort=effort)
    print(result.final_response)
