"""An answer as an object: `output_type` gives the model the schema of a type and parses what it says."""

from typing import Literal

from pydantic import BaseModel

from codex_app_server import Codex, OutputTypeError


class Review(BaseModel):
    sentiment: Literal["good", "bad", "mixed"]
    score: int
    topics: list[str]


with Codex() as codex:
    thread = codex.thread_start(ephemeral=True)
    try:
        review = thread.run(
            "Classify this review: 'The keyboard is lovely, but the battery is empty by noon.'", output_type=Review
        )
    except OutputTypeError as error:
        # Without strict schemas a model may answer otherwise; what it said is there.
        raise SystemExit(f"{error}: {error.result.final_response}") from None
    print(review.sentiment, review.score, ", ".join(review.topics))
