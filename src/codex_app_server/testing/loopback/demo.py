"""The demo: a data set of short questions, and a script that answers them.

`codex-pool batch --demo` runs DEMO_DATASET against DEMO_SCRIPT; examples/batch/prompts.jsonl is the same data set as a
file. Three samples show more than text: one runs a command and leaves a file, one wants JSON, one fails at first.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .script import Answer, Attempts, Drop, Json, Rule, Script, Text, ToolCall

_REVIEW_SCHEMA = {
    "type": "object",
    "properties": {
        "sentiment": {"type": "string", "enum": ["positive", "neutral", "negative"]},
        "score": {"type": "integer"},
        "topics": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["sentiment", "score", "topics"],
    "additionalProperties": False,
}

# id, topic, prompt, what the answer must contain (None: a matter of taste), the answer.
_QUESTIONS: tuple[tuple[str, str, str, str | None, str], ...] = (
    (
        "multiply",
        "arithmetic",
        "What is 17 * 24? Show the steps.",
        "408",
        "17 * 24 = 17 * 20 + 17 * 4 = 340 + 68 = 408.",
    ),
    (
        "percent",
        "arithmetic",
        "A jacket costs 80 euros after a 20 percent discount. What was the price before?",
        "100",
        "After 20 percent off, 80 percent of the price is left: 80 / 0.8 = 100. It was 100 euros.",
    ),
    (
        "train",
        "arithmetic",
        "A train covers 150 km in 1 hour 40 minutes. What is its average speed in km/h?",
        "90",
        "1 hour 40 minutes is 5/3 hours, and 150 / (5/3) = 90. The average speed is 90 km/h.",
    ),
    (
        "primes",
        "arithmetic",
        "List the primes between 30 and 50.",
        "31, 37, 41, 43, 47",
        "The primes between 30 and 50 are 31, 37, 41, 43, 47.",
    ),
    (
        "binary",
        "arithmetic",
        "Write 45 in binary and in hexadecimal.",
        "101101",
        "45 = 32 + 8 + 4 + 1, so it is 101101 in binary; in hexadecimal it is 2D (2 * 16 + 13).",
    ),
    (
        "french",
        "translation",
        "Translate to French: The library opens at nine, but not on Mondays.",
        "bibliothèque",
        "La bibliothèque ouvre à neuf heures, mais pas le lundi.",
    ),
    (
        "spanish",
        "translation",
        "Translate to Spanish: Could you help me find the station?",
        "estación",
        "¿Podría ayudarme a encontrar la estación?",
    ),
    (
        "japanese",
        "translation",
        "How do you say 'thank you for waiting' in Japanese? Give kanji and reading.",
        "お待たせしました",
        "お待たせしました (omatase shimashita): literally 'I have made you wait'. It is what a shop would say.",
    ),
    (
        "summary-tea",
        "summary",
        "Summarise in one sentence: Tea was first drunk as medicine. Monks later used it to stay awake. "
        "Trade made it a daily drink.",
        "medicine",
        "Tea began as a medicine, kept monks awake, and became a daily drink through trade.",
    ),
    (
        "summary-bug",
        "summary",
        "Give a title of at most eight words: The upload stops at 2 GB because the size is kept in a signed "
        "32-bit integer.",
        None,
        "Uploads stop at 2 GB: 32-bit size overflow",
    ),
    (
        "regex-date",
        "regex",
        "Write a regular expression for dates such as 2024-03-09.",
        r"\d{4}-\d{2}-\d{2}",
        "`^\\d{4}-\\d{2}-\\d{2}$` matches the shape. To reject months above 12, write `(0[1-9]|1[0-2])` for the month.",
    ),
    (
        "regex-words",
        "regex",
        "Which regular expression finds a word that is written twice in a row?",
        r"\1",
        "`\\b(\\w+)\\s+\\1\\b`, case-insensitive: the group remembers the word, and `\\1` asks for it again.",
    ),
    (
        "sql-second",
        "sql",
        "Write SQL for the second highest salary in employees(name, salary).",
        "SELECT",
        "SELECT MAX(salary) FROM employees WHERE salary < (SELECT MAX(salary) FROM employees);\n\n"
        "With ties at the top it still gives the next lower salary, and NULL when there is none.",
    ),
    (
        "sql-join",
        "sql",
        "Write SQL for the customers(id, name) who have no row in orders(customer_id).",
        "LEFT JOIN",
        "SELECT c.name FROM customers c LEFT JOIN orders o ON o.customer_id = c.id WHERE o.customer_id IS NULL;",
    ),
    (
        "python-flatten",
        "code",
        "Flatten a list of lists in Python, in one line.",
        "for",
        "[item for inner in lists for item in inner]\n\n`list(itertools.chain.from_iterable(lists))` does the same.",
    ),
    (
        "python-bug",
        "code",
        "What is wrong with: def add(item, items=[]): items.append(item); return items",
        "default",
        "The default list is made once, when the function is defined, so every call without `items` shares it. "
        "Use `items=None` and create the list inside.",
    ),
    (
        "bash-largest",
        "code",
        "Shell one-liner: the three largest files below the current directory.",
        "sort",
        "find . -type f -printf '%s %p\\n' | sort -rn | head -3",
    ),
    (
        "big-o",
        "code",
        "What is the time complexity of binary search, and why?",
        "log",
        "O(log n): every comparison halves what is left, and n can be halved about log2(n) times.",
    ),
    (
        "git-undo",
        "code",
        "How do I undo the last git commit but keep its changes?",
        "reset",
        "`git reset --soft HEAD~1` takes the commit back and leaves its changes staged. "
        "If it is already pushed, `git revert HEAD` is kinder to others.",
    ),
    (
        "capital",
        "facts",
        "What is the capital of Australia?",
        "Canberra",
        "Canberra. It was chosen in 1908 as a compromise between Sydney and Melbourne.",
    ),
    (
        "boiling",
        "facts",
        "Why does water boil at a lower temperature on a mountain?",
        "pressure",
        "Water boils when its vapour pressure reaches the pressure of the air around it. On a mountain that pressure "
        "is lower, so it is reached sooner: at 3,000 m already near 90 degrees.",
    ),
    (
        "logic-boxes",
        "logic",
        "All bloops are razzies and all razzies are lazzies. Are all bloops lazzies?",
        "Yes",
        "Yes. Every bloop is a razzie and every razzie is a lazzie, so every bloop is a lazzie.",
    ),
    (
        "haiku",
        "writing",
        "Write a haiku about a queue that is finally empty.",
        None,
        "The last job is done.\nWorkers wait in morning light;\nthe bell stays silent.",
    ),
)

_FILE_PROMPT = "Write the first ten square numbers to squares.txt, one a line, then tell me how many lines it has."
_JSON_PROMPT = "Classify this review: 'The keyboard is lovely, but the battery is empty by noon.'"
_FLAKY_PROMPT = "Explain in two sentences why a client should retry after a lost connection."


def _samples() -> list[tuple[dict[str, Any], Answer]]:
    """Yield each sample with its answer; deltas and pace vary, so that a live display has something to show."""
    samples: list[tuple[dict[str, Any], Answer]] = []
    for number, (name, topic, prompt, expected, answer) in enumerate(_QUESTIONS):
        metadata = {"topic": topic} if expected is None else {"topic": topic, "expected": expected}
        deltas, pace_ms = min(len(answer), 24 + number * 7 % 37), 10 + number * 3 % 11
        samples.append(({"id": name, "prompt": prompt, "metadata": metadata}, Text(answer, deltas, pace_ms=pace_ms)))
    write_file = ToolCall(
        "for i in 1 2 3 4 5 6 7 8 9 10; do echo $((i * i)); done > squares.txt; wc -l < squares.txt",
        Text("squares.txt holds the squares from 1 to 100; it has {output} lines.", 24, pace_ms=15),
    )
    review = Json({"sentiment": "neutral", "score": 3, "topics": ["keyboard", "battery"]}, 20, pace_ms=15)
    recovered = Text(
        "The loss says nothing about the request itself, so a second attempt usually works. It should wait a little "
        "longer each time, and never repeat what may already have had effects without being told to.",
        50,
        pace_ms=12,
    )
    samples[4:4] = [
        (
            {
                "id": "write-file",
                "prompt": _FILE_PROMPT,
                "sandbox": "workspace-write",
                "metadata": {"topic": "tools", "expected": "10 lines"},
            },
            write_file,
        )
    ]
    samples[9:9] = [
        (
            {
                "id": "review-json",
                "prompt": _JSON_PROMPT,
                "output_schema": _REVIEW_SCHEMA,
                "metadata": {"topic": "classification", "expected": "neutral"},
            },
            review,
        )
    ]
    samples[14:14] = [
        (
            {
                "id": "flaky-network",
                "prompt": _FLAKY_PROMPT,
                "timeout_s": 60,
                "metadata": {"topic": "writing"},
            },
            Attempts.of(Drop(6, pace_ms=20), recovered),
        )
    ]
    return samples


DEMO_DATASET: tuple[dict[str, Any], ...] = tuple(sample for sample, _ in _samples())
"""The samples, as a data set has them: id, prompt, metadata, some with sandbox, effort, output_schema or timeout_s."""

DEMO_SCRIPT = Script(tuple(Rule(answer, contains=sample["prompt"]) for sample, answer in _samples()))


def demo_jsonl() -> str:
    """DEMO_DATASET as JSON lines."""
    return "".join(msgspec.json.encode(sample).decode() + "\n" for sample in DEMO_DATASET)
